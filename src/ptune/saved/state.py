"""Nested plain values with tensors in them, as one safetensors file: the state of an optimizer or of a run.

Tensors are the file's tensors, and everything else is JSON in its header, so that nothing has to be unpickled, and
every number comes back to the last bit. Keys of tables may be anything that is a value.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from ptune.errors import OutputError, PromptError, one_line, shown

_STRUCTURE = "structure"
_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64}
"""What not every reader of safetensors knows."""
_ARRAYS = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float32", "float64")
"""The arrays that are read again; numpy takes a text of any kind for a dtype, and parses it."""
_OVERFLOWS = (OverflowError, MemoryError, RecursionError)


def state_bytes(value: Any) -> bytes:
    """The content of a file that `state_of` reads.

    Args:
        value: None, booleans, numbers, text, tensors, numpy arrays and numbers; lists, tuples and tables of them.

    Raises:
        OutputError: Something else is among them.
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = json.dumps(_described(value, tensors))
    return save_safetensors(tensors, metadata={_STRUCTURE: structure})


def _described(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """A value as JSON; the tensors in it are put into `tensors`, and named."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and str(value.dtype) in _ARRAYS:
        return {"array": str(value.dtype), "values": value.tolist()}
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        plain = value.detach().to(device="cpu", dtype=_WIDER.get(value.dtype, value.dtype))
        tensors[name] = plain.clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"table": [[_described(key, tensors), _described(one, tensors)] for key, one in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_described(one, tensors) for one in value]}
    raise OutputError(
        f"a {type(value).__name__} cannot be kept in a checkpoint.",
        hint="Use an optimizer whose state is numbers and tensors.",
    )


def state_of(content: bytes, place: str) -> Any:
    """The value that `state_bytes` wrote.

    Args:
        content: The file.
        place: Its name, for errors.

    Raises:
        PromptError: It is damaged, or no such file.
    """
    try:
        tensors = load_safetensors(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        return _restored(json.loads(header["__metadata__"][_STRUCTURE]), tensors)
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, *_OVERFLOWS) as error:
        raise PromptError(
            f"{place} is no state of a training run: {type(error).__name__}: {one_line(error)}.",
            hint="It was changed or cut; go on from another checkpoint.",
        ) from error


def _array(values: Any, dtype: str) -> np.ndarray[Any, Any]:
    """An array of these values. Integers that do not fit are an error: numpy before 2 would let them wrap around."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.array(values, dtype=dtype)
        except DeprecationWarning as warning:
            raise ValueError(str(warning).splitlines()[0]) from warning


def _restored(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "array" in value:
        if value["array"] not in _ARRAYS:
            raise ValueError(f"an array of {shown(value['array'])}")
        return _array(value["values"], value["array"])
    if "table" in value:
        return {_restored(key, tensors): _restored(one, tensors) for key, one in value["table"]}
    if "tuple" in value:
        return tuple(_restored(one, tensors) for one in value["tuple"])
    return [_restored(one, tensors) for one in value["list"]]
