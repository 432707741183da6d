"""Virtual tokens inside the text, which transformers' `generate` never sees.

It is given the text without them, padded on the left: it counts, repeats, penalises and streams text tokens alone. The
model is given whole rows, virtual tokens in their places, when the text is read for the first time; what it is given
afterwards are new tokens. In what comes back every row has the width it came with.

Shapes: `B` rows given by the caller, `B'` rows as `generate` runs them (beams and return sequences included), `T`
tokens of whole rows, `S` of the text alone, `D` token dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from ptune.batch.inside import Inside, real_ids
from ptune.errors import ModelError
from ptune.frozen.cache_argument import cache_in
from ptune.generation.prompted_view import Forward
from ptune.padded.concatenation import positions


@dataclass(frozen=True)
class WholeRows:
    """Rows with virtual tokens inside them, and the same rows as `generate` has them."""

    ids: torch.Tensor
    """`(B, T)`, padded on the left; virtual tokens below 0."""
    mask: torch.Tensor
    """`(B, T)`."""
    text_ids: torch.Tensor
    """`(B, S)`, padded on the left."""
    text_mask: torch.Tensor
    """`(B, S)`."""
    fill: int
    """Stands where a virtual token stood in what comes back."""

    @classmethod
    def of(cls, ids: torch.Tensor, mask: torch.Tensor, fill: int) -> WholeRows:
        """Take the text out of whole rows.

        Args:
            ids: `(B, T)`, padded on the left.
            mask: `(B, T)`.
            fill: A token for padding.

        Raises:
            ModelError: No row has any text.
        """
        is_text = mask.bool() & (ids >= 0)
        most = int(is_text.sum(dim=1).max())
        if not most:
            raise ModelError("generate needs at least one token of text here.", hint="Pass a text.")
        order = torch.argsort(is_text.to(torch.int8), dim=1, stable=True)[:, ids.shape[1] - most :]
        text_ids = real_ids(ids, fill).gather(1, order)
        return cls(ids, mask, text_ids, is_text.gather(1, order).long(), fill)

    def around(self, forward: Forward, model: PreTrainedModel, inside: Inside, filler_id: int | None) -> Forward:
        """A forward for `generate` out of one that takes whole rows.

        Args:
            forward: Takes them as embeddings, and as ids beside these where the model needs both.
            model: Whose embedding layer is used.
            inside: The vectors of virtual tokens.
            filler_id: The token id that virtual tokens go by; see `Capability`.
        """
        text_width, layer = self.text_ids.shape[1], model.get_input_embeddings()
        new = 0
        begun = False

        def whole(input_ids: torch.Tensor, repeats: int) -> dict[str, Any]:
            ids = torch.cat([self.ids.repeat_interleave(repeats, dim=0), input_ids[:, text_width:]], dim=1)
            starts = tuple(start for start in inside.starts for _ in range(repeats))
            embeds = layer(real_ids(ids, filler_id or 0))
            beside = None if filler_id is None else real_ids(ids, filler_id)
            return {"inputs_embeds": Inside(inside.vectors, starts).placed(embeds, ids), "input_ids": beside}

        def whole_forward(
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor | None = None,  # noqa: ARG001  # of the text alone
            position_ids: torch.Tensor | None = None,
            **kwargs: Any,
        ) -> Any:
            nonlocal new, begun
            repeats = len(input_ids) // len(self.ids)
            if begun and kwargs.get("use_cache") is not False and cache_in(kwargs) is not None:
                given, new = {"input_ids": input_ids}, new + input_ids.shape[1]
            else:
                given, new = whole(input_ids, repeats), input_ids.shape[1] - text_width
                begun = True
            mask = F.pad(self.mask, (0, new), value=1).repeat_interleave(repeats, dim=0)
            if position_ids is not None:
                length = input_ids.shape[1] if "inputs_embeds" not in given else mask.shape[1]
                given["position_ids"] = positions(mask)[:, -length:]
            return forward(**given, attention_mask=mask, **kwargs)

        return whole_forward

    def back(self, out: Any) -> Any:
        """What `generate` gave for the text, as wide as the rows came: padding where a virtual token stood."""
        sequences = out if isinstance(out, torch.Tensor) else out.sequences
        shown = real_ids(self.ids, self.fill).repeat_interleave(len(sequences) // len(self.ids), dim=0)
        sequences = torch.cat([shown, sequences[:, self.text_ids.shape[1] :]], dim=1)
        if isinstance(out, torch.Tensor):
            return sequences
        out.sequences = sequences
        return out
