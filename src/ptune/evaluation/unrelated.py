"""What a prompt changes that it should not: loss and greedy choice on rows of other jobs, with it and without.

Shapes: `N` items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ptune.data.labels import IGNORE_INDEX
from ptune.evaluation.bootstrap import interval, resampled
from ptune.evaluation.columns import ALONE, PROMPT, ItemTexts
from ptune.evaluation.evaluation_result import Unrelated, scored
from ptune.evaluation.metrics import METRICS, ratio
from ptune.evaluation.row_losses import LearnedRow, row_losses
from ptune.model.wrapper import PTunedModel

UNRELATED = "unrelated"
"""What stands as the column of these lines."""


def compared(model: PTunedModel, texts: Sequence[ItemTexts], prompt: str | None) -> list[dict[str, Any]]:
    """Of each item the loss alone and with the prompt, and how many tokens both would write alike.

    Args:
        model: In eval mode.
        texts: Items, some at least.
        prompt: The prompt's name.
    """
    alone, ours = (
        row_losses(model, [LearnedRow(ids, _predicted(labels), name) for one in given for ids, labels in one.rows])
        for name, given in ((None, [one.bare() for one in texts]), (prompt, texts))
    )
    pairs = iter(zip(alone, ours, strict=True))
    lines = []
    for one in texts:
        own = [next(pairs) for _ in one.rows]
        lines.append(
            {
                ALONE: sum(left.total for left, _ in own),
                PROMPT: sum(right.total for _, right in own),
                "tokens": sum(left.tokens for left, _ in own),
                "alike": sum(
                    a == b for left, right in own for a, b in zip(left.likeliest, right.likeliest, strict=True)
                ),
            }
        )
    return lines


def _predicted(labels: Sequence[int]) -> Sequence[int]:
    """The labels without that of the first token, which the frozen model alone does not predict."""
    return [IGNORE_INDEX, *labels[1:]]


def unrelated_scores(lines: Sequence[Mapping[str, Any]], *, times: int, seed: int) -> Unrelated:
    """The scores of `N` lines; `times` and `seed` as for `resampled`."""
    tokens = [line["tokens"] for line in lines]
    counts = {name: ratio([line[name] for line in lines], tokens) for name in (ALONE, PROMPT)}
    alike = ratio([line["alike"] for line in lines], tokens)
    samples = resampled({**counts, "alike": alike}, times, seed)
    return Unrelated(
        rows=len(lines),
        loss=scored(counts, METRICS["loss"], samples),
        agreement=interval(alike.whole, samples["alike"]),
    )
