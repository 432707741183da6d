"""Where the tensors of a model lie among its safetensors files, without reading any of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils.hub import cached_file

from ptune.errors import ModelError, first_line
from ptune.loading.gguf import LOAD_FAULTS

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(origin: str, revision: str | None, *, local: bool = False) -> dict[str, str] | None:
    """Key of each tensor → name of its file; None where the model has no safetensors.

    Args:
        origin: A folder or a hub id, as `pretrained_source` gives it.
        revision: Branch, tag or commit on the hub.
        local: Take what lies on this machine, and download nothing.

    Raises:
        ModelError: A file is damaged.
    """
    try:
        whole = weight_file(origin, WHOLE, revision, local=local)
        if whole is not None:
            with safe_open(whole, framework="pt") as stored:
                return dict.fromkeys(stored.keys(), WHOLE)
        index = weight_file(origin, INDEX, revision, local=local)
        if index is None:
            return None
        found: dict[str, str] = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
    except (*LOAD_FAULTS, SafetensorError) as fault:
        raise ModelError(f"cannot read the weights of {origin}: {first_line(fault)}") from fault
    for name in set(found.values()):
        if Path(name).name != name:
            raise ModelError(f"{origin}: {INDEX} names the file {name!r}, which lies elsewhere.")
    return found


def weight_file(origin: str, name: str, revision: str | None, *, local: bool = False) -> str | None:
    """The path of one of a model's files, downloaded where it must be; None where there is none.

    Arguments and errors as for `weight_files`.
    """
    options: dict[str, Any] = {
        "revision": revision,
        "local_files_only": local,
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    try:
        found: str | None = cached_file(origin, name, **options)
    except (*LOAD_FAULTS, SafetensorError) as fault:
        raise ModelError(f"cannot read {name} of {origin}: {first_line(fault)}") from fault
    return found


def stored_key(keys: Sequence[str], names: Sequence[str]) -> str | None:
    """The stored key of the parameter that has these names; checkpoints may leave out or add the first part."""
    for name in names:
        for key in keys:
            if key == name or name.endswith(f".{key}") or key.endswith(f".{name}"):
                return key
    return None
