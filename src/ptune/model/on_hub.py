"""A prompt as `huggingface_hub.ModelHubMixin` has models: saved, loaded and shared by name.

`PromptOnHub` is the mixin with a prompt folder in the place of weights and a `config.json`.

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

from huggingface_hub import ModelCard, ModelHubMixin
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptune.errors import ConfigError, shown
from ptune.loading.load import load_model
from ptune.model.stand_in import check_transformers_arguments
from ptune.saved.format import CARD
from ptune.saved.hub import COMMIT_MESSAGE, prompt_folder, upload_prompt
from ptune.saved.opened_folder import OpenedFolder, open_folder

_NO_METADATA = {
    "config": "the prompt's configuration is saved with it",
    "model_card_kwargs": "the model card is made from the metadata",
    "allow_patterns": "all files of the prompt folder are uploaded, and no others",
    "ignore_patterns": "all files of the prompt folder are uploaded, and no others",
    "delete_patterns": "other files of the repository are left alone",
    "revision": "branch=… names where the commit goes",
}
"""Arguments of the mixin's that have no meaning here; taken for metadata, they would end in `ptune.json`."""


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
        """Write a prompt as a folder that ptune and PEFT read; see `ptune.saved.format`.

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
            is_main_process: As `transformers.Trainer` says it: False writes nothing. Where it is said (or `state_dict`,
                by older versions), the state that Trainer resumes from (`model.safetensors`) is written too. Its other
                arguments have no meaning here.
            metadata: Plain values for `ptune.json`: template, metrics, what it was trained on.

        Raises:
            OutputError: The folder cannot be written.
            PromptError: The hub does not take it.
        """
        by_trainer = is_main_process is not None or "state_dict" in metadata
        check_transformers_arguments(metadata)
        _check_metadata(metadata)
        folder = Path(directory)
        if is_main_process is False:
            return folder
        self._save_prompt(folder, prompt_name, metadata)
        if by_trainer:
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
        opened = open_folder(folder)
        if tokenizer is not None:  # before the model: loading that takes longer
            opened.check_tokenizer(tokenizer, force=force)
        if base is None:
            told, revision = cls._for_task(opened), base_revision or opened.base_revision()
            base = load_model(opened.base_name(), revision=revision, **told, **load)
        elif base_revision is not None or load:
            given = ", ".join(["base_revision"] * (base_revision is not None) + sorted(load))
            raise ConfigError(f"{given}: for loading the frozen model, which is given.", hint="Give one or the other.")
        options: dict[str, Any] = {"trainable": trainable, "force": force}
        return cls._with_prompt(base, opened, self_check=self_check, name=prompt_name, **options)

    @classmethod
    def _for_task(cls, opened: OpenedFolder) -> dict[str, Any]:
        """What `load_model` is told of the task of a prompt.

        Raises:
            PromptError: The prompt is for another task than this class.
        """
        raise NotImplementedError

    def _save_prompt(self, folder: Path, prompt_name: str | None, metadata: Mapping[str, Any]) -> None:
        """Write the folder of a prompt, by default of the active one."""
        raise NotImplementedError

    def _save_state(self, folder: Path) -> None:
        """Write what a plain `transformers.Trainer` resumes from."""
        raise NotImplementedError

    @classmethod
    def _with_prompt(cls, base: PreTrainedModel, opened: OpenedFolder, *, self_check: bool, **options: Any) -> Self:
        """The model with the prompt of a folder, ready to train or to answer."""
        raise NotImplementedError


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    for name in metadata:
        if name in _NO_METADATA:
            raise ConfigError(
                f"{name}={shown(metadata[name])} is no metadata.", hint=f"Leave it out: {_NO_METADATA[name]}."
            )
