"""Which way a batch takes through the frozen model, and why: decided here and nowhere else.

    packed         [prompt | row 1 | row 2 | …]                  one sequence, no padding
    prefix         keys and values of the prompt → [row | pad]   the prompt is computed once for all rows
    concatenation  [prompt | row | pad]                          the prompt is computed in every row

Each gives the same loss, gradient and answers; they differ in what is computed for it. A batch takes the first that it
can.

Shapes: `B` rows, `T` text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from transformers import PreTrainedModel

from ptune.batch.row_prompts import RowPrompts
from ptune.errors import ModelError
from ptune.frozen.capability import Capability
from ptune.internals import checkpoints_activations


class Way(Enum):
    """A way through the frozen model."""

    PACKED = "packed"
    PREFIX = "prefix"
    CONCATENATION = "concatenation"


@dataclass(frozen=True)
class Path:
    """The way that a batch takes."""

    way: Way
    reason: str
    """Why not an earlier one."""


def choose_path(
    base: PreTrainedModel,
    capability: Capability,
    prompts: RowPrompts,
    *,
    unpacked: str | None,
    padding_fits: bool = True,
) -> Path:
    """The way of a batch.

    Args:
        base: The frozen model.
        capability: What its architecture can do.
        prompts: The prompt of each row.
        unpacked: Why the batch is not packed; None when it is.
        padding_fits: False where padding would stand between prefix and text and use up a sliding window.

    Raises:
        ModelError: A prompt is keys and values of every layer, and neither of the first two ways can be taken.
    """
    path = _first_way(base, capability, prompts, unpacked=unpacked, padding_fits=padding_fits)
    if not prompts.deep:
        return path
    name = next(iter(prompts.deep))
    if path.way is Way.CONCATENATION:
        raise ModelError(
            f"the prompt {name!r} is keys and values of every layer, which cannot be concatenated with text; and "
            f"{path.reason}.",
            hint="Use a prompt of virtual-token embeddings, or change what stands in the way.",
        )
    if checkpoints_activations(base) and base.training:
        raise ModelError(
            f"the prompt {name!r} is keys and values of every layer, and activation checkpointing drops them.",
            hint="Turn it off; smaller batches need less memory too.",
        )
    return path


def _first_way(
    base: PreTrainedModel, capability: Capability, prompts: RowPrompts, *, unpacked: str | None, padding_fits: bool
) -> Path:
    """The first of the ways that a batch can take; arguments as for `choose_path`."""
    if unpacked is None:
        return Path(Way.PACKED, "")
    if not prompts.width:
        return Path(Way.CONCATENATION, f"{unpacked}; no row has a prompt before it")
    if not capability.prefix:
        return Path(Way.CONCATENATION, capability.reason)
    if checkpoints_activations(base) and base.training:
        return Path(Way.CONCATENATION, f"{unpacked}; activation checkpointing drops a filled cache")
    if prompts.differ and not capability.left_padding:
        return Path(Way.CONCATENATION, f"{unpacked}; prompts of different lengths would need padding on the left")
    if not padding_fits:
        return Path(Way.CONCATENATION, f"{unpacked}; padding behind the prefix would use up the sliding window")
    return Path(Way.PREFIX, unpacked)


def fits_the_window(capability: Capability, mask: torch.Tensor | None, total: int) -> bool:
    """Whether padding may stand between prefix and text, as an answer to rows of different lengths needs it.

    It would use up a sliding window; that is no matter where everything fits the window.

    Args:
        capability: What the architecture can do.
        mask: `(B, T)`, 0 at padding; None when nothing is padded.
        total: Virtual, text and new tokens of the longest row.
    """
    window = capability.sliding_window
    return window is None or mask is None or total <= window or bool((mask[:, 0] == 1).all())
