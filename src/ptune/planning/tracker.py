"""What is alive at every moment of a step: bytes of storages, floating-point operations, and bytes moved.

`LiveBytes` watches every operation under it (PyTorch's dispatch mode), so it sees what autograd keeps for the backward,
what it lets go again, and every temporary, in whatever code makes them. It works on tensors with data and without.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ptune.internals import GROUPED_PRODUCT, SCALAR, packet_of, storage_key

_aten = torch.ops.aten
_device = torch.ops.prim.device.default


@dataclass
class _Storage:
    """A storage's life, in operations."""

    nbytes: int
    logits: bool
    born: int
    died: int | None = None


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's
    """Counts what lives while it is active. What was there before does not count.

    Args:
        vocab_size: Tensors whose last dimension this is are logits.
        supervised: What a search for supervised labels finds: tensors without data cannot say.
    """

    def __init__(self, *, vocab_size: int, supervised: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._vocab_size, self._supervised = vocab_size, supervised
        self._alive: dict[int, _Storage] = {}
        self._before: set[int] = set()
        """Storages that were there before, such as weights: neither they nor views of them are new."""
        self._all: list[_Storage] = []
        self._freed = 0
        self.live: list[int] = [0]
        """Bytes alive after each operation; the first entry stands for the start."""
        self.flops: list[float] = [0.0]
        """Floating-point operations of each operation: products and attention."""
        self.moved: list[int] = [0]
        """Bytes read and written by each operation that is not a product."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _device:  # a question, which tensors without data are asked all the time
            return func(*args, **kwargs)
        if func is _aten.index_put.default and len(args) > 3 and args[3]:
            # Autograd sums the gradient of an index into zeros of its own: in place, unless a mode looks on.
            func = _aten.index_put_.default
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                self._was_there(leaf)
        output = self._known(func, args)
        if output is None:
            output = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        fresh = [tensor for tensor in tensors if self._note(tensor)]
        self.live.append(self.live[-1] + sum(tensor.untyped_storage().nbytes() for tensor in fresh) - self._gone())
        self._count(func, args, kwargs, output, tensors)
        return output

    def _known(self, func: Any, args: Any) -> Any:
        """What an operation gives whose output depends on values."""
        if func is _aten.nonzero.default and _is_fake(args[0]):
            return args[0].new_empty((self._supervised, args[0].dim()), dtype=torch.long)
        if func is _aten.index.Tensor and _is_fake(args[0]) and len(args[1]) == 1 and args[1][0].dtype == torch.bool:
            return args[0].new_empty((self._supervised, *args[0].shape[args[1][0].dim() :]))
        if func is SCALAR and _is_fake(args[0]):
            return 1 if args[0].dtype == torch.bool else self._supervised
        if func is GROUPED_PRODUCT and _is_fake(args[0]) and args[0].dtype != torch.bfloat16:
            return args[0].new_empty(_grouped_shape(*args[:3]))
        return None

    def _was_there(self, tensor: torch.Tensor) -> None:
        """Leave out the storage of an operand that no operation under this one has made."""
        storage = tensor.untyped_storage()
        key = storage_key(storage)
        if key not in self._alive and key not in self._before:
            self._before.add(key)
            weakref.finalize(storage, self._before.discard, key)

    def _note(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor's storage is new; its end will be noticed."""
        storage = tensor.untyped_storage()
        key = storage_key(storage)
        if key in self._alive or key in self._before:
            return False
        logits = tensor.dim() > 1 and tensor.shape[-1] == self._vocab_size and tensor.is_floating_point()
        life = _Storage(storage.nbytes(), logits, born=len(self.live))
        self._alive[key] = life
        self._all.append(life)
        weakref.finalize(storage, self._end, key, life)
        return True

    def _end(self, key: int, life: _Storage) -> None:
        life.died = len(self.live)
        if self._alive.get(key) is life:
            del self._alive[key]
        self._freed += life.nbytes

    def _gone(self) -> int:
        """Bytes let go since it was asked last."""
        freed, self._freed = self._freed, 0
        return freed

    def _count(self, func: Any, args: Any, kwargs: Any, output: Any, outputs: list[torch.Tensor]) -> None:
        packet = packet_of(func)
        flops, moved = 0.0, 0
        if packet in flop_registry:
            flops = float(flop_registry[packet](*args, **kwargs, out_val=output))
        elif "linear" in packet.__name__:
            weight = args[1]
            flops = 2.0 * outputs[0].numel() * weight.shape[-1]
        elif func is GROUPED_PRODUCT:
            flops = 2.0 * args[0].numel() * args[1].shape[-1]
        elif not func.is_view:
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            moved = sum(tensor.numel() * tensor.element_size() for tensor in [*inputs, *outputs])
        self.flops.append(flops)
        self.moved.append(moved)

    def alive_at(self, moment: int) -> Iterator[tuple[int, bool]]:
        """(bytes, whether logits) of the storages alive after an operation."""
        for life in self._all:
            if life.born <= moment and (life.died is None or life.died > moment):
                yield life.nbytes, life.logits


def _grouped_shape(left: torch.Tensor, right: torch.Tensor, ends: torch.Tensor) -> tuple[int, ...]:
    """Of a product of groups, as mixtures of experts have it; without data PyTorch knows it in bfloat16 alone."""
    if left.dim() == 2 and right.dim() == 2:
        return (len(ends), left.shape[0], right.shape[1])
    return (left.shape[-2], right.shape[-1])


def _is_fake(tensor: torch.Tensor) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)
