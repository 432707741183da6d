"""A classifier's head learns at a rate of its own.

Its weights are of another scale than virtual tokens, and begin at random where the prompt begins at words.
"""

from __future__ import annotations

import torch
from torch import nn


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
