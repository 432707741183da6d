"""Prompt folders on the hub: found here or downloaded, and uploaded as they are.

Up go the files of a prompt folder, with its own model card; down come files of those names and no others, which then
go through the checks of every prompt folder: a repository is an untrusted source.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public by its documentation

from ptune.errors import PromptError, first_line, shown
from ptune.reach import no_connection
from ptune.saved.files import holds
from ptune.saved.format import FILES
from ptune.saved.opened_folder import PTUNE_CONFIG
from ptune.saved.peft import ADAPTER_CONFIG

COMMIT_MESSAGE = "A soft prompt, by ptune"
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]
"""What the HTTP library raises that the installed huggingface_hub asks with; several may be installed."""
_FAULTS = (_HTTP_ERROR, OSError, ValueError)
"""What huggingface_hub raises when a repository cannot be read or written."""
_LOG_IN = "log in with `hf auth login`, or pass token=…"


def prompt_folder(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The folder that a name stands for: one on this machine, or else a prompt on the hub, downloaded.

    Args:
        name: A folder, or a hub id `user/prompt`. What exists here is a folder, whatever else is of that name; a
            `Path` is always a folder, and may not exist.
        revision: Branch, tag or commit on the hub.
        token: For a private prompt; by default that of `hf auth login` or `$HF_TOKEN`.
        cache_dir: In place of the hub's cache.
        local_files_only: Download nothing.
        force_download: Download again what is in the cache.

    Returns:
        The folder. Only files of a prompt folder's names are downloaded; they are checked when they are read.

    Raises:
        PromptError: No such repository or revision, no access to it, no connection; or it holds no prompt.
    """
    folder = Path(name)
    if _exists(folder):
        if revision is not None:
            raise PromptError(
                f"{name} is a folder, and has no revision {shown(revision)}.",
                hint="Leave out the prompt's revision; base_revision=… names the frozen model's.",
            )
        return folder
    if not isinstance(name, str) or not _is_hub_id(name):
        return folder  # whoever reads it says that it is not there
    unreachable = None if local_files_only else no_connection(name, PTUNE_CONFIG, revision=revision, token=token)
    try:
        found = snapshot_download(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only or unreachable is not None,
            force_download=force_download,
            allow_patterns=list(FILES),
        )
    except _FAULTS as fault:
        offline = local_files_only or is_offline_mode()
        raise _not_found(name, revision, unreachable or fault, offline=offline) from fault
    downloaded = Path(found)
    if not any(holds(downloaded, one) for one in (PTUNE_CONFIG, ADAPTER_CONFIG)):
        raise PromptError(
            f"the repository {name!r} holds no prompt: it has neither {PTUNE_CONFIG} nor {ADAPTER_CONFIG}.",
            hint="Name one that push_to_hub wrote, or a soft prompt of PEFT's.",
        )
    return downloaded


def _exists(folder: Path) -> bool:
    try:
        return folder.exists()
    except (OSError, ValueError):  # a name too long, or with a null byte
        return False


def _is_hub_id(name: str) -> bool:
    """Whether a name has the form `user/prompt`; prompts have no other, and a misspelt folder is not asked for."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def _not_found(name: str, revision: str | None, fault: Exception, *, offline: bool) -> PromptError:
    """The error for a prompt that is no folder and was not downloaded, with the way out."""
    nowhere = f"there is no prompt folder {name!r} here"
    if isinstance(fault, RevisionNotFoundError):
        return PromptError(
            f"the repository {name!r} has no revision {shown(revision)}.",
            hint="Name a branch, tag or commit of the prompt's repository, or leave it out (--prompt-revision).",
        )
    if isinstance(fault, GatedRepoError):
        return PromptError(
            f"the repository {name!r} is gated, and this login has no access.",
            hint=f"Ask for access on its page, then {_LOG_IN}.",
        )
    if isinstance(fault, RepositoryNotFoundError):
        return PromptError(
            f"{nowhere}, and on the hub no repository of that name that this login may see.",
            hint=f"Check the spelling; if it is private, {_LOG_IN}.",
        )
    if isinstance(fault, LocalEntryNotFoundError) and offline:
        which = "" if revision is None else f" of its revision {shown(revision)}"
        return PromptError(
            f"{nowhere}, and no whole copy{which} in the hub's cache; nothing is downloaded offline.",
            hint="Unset HF_HUB_OFFLINE (or local_files_only) to download it, or name a folder.",
        )
    if isinstance(fault, HfHubHTTPError) and fault.response.status_code in (401, 403):
        return PromptError(f"the hub does not give {name!r} to this login: {first_line(fault)}", hint=f"{_LOG_IN}.")
    cause = fault.__cause__ if isinstance(fault, LocalEntryNotFoundError) and fault.__cause__ else fault
    return PromptError(
        f"{nowhere}, and it cannot be downloaded: {first_line(cause).rstrip('.')}.",
        hint="Check the connection, or name a folder.",
    )


def upload_prompt(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    commit_message: str = COMMIT_MESSAGE,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
) -> str:
    """Upload the files of a prompt folder in one commit, whatever else lies beside them; returns its address.

    Arguments as for `PromptOnHub.push_to_hub`.

    Raises:
        PromptError: The hub does not take it.
    """
    api = HfApi(token=token, library_name="ptune")
    try:
        whole_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        return api.upload_folder(
            repo_id=whole_id,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
        )
    except _FAULTS as fault:
        raise _not_taken(repo_id, branch, fault) from fault


def _not_taken(repo_id: str, branch: str | None, fault: Exception) -> PromptError:
    """The error for a prompt that was not uploaded, with the way out."""
    if isinstance(fault, RevisionNotFoundError):
        return PromptError(
            f"the repository {repo_id!r} has no branch {shown(branch)}.",
            hint=f"Make it first: huggingface_hub.create_branch({repo_id!r}, branch={branch!r}).",
        )
    cause = f"cannot upload the prompt to {repo_id!r}: {first_line(fault)}"
    if isinstance(fault, OfflineModeIsEnabled):
        return PromptError(cause, hint="Unset HF_HUB_OFFLINE.")
    if isinstance(fault, HfHubHTTPError) and fault.response.status_code in (401, 403, 404):
        return PromptError(cause, hint=f"It takes a token that may write there: {_LOG_IN}.")
    return PromptError(cause, hint="Check the name and the connection.")
