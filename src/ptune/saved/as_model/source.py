"""The files of the model that soft prompts are put into."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ptune.errors import ModelError
from ptune.loading.load import load_config, pretrained_source
from ptune.loading.weight_files import weight_file, weight_files
from ptune.saved.as_model.tensors import Streamed, stored_tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelSource:
    """The model's files."""

    origin: str
    revision: str | None
    raw: dict[str, Any]
    """config.json as it stands there."""
    files: dict[str, str]
    """Key of each tensor → path of its file."""
    dtype: torch.dtype | None
    """What its numbers are cast to; None: as they are."""
    loaded_as: str
    """The dtype in which nothing is cast when it is loaded."""

    @classmethod
    def of(cls, name: str, revision: str | None, dtype: torch.dtype | None) -> ModelSource:
        """Find them.

        Raises:
            ModelError: There are none that can be copied, or the model is of a kind that cannot be exported.
        """
        config = load_config(name, revision=revision)
        if config.get_text_config(decoder=True) is not config:
            raise ModelError(
                f"{name} ({config.model_type}) has more than a text model.", hint="Export from its text model alone."
            )
        if getattr(config, "auto_map", None):
            raise ModelError(f"{name} needs code of its own, which is not copied.", hint="Answer with ptune.")
        origin = pretrained_source(name)
        files = weight_files(origin, revision)
        if files is None:
            raise ModelError(
                f"{name} has no safetensors, from which the export copies.",
                hint="Write it once more: load_model(name).save_pretrained(folder) and "
                "load_tokenizer(name).save_pretrained(folder); then --model folder.",
            )
        paths = {one: str(weight_file(origin, one, revision)) for one in set(files.values())}
        raw = json.loads(Path(str(weight_file(origin, "config.json", revision))).read_text(encoding="utf-8"))
        stored = str(config.dtype).removeprefix("torch.")
        return cls(
            origin,
            revision,
            raw,
            files={key: paths[file] for key, file in files.items()},
            dtype=dtype,
            loaded_as=stored if stored in DTYPES else "float32",
        )

    def path(self, name: str) -> str | None:
        """The path of one of its files; None where it has none of that name."""
        return weight_file(self.origin, name, self.revision)

    def tensor(self, key: str) -> Streamed:
        """One of its tensors, as it is stored."""
        return stored_tensor(self.files[key], key)
