"""Answers to rows of different lengths, for models whose answers padding on the left would change.

Rows whose prompt and text have one length need no padding: they are answered together, length after length, and put
into the order they came in. Only the new tokens differ in number; shorter answers end in padding, as everywhere.

Shapes: `B` rows, `T` text tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from ptune.batch.inside import real_ids
from ptune.errors import ModelError

Answer = Callable[[list[int], torch.Tensor | None, torch.Tensor, dict[str, Any]], torch.Tensor]
"""(rows, ids `(b, t)`, mask of ones, options) → `(b · returned, t + new)` token ids."""


def answer_by_length(
    answer: Answer,
    *,
    input_ids: torch.Tensor | None,
    mask: torch.Tensor,
    sizes: list[int],
    options: dict[str, Any],
    fill: int,
) -> torch.Tensor:
    """`(B · returned, T + new)`: text padded on the left, and the answers.

    Args:
        answer: Answers rows of one length.
        input_ids: `(B, T)`, padded on the left; None where `options` hold `inputs_embeds`.
        mask: `(B, T)`.
        sizes: Virtual tokens of each row.
        options: Of `generate`; limits are on new tokens.
        fill: Stands behind shorter answers, and where a virtual token stood inside the text.

    Raises:
        ModelError: More than token ids is asked for, or a streamer.
    """
    for name in ("return_dict_in_generate", "streamer"):
        if options.get(name):
            raise ModelError(
                f"this model answers rows of different lengths one after another, which does not go with {name}.",
                hint="Give rows of one length, or leave it out.",
            )
    lengths = mask.sum(dim=1).tolist()
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, (size, length) in enumerate(zip(sizes, lengths, strict=True)):
        alike[size, length].append(row)
    embeds, total = options.get("inputs_embeds"), mask.shape[1]
    answers: dict[int, list[torch.Tensor]] = {}
    for (_, length), rows in alike.items():
        own = dict(options)
        if embeds is not None:
            own["inputs_embeds"] = embeds[rows, total - length :]
        ids = None if input_ids is None else input_ids[rows, total - length :]
        out = answer(rows, ids, mask[rows, total - length :], own)
        text_length = 0 if input_ids is None else length
        for at, row in enumerate(rows):
            each = len(out) // len(rows)
            answers[row] = list(out[at * each : (at + 1) * each, text_length:])
    new = [one for row in range(len(lengths)) for one in answers[row]]
    widest = max(map(len, new))
    made = torch.stack([torch.cat([one, one.new_full((widest - len(one),), fill)]) for one in new])
    if input_ids is None:
        return made
    text = real_ids(input_ids, fill).repeat_interleave(len(new) // len(lengths), dim=0)
    return torch.cat([text, made], dim=1)
