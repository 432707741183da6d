"""Which soft prompt stands before which row of a batch, and whether prompt and text fit the model's context.

Shapes: `B` rows, `T` text tokens, `P` virtual tokens, `D` token dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ptune.errors import ModelError
from ptune.model.capability import Capability
from ptune.model.prefix import RowPrefix, encode_prefix, mixed_prefix, same_prefix


@dataclass(frozen=True)
class RowPrompts:
    """The encoded prompt of each row; rows may share one, and may have none."""

    names: Sequence[str | None]
    """For each of the `B` rows the name of its prompt, or None for no prompt."""
    vectors: Mapping[str, torch.Tensor]
    """Each prompt that a row names, once: `(P, D)` in the dtype of the model's embeddings."""

    @property
    def width(self) -> int:
        """Virtual tokens of the longest prompt; 0 when no row has one."""
        return max((vectors.shape[0] for vectors in self.vectors.values()), default=0)

    def each(self) -> list[torch.Tensor | None]:
        """The prompt of every row."""
        return [None if name is None else self.vectors[name] for name in self.names]

    def prefix(self, base: PreTrainedModel) -> RowPrefix:
        """The prefix of every row; each different prompt runs through the model once. Needs at least one prompt."""
        prefixes = {name: encode_prefix(base, vectors) for name, vectors in self.vectors.items()}
        if len(prefixes) == 1 and None not in self.names:
            return same_prefix(next(iter(prefixes.values())), len(self.names))
        order = list(prefixes)
        return mixed_prefix(
            list(prefixes.values()), [None if name is None else order.index(name) for name in self.names]
        )

    def check_length(self, limit: int | None, text_length: int, new_tokens: int = 0) -> None:
        """Refuse what does not fit the context, before anything is computed.

        Args:
            limit: The model's context in tokens; None where it has no limit.
            text_length: `T`.
            new_tokens: The most tokens to generate.

        Raises:
            ModelError: Prompt, text and new tokens are more than the limit.
        """
        if limit is None or self.width + text_length + new_tokens <= limit:
            return
        new = f" and {new_tokens} new tokens" if new_tokens else ""
        raise ModelError(
            f"{self.width} virtual tokens and {text_length} text tokens{new} exceed the model's context of {limit} "
            "tokens.",
            hint=f"Shorten the text to {max(limit - self.width - new_tokens, 0)} tokens, or use fewer of the others.",
        )


def takes_prefix(base: PreTrainedModel, capability: Capability, mask: torch.Tensor | None, total: int) -> bool:
    """Whether a batch can take the prefix path; the concatenation path otherwise.

    Activation checkpointing needs one run through the model. Padding between prefix and text would use up a sliding
    window, so left-padded rows take the prefix path only where everything fits the window.

    Args:
        base: The frozen model.
        capability: What its architecture can do.
        mask: `(B, T)`, 0 at padding; None when nothing is padded.
        total: Virtual, text and new tokens of the longest row.
    """
    if not capability.prefix or (base.is_activation_checkpointing and base.training):
        return False
    window = capability.sliding_window
    return window is None or mask is None or total <= window or bool((mask[:, 0] == 1).all())
