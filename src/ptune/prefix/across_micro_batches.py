"""One run of the prompt for all micro-batches of an optimizer step.

With gradient accumulation the prompt encoder's parameters stay what they are from the first micro-batch of a step to
the last, and so do the virtual tokens and their keys and values. Here they are computed once, with their graph. Every
micro-batch but the last works on detached leaves, whose gradients are summed; the last one works on the tensors
themselves, and on its backward the sums are added, so that one backward through prefix and encoder carries the gradient
of the whole step. To whoever watches the parameters (DistributedDataParallel does) it is the one ordinary backward of
the last micro-batch. A prompt that only earlier micro-batches name gets its gradient in a backward of its own, behind
the last one's. Gradients are summed in float32 at least, whatever the model's dtype.

It is the mathematics of separate runs, except for dropout: prefix and encoder draw one mask a step, as for one big
batch, where separate runs would draw one a micro-batch.

Shapes: `P` virtual tokens, `D` token dimension.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ptune.encoders import PromptEncoder
from ptune.internals import writes_to
from ptune.prefix.keys_values import Prefix


class SharedPrefix:
    """The prompts of an optimizer step, shared inside `scope` by the thread that opened it.

    Outside a scope, in other threads (an answer being generated meanwhile), without gradients and for a prompt that
    does not train, nothing is shared: each call computes what it is asked for. What was computed is dropped with the
    step's last scope, on any error inside one, and when the encoder's parameters have changed since.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._owner: int | None = None
        self._last = True

    @contextmanager
    def scope(self, *, last: bool) -> Iterator[None]:
        """Around forward and backward of one micro-batch.

        Args:
            last: Whether it is the last one of its optimizer step.
        """
        self._owner, self._last = threading.get_ident(), last
        try:
            yield
        except BaseException:
            self.reset()
            raise
        finally:
            self._owner = None
        if last:
            entries = tuple(self._entries.values())
            self.reset()
            for entry in entries:
                entry.finish()
        for entry in self._entries.values():
            entry.collect()

    def reset(self) -> None:
        """Forget what was computed, and the gradients summed so far."""
        self._entries.clear()

    @property
    def active(self) -> bool:
        """Whether this thread is inside a scope, and takes gradients."""
        return self._owner == threading.get_ident() and torch.is_grad_enabled()

    def vectors(self, name: str, encoder: PromptEncoder, dtype: torch.dtype) -> torch.Tensor:
        """The `(P, D)` virtual tokens of a prompt in a dtype; `settle` before they go through the model themselves."""
        trains = encoder.training and any(parameter.requires_grad for parameter in encoder.parameters())
        if not (self.active and trains):
            return _encoded(encoder, dtype)
        stamp = _stamp(encoder)
        entry = self._entries.get(name)
        if entry is None or entry.stamp != stamp:
            self._entries.pop(name, None)
            vectors = _encoded(encoder, dtype)
            if self._last:
                return vectors
            entry = self._entries[name] = _Entry(encoder, stamp, _Junction([vectors]))
        return entry.vectors.tensors(last=self._last)[0]

    def holds(self, name: str) -> bool:
        """Whether this thread's micro-batch shares a prompt with others."""
        return self.active and name in self._entries

    def prefix(self, name: str, vectors: torch.Tensor, make: Callable[[torch.Tensor], Prefix]) -> Prefix:
        """The keys and values of a prompt.

        Args:
            name: The prompt.
            vectors: What `vectors` gave for it in this forward pass.
            make: Runs the model over virtual tokens.
        """
        if not self.holds(name):
            return make(vectors)
        entry = self._entries[name]
        if entry.prefix is None:
            made = make(entry.vectors.joined[0])
            if self._last:
                return made
            entry.prefix = _Junction([*(part for layer in made.layers for part in layer), made.logits])
        *parts, logits = entry.prefix.tensors(last=self._last)
        return Prefix(layers=tuple(zip(parts[::2], parts[1::2], strict=True)), logits=logits)

    def settle(self) -> None:
        """Hand what earlier micro-batches sent to the keys and values on to the virtual tokens.

        For a last micro-batch that does not go by keys and values itself, as padding may have it in a model with a
        sliding window: its backward would not come through them.
        """
        if self.active and self._last:
            for entry in self._entries.values():
                entry.settle()


@dataclass
class _Entry:
    """One prompt."""

    encoder: PromptEncoder
    stamp: tuple[Any, ...]
    vectors: _Junction
    prefix: _Junction | None = None

    def collect(self) -> None:
        """Sum the gradients of a micro-batch."""
        for junction in (self.vectors, self.prefix):
            if junction is not None:
                junction.collect()

    def settle(self) -> None:
        """Move the prefix's sums to those of the vectors."""
        if self.prefix is None:
            return
        made, sums = self.prefix.made, self.prefix.sums
        reached = [(one, total.to(one.dtype)) for one, total in zip(made, sums, strict=True) if total is not None]
        if reached:
            outputs, totals = zip(*reached, strict=True)
            self.vectors.add(torch.autograd.grad(outputs, self.vectors.joined, totals))
        self.prefix = None

    def finish(self) -> None:
        """Hand all that is left on to the encoder's parameters, unless they have changed since."""
        if self.stamp == _stamp(self.encoder):
            self.settle()
            (made,), (total,) = self.vectors.made, self.vectors.sums
            if total is not None:
                torch.autograd.backward(made, total.to(made.dtype))


class _Junction:
    """Tensors with their graph, and the leaves that stand for them until the last micro-batch.

    Args:
        made: The tensors.
    """

    def __init__(self, made: Sequence[torch.Tensor]) -> None:
        self.made = tuple(made)
        self.sums: list[torch.Tensor | None] = [None] * len(made)
        self.leaves = tuple(one.detach().requires_grad_() for one in made)
        self.joined: tuple[torch.Tensor, ...] = _AddSums.apply(self.sums, *made)  # type: ignore[no-untyped-call]

    def tensors(self, *, last: bool) -> tuple[torch.Tensor, ...]:
        """What a micro-batch works on."""
        return self.joined if last else self.leaves

    def collect(self) -> None:
        """Sum the leaves' gradients, and clear them."""
        self.add([leaf.grad for leaf in self.leaves])
        for leaf in self.leaves:
            leaf.grad = None

    def add(self, grads: Sequence[torch.Tensor | None]) -> None:
        """Add to the sums; None where a micro-batch did not reach a tensor."""
        for index, grad in enumerate(grads):
            self.sums[index] = _plus(self.sums[index], grad)


class _AddSums(torch.autograd.Function):
    """Identity; the backward adds the sums and clears them.

    One function for all tensors: reaching one of them hands on every sum.
    """

    @staticmethod
    def forward(ctx: Any, sums: list[torch.Tensor | None], *made: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.sums = sums
        ctx.dtypes = [one.dtype for one in made]
        ctx.set_materialize_grads(False)
        return tuple(one.view_as(one) for one in made)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        totals = [_plus(total, grad) for total, grad in zip(ctx.sums, grads, strict=True)]
        ctx.sums[:] = [None] * len(grads)
        return None, *(
            None if total is None else total.to(dtype) for total, dtype in zip(totals, ctx.dtypes, strict=True)
        )


def _encoded(encoder: PromptEncoder, dtype: torch.dtype) -> torch.Tensor:
    """The encoder's output in a dtype."""
    vectors: torch.Tensor = encoder()
    return vectors.to(dtype)


def _plus(total: torch.Tensor | None, grad: torch.Tensor | None) -> torch.Tensor | None:
    """The sum of two gradients in float32 at least; None stands for nothing."""
    if grad is None:
        return total
    wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
    return wide if total is None else total + wide


def _stamp(encoder: PromptEncoder) -> tuple[Any, ...]:
    """Which parameters an encoder has, and how often each was written to, as far as torch counts.

    A guard against scopes that never come to a last one; with one, nothing is kept over an optimizer's step.
    """
    return tuple((id(one), writes_to(one), one.requires_grad) for one in encoder.parameters())
