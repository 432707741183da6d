"""A classifier's head learns at a rate of its own.

In each step Adam moves a weight by about the rate, and so a logit by the rate times the sum of what the head reads,
which differs by a factor of thirty between models. By default the rate is the one at which that is 1: measured on the
first rows, behind the prompt as it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ptune.model.prompted import PromptedModel

_ROWS = 8
"""Rows that are looked at."""
_READ = ("input_ids", "attention_mask", "token_type_ids")


@torch.no_grad()
def default_head_rate(
    model: PromptedModel, rows: Sequence[Any], collate: Callable[[list[Any]], Mapping[str, Any]]
) -> float | None:
    """The rate at which a step moves a logit of the active prompt's head by about 1, to two digits; None without one.

    Args:
        model: The model with its prompt.
        rows: Tokenized rows; the first few are run.
        collate: Makes a batch of them.
    """
    head = model.encoder_of(model.active_adapter).head
    layers = [] if head is None else [one for one in head.modules() if isinstance(one, nn.Linear)]
    if not layers:
        return None
    sums: list[torch.Tensor] = []

    def note(_layer: nn.Module, read: tuple[torch.Tensor, ...]) -> None:
        sums.append(read[0].abs().sum(dim=-1).flatten().float())

    was_training = model.training
    handle = layers[-1].register_forward_pre_hook(note)
    try:
        batch = collate([rows[row] for row in range(min(_ROWS, len(rows)))])
        model.eval()
        model(**{name: value for name, value in batch.items() if name in _READ})
    finally:
        handle.remove()
        model.train(was_training)
    read = torch.cat(sums)
    mean = float(read[read > 0].mean()) if bool((read > 0).any()) else 1.0
    return float(f"{1 / mean:.2g}")


def let_head_learn(optimizer: torch.optim.Optimizer, head: nn.Module | None, rate: float) -> None:
    """Move a head's parameters into groups of their own, before the first step.

    Args:
        optimizer: With all parameters that train.
        head: The head; None changes nothing.
        rate: Its learning rate, from which a schedule starts.
    """
    if head is None:
        return
    own = {id(parameter) for parameter in head.parameters()}
    for group in list(optimizer.param_groups):
        those = [parameter for parameter in group["params"] if id(parameter) in own]
        if not those:
            continue
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
        optimizer.param_groups.append({**group, "params": those, "lr": rate})
        if not group["params"]:
            optimizer.param_groups.remove(group)
