"""How a classifier's head learns beside its prompt: at a rate of its own, in steps that suit what it reads.

Hidden states of different texts have most of their length in common: on SmolLM2-135M the mean is four times as long as
what differs between texts. A step of Adam along what is common changes the logits of all texts alike, whatever their
labels. So a layer of the head takes its steps in coordinates in which the common direction is as long as the rest:
with `T = I - (1 - deviation / |mean|) u u'`, `u` the direction of the mean, Adam is given the gradient times `T`, and
its step times `T` is taken. The layer itself stays as it is, and so do its start, its checkpoints and what is saved.

Adam moves a weight by about the rate in each step, and so a logit by the rate times the sum of what the layer reads in
those coordinates, which differs by a factor of thirty between models. By default the rate is the one at which that
is 1. Both are measured on the first rows, behind the prompt as it starts.

Shapes: `N` places that are read, `T` tokens of the longest row, `D` width of what a layer reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import nn

from ptune.config import TaskType
from ptune.frozen.eval_mode import in_eval_mode
from ptune.model.prompted import PromptedModel

_BATCHES, _ROWS = 4, 8
"""Batches that are looked at, and rows of each."""
_READ = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class HeadSteps:
    """How the head of a prompt learns.

    Args:
        rate: Its learning rate, from which a schedule starts.
        common: For each linear layer, by its name in the head: the direction that what it reads has in common `(D,)`,
            and how long that is to count, 1 as it is.
    """

    rate: float
    common: Mapping[str, tuple[torch.Tensor, float]]

    @classmethod
    def measured(
        cls,
        model: PromptedModel,
        rows: Sequence[Any],
        collate: Callable[[list[Any]], Mapping[str, Any]],
        *,
        rate: float | None = None,
    ) -> Self | None:
        """What suits the active prompt's head; None without one.

        Args:
            model: The model with its prompt.
            rows: Tokenized rows; the first few are run.
            collate: Makes a batch of them, with its attention mask.
            rate: A rate that somebody chose.
        """
        head = model.encoder_of(model.active_adapter).head
        layers = {} if head is None else {name: one for name, one in head.named_modules() if isinstance(one, nn.Linear)}
        if not layers:
            return None
        common = {}
        for name, read in _what_is_read(model, layers, rows, collate).items():
            mean = read.mean(dim=0)
            deviation, length = (read - mean).norm(dim=1).mean(), mean.norm().clamp_min(torch.finfo(mean.dtype).tiny)
            common[name] = (mean / length, min(float(deviation / length), 1.0) or 1.0)
        if not rate:  # of the last layer, which makes the logits
            sums = float(_scaled(read, *common[name]).abs().sum(dim=1).mean())
            rate = float(f"{1 / sums:.2g}") if sums > 0 else 1.0
        return cls(rate=rate, common=common)

    def begin(self, optimizer: torch.optim.Optimizer, head: nn.ModuleDict) -> None:
        """Let a head learn so, before the first step.

        Args:
            optimizer: With all parameters that train.
            head: The head; its parameters move into groups of their own.
        """
        own = {id(parameter) for parameter in head.parameters()}
        for group in list(optimizer.param_groups):
            those = [parameter for parameter in group["params"] if id(parameter) in own]
            if not those:
                continue
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
            optimizer.param_groups.append({**group, "params": those, "lr": self.rate})
            if not group["params"]:
                optimizer.param_groups.remove(group)
        for name, (direction, share) in self.common.items():
            weight = head.get_submodule(name).weight
            assert isinstance(weight, nn.Parameter)
            step = _Step(weight, direction, share)
            optimizer.register_step_pre_hook(step.before)
            optimizer.register_step_post_hook(step.after)


class _Step:
    """A step of one layer's weight in coordinates of its own."""

    def __init__(self, weight: nn.Parameter, direction: torch.Tensor, share: float) -> None:
        self._weight, self._share = weight, share
        self._direction = direction.to(weight)
        self._was: torch.Tensor | None = None

    @torch.no_grad()
    def before(self, *_: Any) -> None:
        """The gradient in those coordinates."""
        if self._weight.grad is not None:
            self._was = self._weight.detach().clone()
            self._weight.grad.copy_(_scaled(self._weight.grad, self._direction, self._share))

    @torch.no_grad()
    def after(self, *_: Any) -> None:
        """What the step is in the layer's own."""
        if self._was is not None:
            moved = _scaled(self._weight - self._was, self._direction, self._share)
            self._weight.copy_(self._was + moved)
            self._was = None


def _scaled(rows: torch.Tensor, direction: torch.Tensor, share: float) -> torch.Tensor:
    """Rows `(N, D)` with the part along a direction shortened to a share of it."""
    return rows - (1 - share) * (rows @ direction)[:, None] * direction


@torch.no_grad()
def _what_is_read(
    model: PromptedModel,
    layers: Mapping[str, nn.Module],
    rows: Sequence[Any],
    collate: Callable[[list[Any]], Mapping[str, Any]],
) -> dict[str, torch.Tensor]:
    """What layers of the head read, `(N, D)`, in the order in which they run."""
    read: dict[str, list[torch.Tensor]] = {}
    lengths = torch.zeros(0)

    def note(name: str, _layer: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        states = given[0].detach().float()
        if states.dim() == 3:  # of every token of padded rows, which begin in the first column
            at = torch.arange(states.shape[1], device=states.device)
            ends = lengths.to(states.device)[:, None]
            # A decoder's classifier reads all tokens, and the last one counts.
            states = states[(at == ends - 1) if model.task is TaskType.SEQ_CLS else (at < ends)]
        read.setdefault(name, []).append(states)

    with ExitStack() as while_reading:
        while_reading.enter_context(in_eval_mode(model))
        for name, layer in layers.items():
            while_reading.enter_context(layer.register_forward_pre_hook(partial(note, name)))
        for first in range(0, min(_BATCHES * _ROWS, len(rows)), _ROWS):
            batch = collate([rows[row] for row in range(first, min(first + _ROWS, len(rows)))])
            given = {name: value for name, value in batch.items() if name in _READ}
            lengths = given["attention_mask"].sum(dim=1)
            model(**given)
    return {name: torch.cat(values) for name, values in read.items()}
