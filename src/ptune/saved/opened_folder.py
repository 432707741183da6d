"""A prompt folder that has been opened: what it says of its prompt, read and checked once.

That is `ptune.json`, or the configuration of an adapter that PEFT wrote. No tensor is touched, and nothing that the
file says leads to another file.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ptune.config import TaskType
from ptune.deep_config import CONFIG_CLASSES, DeepPromptConfig
from ptune.errors import PromptError, shown
from ptune.frozen.fingerprint import tokenizer_fingerprint
from ptune.saved.details import check_config, check_details
from ptune.saved.files import holds, read_json, shapes_in
from ptune.saved.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFT_HEAD, not_a_soft_prompt, plain_values

FORMAT_VERSION = 2
PTUNE_CONFIG = "ptune.json"


@dataclass(frozen=True)
class OpenedFolder:
    """A prompt folder and what it says of its prompt; `open_folder` makes one."""

    path: Path
    details: Mapping[str, Any]
    """`ptune.json` as today's format has it; of PEFT's folders, the same keys as far as they say."""

    @property
    def by_ptune(self) -> bool:
        """Whether ptune wrote it; else PEFT did."""
        return "format_version" in self.details

    @property
    def is_deep(self) -> bool:
        """Whether its prompt is keys and values of every layer."""
        kinds = [one.__name__ for one in CONFIG_CLASSES.values() if issubclass(one, DeepPromptConfig)]
        return self.details.get("config_class") in kinds

    def base_name(self) -> str:
        """The name of the frozen model that the prompt belongs to.

        Raises:
            PromptError: The folder does not say, or says a path that leads upwards.
        """
        name = self.details["config"].get("base_model_name_or_path")
        if not isinstance(name, str) or not name:
            raise PromptError(
                f"{self.path} does not name its base model.", hint="Load the model yourself, or pass --model."
            )
        if ".." in Path(name).parts or not name.isprintable():
            raise PromptError(
                f"{self.path} names the base model {name!r}, a path that is not followed.",
                hint="If you know the model, name it yourself: --model, or base=….",
            )
        return name

    @property
    def task(self) -> TaskType:
        """What its frozen model is for."""
        return task_of_config(self.details["config"])

    def check_task(self, tasks: Collection[TaskType], other: str) -> None:
        """Raise `PromptError` for a prompt for another task than these, with the class that takes it."""
        if self.task not in tasks:
            raise PromptError(
                f"{self.path} holds a prompt for {self.task.value}.", hint=f"Load it with {other}.from_pretrained."
            )

    def labels(self) -> tuple[str, ...] | int | None:
        """The labels of a classifier's head in the order of its logits, or how many there are; None without one."""
        noted = self.details.get("labels")
        if noted:
            return tuple(noted)
        if self.by_ptune or self.task not in (TaskType.SEQ_CLS, TaskType.TOKEN_CLS):
            return None
        shapes = [one for name, one in shapes_in(self.path, ADAPTER_WEIGHTS).items() if name.startswith(PEFT_HEAD)]
        # The last layer of a head is the narrowest: as wide as there are labels.
        return min((shape[0] for shape in shapes), default=None)

    def base_revision(self) -> str | None:
        """The revision of the frozen model, where the folder notes one."""
        noted = self.details["config"].get("revision")
        return noted if isinstance(noted, str) and noted else None

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, *, force: bool) -> None:
        """Raise `PromptError` when the prompt was trained with another one. A folder that does not say takes any."""
        noted = self.details.get("tokenizer_fingerprint")
        if noted is not None and not force and noted != tokenizer_fingerprint(tokenizer):
            raise PromptError(
                f"{self.path} was trained with another tokenizer than that of {tokenizer.name_or_path}.",
                hint="Use the model it was trained on, with its own tokenizer, or --force (force=True).",
            )


def open_folder(folder: Path | OpenedFolder) -> OpenedFolder:
    """Read what a prompt folder, or a PEFT adapter's, says of its prompt; one that is open already is given back.

    Raises:
        PromptError: There is no such folder, or the file is damaged.
    """
    return folder if isinstance(folder, OpenedFolder) else OpenedFolder(folder, _read_details(folder))


def _read_details(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise PromptError(
            f"there is no prompt folder {folder}.", hint="Give the folder that `ptune train --output` wrote."
        )
    # A link or a pipe of that name is refused by name: without it the folder would pass for PEFT's, with no checksums.
    if holds(folder, PTUNE_CONFIG) or os.path.lexists(folder / PTUNE_CONFIG):
        return _upgraded(folder, read_json(folder, PTUNE_CONFIG))
    if not holds(folder, ADAPTER_CONFIG):
        # PEFT saves an adapter of another name than "default" into a folder of that name.
        inside = sorted(path.parent.name for path in folder.glob(f"*/{ADAPTER_CONFIG}"))
        raise PromptError(
            f"{folder} is not a prompt folder: it has neither {PTUNE_CONFIG} nor {ADAPTER_CONFIG}.",
            hint=f"Name the folder {shown(inside[0])} in it."
            if inside
            else "Give the folder that `ptune train --output` wrote.",
        )
    adapter = read_json(folder, ADAPTER_CONFIG)
    check_config(folder / ADAPTER_CONFIG, adapter)
    kind = adapter.get("peft_type")
    if not isinstance(kind, str) or kind not in CONFIG_CLASSES:
        raise not_a_soft_prompt(folder, kind)
    return {"config_class": CONFIG_CLASSES[kind].__name__, "config": plain_values(adapter)}


def _upgraded(folder: Path, details: dict[str, Any]) -> dict[str, Any]:
    """`ptune.json` as today's format has it.

    Format 1 has checksums of the tensors alone; what is not listed is not compared.
    """
    version = details.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise PromptError(
            f"{folder / PTUNE_CONFIG} has format version {shown(version)}; this ptune reads up to {FORMAT_VERSION}.",
            hint="Upgrade ptune.",
        )
    check_config(folder / PTUNE_CONFIG, details.get("config"))
    check_details(folder / PTUNE_CONFIG, details)
    return {**details, "format_version": FORMAT_VERSION}


def task_of_config(config: Mapping[str, Any]) -> TaskType:
    """The task that a configuration notes; that of a causal language model where it notes none that is known."""
    noted = config.get("task_type")
    return TaskType(noted) if noted in [one.value for one in TaskType] else TaskType.CAUSAL_LM
