"""Logits of windows become answers: the best spans of a context, and whether there is an answer at all.

As in the published scripts for SQuAD (Rajpurkar et al. 2016, 2018; Devlin et al. 2019): a span's score is its start's
logit and its end's together, spans are within the context and no longer than an answer may be, and a question of SQuAD
2 has no answer where the null token's score (the lowest of its windows) is above the best span's by more than a
threshold. Here every span of a window is looked at; the scripts pair the best starts with the best ends, and may miss
one.

Shapes: `W` windows, `T` tokens of a window, at least.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ptune.data.tasks.encode_spans import Window, Windows
from ptune.data.tasks.task_example import TaskExample
from ptune.errors import ConfigError, DataError, unknown


@dataclass(frozen=True, kw_only=True)
class Span:
    """An answer that a model gives."""

    text: str
    """Empty for no answer."""
    start: int
    """Its first character in the context; -1 for no answer."""
    score: float
    """The sum of two logits."""
    probability: float = 0.0
    """Among the candidates of its question."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a model answers to one question."""

    text: str
    """The answer; empty where there is none."""
    candidates: tuple[Span, ...]
    """The best spans, the best first; where there may be no answer, no answer among them."""
    null_score: float
    """The score of no answer: the lowest of all windows."""

    @property
    def null_difference(self) -> float:
        """How far no answer scores above the best span; SQuAD's script finds the best threshold for it."""
        best = [one.score for one in self.candidates if one.text]
        return self.null_score - best[0] if best else float("inf")


@dataclass(frozen=True)
class _Limits:
    """How many spans of a window are looked for, and how many tokens they may have."""

    n_best: int
    longest_answer: int


def best_spans(
    start_logits: Any,
    end_logits: Any,
    windows: Windows,
    examples: Sequence[TaskExample],
    *,
    n_best: int = 20,
    longest_answer: int = 30,
    null_threshold: float | None = None,
    padding_side: str = "right",
) -> list[Answered]:
    """The answers of a model.

    Args:
        start_logits: `(W, T)`, or a row of any length for each window; without virtual tokens.
        end_logits: The same of ends.
        windows: Of the data set, in the same order.
        examples: Those that it was made from.
        n_best: Candidates of each question.
        longest_answer: Tokens of an answer at most.
        null_threshold: There is no answer where its score is above the best span's by more than this (SQuAD 2: 0, or
            what serves best on held-out questions). None always answers (SQuAD 1.1).
        padding_side: Where padding stands in the rows of logits.

    Returns:
        An answer for each example, in order.

    Raises:
        DataError: Logits that do not fit the windows.
        ConfigError: `n_best` or `longest_answer` below 1, or an unknown `padding_side`.
    """
    for name, value in (("n_best", n_best), ("longest_answer", longest_answer)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}.")
    if padding_side not in ("left", "right"):
        raise unknown("padding_side", str(padding_side), ("left", "right"))
    if not len(start_logits) == len(end_logits) == len(windows):
        raise DataError(
            f"there are logits of {len(start_logits):,} starts and {len(end_logits):,} ends, and {len(windows):,} "
            "windows.",
            hint="Give a row of logits for each window, in the order of the data set.",
        )
    found: list[dict[tuple[int, int], float]] = [{} for _ in examples]
    null_scores = [float("inf")] * len(examples)
    for at, window in enumerate(windows):
        starts, ends = (_logits(one[at], window, at, padding_side) for one in (start_logits, end_logits))
        null = float(starts[window.null] + ends[window.null])
        null_scores[window.example] = min(null_scores[window.example], null)
        spans = found[window.example]
        context = examples[window.example].context
        for span, score in _spans(starts, ends, window, context, _Limits(n_best, longest_answer)).items():
            # Overlapping windows find a span twice.
            spans[span] = max(score, spans.get(span, score))
    return [
        _answered(example.context, spans, null, n_best, null_threshold)
        for example, spans, null in zip(examples, found, null_scores, strict=True)
    ]


def _logits(row: Any, window: Window, at: int, padding_side: str) -> np.ndarray:
    """The logits of a window's own tokens."""
    values = torch.as_tensor(row).detach().to("cpu", torch.float64).numpy()
    length = len(window.offsets)
    if values.ndim != 1 or len(values) < length:
        raise DataError(f"window {at} has {length} tokens, and logits of shape {tuple(values.shape)}.")
    own: np.ndarray = values[len(values) - length :] if padding_side == "left" else values[:length]
    return own


def _spans(
    starts: np.ndarray, ends: np.ndarray, window: Window, context: str, limits: _Limits
) -> dict[tuple[int, int], float]:
    """The best spans of a window as characters of the context, with their scores."""
    columns = np.flatnonzero(window.offsets[:, 0] >= 0)
    if not len(columns):
        return {}
    first, count = int(columns[0]), len(columns)
    width = min(limits.longest_answer, count)
    # Row: a start; column: how many tokens further the end is.
    behind = np.arange(count)[:, None] + np.arange(width)[None, :]
    padded = np.concatenate([ends[first : first + count], np.full(width, -np.inf)])
    scores = starts[first : first + count, None] + padded[behind]
    flat = scores.ravel()
    made: dict[tuple[int, int], float] = {}
    for one in _best_first(flat, 4 * limits.n_best):
        begin, length = divmod(one, width)
        start, end = int(window.offsets[first + begin, 0]), int(window.offsets[first + begin + length, 1])
        text = context[start:end]
        # A token may begin with the blank before its word, or be that blank alone.
        if stripped := text.strip():
            start += len(text) - len(text.lstrip())
            made.setdefault((start, start + len(stripped)), float(flat[one]))
            if len(made) == limits.n_best:
                break
    return made


def _best_first(scores: np.ndarray, few: int) -> Iterator[int]:
    """The numbers of finite scores from the highest on; all of them are sorted only where the first few do not do."""
    if few < scores.size:
        best = np.argpartition(-scores, few - 1)[:few]
        best = best[np.argsort(-scores[best], kind="stable")]
        yield from (int(one) for one in best if np.isfinite(scores[one]))
        scores = scores.copy()
        scores[best] = -np.inf
    yield from (int(one) for one in np.argsort(-scores, kind="stable") if np.isfinite(scores[one]))


def _answered(
    context: str, spans: dict[tuple[int, int], float], null: float, n_best: int, null_threshold: float | None
) -> Answered:
    """The answer to one question."""
    ordered = sorted(spans.items(), key=lambda item: (-item[1], item[0]))[:n_best]
    candidates = [Span(text=context[start:end], start=start, score=score) for (start, end), score in ordered]
    best = candidates[0] if candidates else None
    none = best is None
    if null_threshold is not None:
        none = none or (best is not None and null - best.score > null_threshold)
        candidates.append(Span(text="", start=-1, score=null))
        candidates.sort(key=lambda one: -one.score)
    return Answered(
        text="" if none or best is None else best.text,
        candidates=_with_probabilities(candidates),
        null_score=null,
    )


def _with_probabilities(candidates: Sequence[Span]) -> tuple[Span, ...]:
    """The candidates with the softmax of their scores."""
    if not candidates:
        return ()
    scores = np.array([one.score for one in candidates])
    weights = np.exp(scores - scores.max())
    return tuple(
        Span(text=one.text, start=one.start, score=one.score, probability=float(weight))
        for one, weight in zip(candidates, weights / weights.sum(), strict=True)
    )
