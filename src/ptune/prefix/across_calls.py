"""Prefixes kept from one call to the next, for as long as they are what the model would compute.

A prefix depends on the prompt encoder and on the frozen model, and on nothing in the text. So an answer need not run
the virtual tokens again: `PrefixCache` keeps the keys and values of each prompt, and before every use compares a stamp
of all they were computed from. A stale prefix would give wrong answers without a word, so the stamp relies on nobody
to say that something changed.

- The encoder: version and address of every parameter and buffer, and a sum over all their bits. Versions alone would
  not do: torch's fused optimizers (`adamw_torch_fused` is the default of `TrainingArguments`), edits through `.data`
  and kernels outside torch write without counting. The sum is one pass over the encoder, 0.1 ms for a small MLP.
- The frozen model: version and address of every parameter and buffer, its forward hooks, autocast, and the value of
  one number in each. A pass over all its weights would cost as much as it saves; one number sees a merged adapter, a
  training step or a rescaling, since those change a weight nearly everywhere.

What this does not see is a write through `.data` into other parts of a weight of the frozen model, and a switch in its
Python code (an adapter turned on or off): call `clear` then.

Nothing is kept where the prefix is drawn each time (dropout in training) or has gradients. The prompts used
longest ago are dropped beyond a number of bytes. Several threads may ask at once; one of them computes each prompt.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ptune.encoders import PromptEncoder
from ptune.internals import forward_hooks, writes_to
from ptune.prefix.keys_values import Prefix

LIMIT_BYTES = 256 * 2**20
"""Some 50 prompts of 100 virtual tokens of a model of 135M parameters, or 5 of one of 7B."""

Stamp = tuple[Any, ...]


@dataclass(eq=False)
class _Entry:
    # Held while the prefix is computed; a hook on the model may generate in turn.
    lock: threading.RLock = field(default_factory=threading.RLock)
    stamp: Stamp | None = None
    prefix: Prefix | None = None


class PrefixCache:
    """The prefixes of a model's prompts, by name.

    Args:
        limit_bytes: Beyond it the prompts used longest ago are dropped; the last one used always stays.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copied or unpickled model starts with an empty one: locks cannot be copied, and the weights are others.
        return PrefixCache, (self.limit_bytes,)

    @property
    def names(self) -> list[str]:
        """The prompts that are kept, the one used longest ago first."""
        with self._lock:
            return [name for name, entry in self._entries.items() if entry.prefix is not None]

    @property
    def held_bytes(self) -> int:
        """Memory that the kept prefixes take."""
        with self._lock:
            return sum(_size(entry) for entry in self._entries.values())

    def prefix(self, name: str, base: PreTrainedModel, encoder: PromptEncoder, make: Callable[[], Prefix]) -> Prefix:
        """The prefix of a prompt: the kept one, or what `make` gives where that one is stale or there is none.

        Args:
            name: The prompt.
            base: The frozen model.
            encoder: The prompt's encoder.
            make: Computes the prefix.
        """
        if torch.is_grad_enabled() or base.training or (encoder.training and encoder.dropout > 0):
            return make()
        stamp = (*model_stamp(base), *encoder_stamp(encoder))
        with self._lock:
            entry = self._entries.setdefault(name, _Entry())
            self._entries.move_to_end(name)
        with entry.lock:
            prefix = entry.prefix
            if prefix is None or entry.stamp != stamp:
                entry.prefix = None  # its memory is free before the new one takes any
                # Tensors made in inference mode would be refused wherever a graph is recorded later.
                with torch.inference_mode(mode=False), torch.no_grad():
                    prefix = make()
                entry.prefix, entry.stamp = prefix, stamp
                self._drop_oldest()
        return prefix

    def forget(self, name: str) -> None:
        """Drop one prompt's prefix, if there is one."""
        with self._lock:
            self._entries.pop(name, None)

    def clear(self) -> None:
        """Drop all prefixes."""
        with self._lock:
            self._entries.clear()

    def _drop_oldest(self) -> None:
        with self._lock:
            held = sum(_size(entry) for entry in self._entries.values())
            while held > self.limit_bytes and len(self._entries) > 1:
                held -= _size(self._entries.popitem(last=False)[1])


def _size(entry: _Entry) -> int:
    prefix = entry.prefix
    return 0 if prefix is None else prefix.logits.nbytes + sum(part.nbytes for part in chain(*prefix.layers))


def encoder_stamp(encoder: PromptEncoder) -> Stamp:
    """What tells one state of a prompt encoder from another: all its numbers."""
    tensors = list(chain(encoder.parameters(), encoder.buffers()))
    with torch.no_grad():
        sums = torch.stack([_bit_sum(tensor).to(tensors[0].device) for tensor in tensors]).tolist()
    return weakref.ref(encoder), *map(_place, tensors), *sums


def model_stamp(base: PreTrainedModel) -> Stamp:
    """What tells one state of a frozen model from another, in a millisecond whatever its size."""
    kind = base.device.type
    tensors = list(_tensors(base))
    hooks = [key for module in base.modules() for key in forward_hooks(module)]
    return (
        weakref.ref(base),
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind),
        tuple(hooks),
        *map(_place, tensors),
        *_probes(tensors),
    )


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    return chain(module.parameters(), module.buffers())


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Where the numbers are, of what kind, and how many writes torch has counted (inference tensors count none)."""
    address = tensor.data_ptr() if type(tensor) in _PLAIN else id(tensor)
    return address, tensor.dtype, tensor.shape, writes_to(tensor)


# Quantized and distributed tensors are classes of their own, with neither an address nor a layout to read.
_PLAIN = (torch.Tensor, nn.Parameter)


def _bit_sum(tensor: torch.Tensor) -> torch.Tensor:
    """A sum over the bits of all numbers that changes when any of them does, or when rows change places."""
    rows = tensor.detach().reshape(tensor.shape[0], -1).contiguous() if tensor.dim() > 1 else tensor.reshape(-1, 1)
    width = rows.shape[1] * rows.itemsize
    whole = next(kind for kind in (torch.int64, torch.int32, torch.int16, torch.int8) if width % kind.itemsize == 0)
    sums = rows.view(whole).sum(dim=1)
    # Odd factors can be divided by modulo 2**64, so no change of a row is multiplied away.
    return (sums * torch.arange(1, 2 * len(sums), 2, device=sums.device)).sum()


def _probes(tensors: list[torch.Tensor]) -> Iterator[float]:
    """The number in the middle of each tensor; one transfer for each device and dtype."""
    alike: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    with torch.no_grad():
        for tensor in tensors:
            if type(tensor) in _PLAIN and tensor.numel() and not tensor.is_meta:
                middle = tensor.numel() // 2 if tensor.is_contiguous() else 0
                one = torch.as_strided(tensor, (1,), (1,), tensor.storage_offset() + middle)
                alike.setdefault((tensor.device, tensor.dtype), []).append(one)
        for group in alike.values():
            yield from torch.cat(group).tolist()
