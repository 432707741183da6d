"""Where a frozen model goes, in which dtype, and with which attention: what was asked for, and whether it can be."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ptune.choices import device_map_fault
from ptune.errors import ConfigError, shown, unknown
from ptune.internals import multiplies_bfloat16

AUTO_DTYPE = "PTUNE_AUTO_DTYPE"
"""The environment variable that says what "auto" is on this machine."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_of_name(device: str | None) -> torch.device:
    """The device by name; by default this process's own GPU.

    Raises:
        ConfigError: It is unknown, or not there.
    """
    if device is None and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if device is None:
        return torch.device("cpu")
    try:
        place = torch.device(device)
    except RuntimeError as fault:
        raise ConfigError(f"unknown device {device!r}.", hint="Known: cpu, cuda, cuda:0, cuda:1, …, mps.") from fault
    _check_there(place)
    return place


def _check_there(place: torch.device) -> None:
    """Raise `ConfigError` for a CUDA device that this machine does not have."""
    if place.type != "cuda":
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (place.index or 0) >= count:
        found = f"{count} CUDA GPUs, the last being cuda:{count - 1}" if count else "no CUDA GPU"
        raise ConfigError(f"device {str(place)!r} is not there: torch finds {found}.", hint="Use one of those, or cpu.")


def check_device_map(device_map: str | Mapping[str, str | int] | None) -> None:
    """Raise `ConfigError` for a device map of no known form, or of a device that is not there."""
    if device_map is None:
        return
    if fault := device_map_fault(device_map):
        raise ConfigError(f"{fault}.", hint="In Python and in a recipe it can be a table of the model's parts too.")
    for place in device_map.values() if isinstance(device_map, Mapping) else (device_map,):
        if isinstance(place, int) or place.startswith("cuda"):
            _check_there(torch.device("cuda", place) if isinstance(place, int) else torch.device(place))


def check_mapped(device_map: str | Mapping[str, str | int] | None, model: PreTrainedModel) -> None:
    """Raise `ConfigError` for a device map that names what is no part of the model; transformers would not say."""
    parts = {name for name, _ in (*model.named_modules(), *model.named_parameters())}
    for name in device_map if isinstance(device_map, Mapping) else ():
        if name not in parts:
            raise unknown("part of the model in device_map", name, sorted(parts - {""}))


def check_attention(name: str | None) -> None:
    """Raise `ConfigError` for an attention that transformers does not know; kernels of its hub have a `/`."""
    known = ["eager", *(one for one in ALL_ATTENTION_FUNCTIONS.valid_keys() if not one.startswith("ptune"))]
    if name is not None and name not in known and "/" not in name:
        raise unknown("attn_implementation", name, known)


def chosen_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype by name; "auto" depends on the device, a GPU that is not here being one that has bfloat16.

    Raises:
        ConfigError: It is unknown, or the environment variable `PTUNE_AUTO_DTYPE` names none.
    """
    if dtype == "auto":
        dtype = os.environ.get(AUTO_DTYPE) or ("bfloat16" if _has_bfloat16(device) else "float32")
        if dtype not in DTYPES:
            raise ConfigError(f"{AUTO_DTYPE}={shown(dtype)} is no dtype.", hint=f"Use {', '.join(DTYPES)}.")
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, ["auto", *DTYPES])
    return DTYPES[dtype]


def _has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 itself: older cards and processors emulate it, several times slower."""
    if device.type == "cpu":
        return cpu_multiplies_bfloat16()
    if device.type != "cuda" or not torch.cuda.is_available():
        return device.type == "cuda"
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def cpu_multiplies_bfloat16() -> bool:
    """Whether this machine's CPU has instructions for bfloat16 products, and PyTorch the kernels that use them."""
    return torch.backends.mkldnn.is_available() and multiplies_bfloat16()  # type: ignore[no-untyped-call]
