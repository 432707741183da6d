"""A model whose weights stay in their files: each parameter is a memory map, read only where it is looked at.

Enough to tell the model from others (`ptune.frozen.fingerprint` looks at some numbers of each parameter), to embed
texts, and to check prompts against; it is not made to be run.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from ptune.errors import ModelError
from ptune.loading.load import load_config, pretrained_source
from ptune.loading.skeleton import skeleton
from ptune.loading.weight_files import stored_key, weight_file, weight_files


def mapped_model(name: str, *, trust_remote_code: bool = False, revision: str | None = None) -> PreTrainedModel:
    """A frozen model with memory-mapped parameters, in the dtypes in which they are stored.

    Args:
        name: A folder or a hub id, with safetensors.
        trust_remote_code: True runs code from the model's repository.
        revision: Branch, tag or commit on the hub.

    Raises:
        ModelError: The model is not there, has no safetensors, or they hold other tensors than the model's parameters.
    """
    base = skeleton(load_config(name, trust_remote_code=trust_remote_code, revision=revision))
    origin = pretrained_source(name)
    files = weight_files(origin, revision)
    if files is None:
        raise ModelError(f"{name} has no safetensors to read from.", hint="Save it in that format first.")
    paths = {file: weight_file(origin, file, revision) for file in set(files.values())}
    called: dict[int, list[str]] = defaultdict(list)  # tied parameters have several names and may be stored under any
    parameters = list(base.named_parameters(remove_duplicate=False))
    for key, parameter in parameters:
        called[id(parameter)].append(key)
    mapped: dict[int, nn.Parameter] = {}
    for key, parameter in parameters:
        if id(parameter) not in mapped:
            stored = stored_key(list(files), called[id(parameter)])
            path = None if stored is None else paths[files[stored]]
            mapped[id(parameter)] = _mapped(name, key, parameter.shape, stored, path)
        place, _, own = key.rpartition(".")
        setattr(base.get_submodule(place), own, mapped[id(parameter)])
    return base


def _mapped(name: str, key: str, shape: torch.Size, stored: str | None, path: str | None) -> nn.Parameter:
    if stored is None or path is None:
        raise ModelError(
            f"the files of {name} have no tensor {key!r}: they are converted when the model is loaded.",
            hint="Export the prompts as vocabulary (ptune export --to model), which needs no weights here.",
        )
    with safe_open(path, framework="pt") as file:
        tensor = file.get_tensor(stored)
    if tensor.shape != shape:
        raise ModelError(f"the tensor {stored!r} of {name} has shape {tuple(tensor.shape)}, not {tuple(shape)}.")
    return nn.Parameter(tensor, requires_grad=False)
