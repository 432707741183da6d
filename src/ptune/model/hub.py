"""Prompts on the hub: a prompt folder is found here or downloaded, and uploaded as it is.

`PromptOnHub` is `huggingface_hub.ModelHubMixin` with a prompt folder in the place of weights and a `config.json`. Up go
the files of a prompt folder, with its own model card; down come files of those names and no others, which then go
through the checks of every prompt folder: a repository is a stranger's.

Two repositories take part, and each has revisions of its own. `revision` is always that of the prompt, the thing that
is named first; the frozen model's is noted in the prompt, and `base_revision` overrides it. So it is with `token`,
`cache_dir`, `local_files_only` and `force_download`: they are about the prompt. The frozen model comes as
`load_model` gets it, with the login and the cache of this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from httpx2 import HTTPError
from huggingface_hub import HfApi, ModelCard, ModelHubMixin, snapshot_download
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
from huggingface_hub.utils._validators import validate_repo_id
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptune.checkpoint.files import holds
from ptune.checkpoint.format import CARD, FILES, PTUNE_CONFIG
from ptune.checkpoint.peft import ADAPTER_CONFIG
from ptune.errors import ConfigError, PromptError, shown
from ptune.model import persistence
from ptune.model.backbone import load_model
from ptune.model.converted import first_line
from ptune.model.stand_in import check_transformers_arguments

COMMIT_MESSAGE = "A soft prompt, by ptune"
_FAULTS = (HTTPError, OSError, ValueError)
"""What huggingface_hub raises when a repository cannot be read or written."""
_NO_METADATA = {
    "config": "the prompt's configuration is saved with it",
    "model_card_kwargs": "the model card is made from the metadata",
    "allow_patterns": "all files of the prompt folder are uploaded, and no others",
    "ignore_patterns": "all files of the prompt folder are uploaded, and no others",
    "delete_patterns": "other files of the repository are left alone",
    "revision": "branch=… names where the commit goes",
}
"""Arguments of the mixin's that have no meaning here; taken for metadata, they would end in `ptune.json`."""
_LOG_IN = "log in with `hf auth login`, or pass token=…"


class PromptOnHub(ModelHubMixin):
    """Saving, loading and sharing a prompt; a model adds `_save_prompt` and `_with_prompt`.

    The mixin's own hooks, `_save_pretrained` and `_from_pretrained`, know one prompt a model, and no metadata.
    """

    # The mixin's `__new__` notes what `__init__` is called with, to write it as config.json: the prompt configuration,
    # before there is an `nn.Module` to hold it, and nothing of the prompts that are added later. With this set, it
    # leaves the instance alone; the configuration of a prompt is saved with the prompt.
    _hub_mixin_config: Any = {}  # noqa: RUF012  # the mixin's own name, never written to

    def save_pretrained(  # type: ignore[override]  # the folder, where the mixin gives the commit's address
        self,
        directory: str | Path,
        *,
        prompt_name: str | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        private: bool | None = None,
        commit_message: str = COMMIT_MESSAGE,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        is_main_process: bool | None = None,
        **metadata: Any,
    ) -> Path:
        """Write a prompt as a folder that ptune and PEFT read; see `ptune.checkpoint.format`.

        Args:
            directory: The folder; made if it is not there.
            prompt_name: Which prompt; the active one by default.
            push_to_hub: Upload the folder too.
            repo_id: The repository to upload to; by default the folder's name, among the user's own.
            private: As for `push_to_hub`, and so are `commit_message`, `token`, `branch` and `create_pr`.
            commit_message: See there.
            token: See there.
            branch: See there.
            create_pr: See there.
            is_main_process: As `transformers.Trainer` says it: False writes nothing. Where it is said, the state that
                Trainer resumes from (`model.safetensors`) is written too. Its other arguments have no meaning here.
            metadata: Plain values for `ptune.json`: template, metrics, what it was trained on.

        Raises:
            OutputError: The folder cannot be written.
            PromptError: The hub does not take it.
        """
        check_transformers_arguments(metadata)
        _check_metadata(metadata)
        folder = Path(directory)
        if is_main_process is False:
            return folder
        self._save_prompt(folder, prompt_name, metadata)
        if is_main_process:
            self._save_state(folder)
        if push_to_hub:
            upload_prompt(
                folder,
                repo_id or folder.absolute().name,
                private=private,
                commit_message=commit_message,
                token=token,
                branch=branch,
                create_pr=create_pr,
            )
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        prompt_name: str | None = None,
        private: bool | None = None,
        commit_message: str = COMMIT_MESSAGE,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        **metadata: Any,
    ) -> str:
        """Upload a prompt in one commit: the files of a prompt folder, and nothing else.

        A prompt that was loaded to answer (`trainable=False`) is uploaded as its vectors; load it with
        `trainable=True` to upload its prompt encoder as well.

        Args:
            repo_id: `user/name`; made if it is not there.
            prompt_name: Which prompt; the active one by default.
            private: Whether a new repository is seen by its owner alone. None: as the owner's settings say.
            commit_message: What the commit says.
            token: By default that of `hf auth login` or `$HF_TOKEN`.
            branch: A branch that is there; main by default.
            create_pr: Open a pull request instead of committing.
            metadata: As for `save_pretrained`. A loaded prompt keeps its own.

        Returns:
            The address of the commit.

        Raises:
            PromptError: The hub does not take it.
        """
        _check_metadata(metadata)
        with TemporaryDirectory() as place:
            folder = Path(place) / "prompt"
            self._save_prompt(folder, prompt_name, metadata)
            return upload_prompt(
                folder,
                repo_id,
                private=private,
                commit_message=commit_message,
                token=token,
                branch=branch,
                create_pr=create_pr,
            )

    def generate_model_card(self, *_: Any, **metadata: Any) -> ModelCard:
        """The model card that is saved with the active prompt; metadata as for `save_pretrained`."""
        with TemporaryDirectory() as place:
            self._save_prompt(Path(place), None, metadata)
            card: ModelCard = ModelCard.load(Path(place) / CARD)
            return card

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the frozen model may stand second
        cls,
        directory: str | Path,
        base: PreTrainedModel | None = None,
        *,
        trainable: bool = False,
        force: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        base_revision: str | None = None,
        prompt_name: str | None = None,
        self_check: bool = True,
        **load: Any,
    ) -> Self:
        """A frozen model with a saved prompt.

        Args:
            directory: The prompt folder, or the hub id of one; see `prompt_folder`.
            base: The frozen model; loaded by the name in the folder when None.
            trainable: Load the prompt encoder to train on, where the folder has it.
            force: Accept a base model or a tokenizer whose fingerprint differs.
            tokenizer: The tokenizer that is used with it; compared with the one the prompt was trained with.
            revision: Branch, tag or commit of the prompt's repository on the hub.
            token: For a private prompt; by default that of `hf auth login` or `$HF_TOKEN`.
            cache_dir: Where downloaded prompts are kept, in place of the hub's cache.
            local_files_only: Take the prompt from the cache, and download nothing of it.
            force_download: Download the prompt again.
            base_revision: Branch, tag or commit of the frozen model; by default the one that the folder notes.
            prompt_name: What to call the prompt.
            self_check: As for `PTunedModel`.
            load: Passed to `load_model` (`dtype`, `device`, `trust_remote_code`, …).

        Raises:
            PromptError: No such prompt, here or on the hub; or it is damaged, or made for another model or tokenizer.
            ModelError: The frozen model cannot be loaded.
        """
        folder = prompt_folder(
            directory,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        if tokenizer is not None:  # before the model: loading that takes longer
            persistence.check_prompt_tokenizer(folder, tokenizer, force=force)
        if base is None:
            name = persistence.base_name(folder)
            base = load_model(name, revision=base_revision or persistence.base_revision(folder), **load)
        elif base_revision is not None or load:
            given = ", ".join(["base_revision"] * (base_revision is not None) + sorted(load))
            raise ConfigError(f"{given}: for loading the frozen model, which is given.", hint="Give one or the other.")
        options: dict[str, Any] = {"trainable": trainable, "force": force}
        return cls._with_prompt(base, folder, self_check=self_check, name=prompt_name, **options)

    def _save_prompt(self, folder: Path, prompt_name: str | None, metadata: Mapping[str, Any]) -> None:
        """Write the folder of a prompt, by default of the active one."""
        raise NotImplementedError

    def _save_state(self, folder: Path) -> None:
        """Write what a plain `transformers.Trainer` resumes from."""
        raise NotImplementedError

    @classmethod
    def _with_prompt(cls, base: PreTrainedModel, folder: Path, *, self_check: bool, **options: Any) -> Self:
        """The model with the prompt of a folder, ready to train or to answer."""
        raise NotImplementedError


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    for name in metadata:
        if name in _NO_METADATA:
            raise ConfigError(
                f"{name}={shown(metadata[name])} is no metadata.", hint=f"Leave it out: {_NO_METADATA[name]}."
            )


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
    try:
        found = snapshot_download(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            allow_patterns=list(FILES),
        )
    except _FAULTS as fault:
        raise _not_found(name, revision, fault, offline=local_files_only or is_offline_mode()) from fault
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
        f"{nowhere}, and it cannot be downloaded: {first_line(cause)}", hint="Check the connection, or name a folder."
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
