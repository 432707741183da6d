"""What a model makes of a task's items, as outcomes that metrics are made of; and one answer to every item."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ptune.choices import QA, SEQ2SEQ, TAG
from ptune.evaluation.outcomes import Outcome
from ptune.evaluation.tasks.asked_task import rows_of
from ptune.evaluation.tasks.task_items import TaskItem
from ptune.task_answering import TaskAnswerer
from ptune.tasks.prediction import Prediction

_CANDIDATES = 5
"""Spans of a question that are noted."""
_LEAST = 1e-300
"""In place of a probability of 0, whose logarithm is no number in JSON."""


def ask(
    answerer: TaskAnswerer,
    items: Sequence[TaskItem],
    *,
    with_prompt: bool,
    answers: bool,
    batch_size: int,
    null_threshold: float | None,
    max_new_tokens: int | None,
) -> list[tuple[Outcome, dict[str, Any]]]:
    """What the model makes of each item, and the prediction as plain values.

    Args:
        answerer: The prompt.
        items: Some of the items.
        with_prompt: False asks the frozen model alone.
        answers: seq2seq: whether texts are wanted, beside the loss.
        batch_size: Rows at a time.
        null_threshold: As for `TaskAnswerer.predictions`.
        max_new_tokens: seq2seq: of a text.
    """
    options: dict[str, Any] = {}
    if answerer.task == SEQ2SEQ and max_new_tokens is not None:
        options["max_new_tokens"] = max_new_tokens
    predicted = iter(
        answerer.predictions(
            rows_of(items),
            batch_size=batch_size,
            with_prompt=with_prompt,
            losses=True,
            answers=answers,
            null_threshold=null_threshold,
            **options,
        )
    )
    found = []
    for item in items:
        own = [next(predicted) for _ in item.rows]
        first = replace(own[0], candidates=own[0].candidates[:_CANDIDATES])
        found.append((outcome_of(own, answerer, answers=answers), first.to_dict()))
    return found


def outcome_of(predictions: Sequence[Prediction], answerer: TaskAnswerer, *, answers: bool = True) -> Outcome:
    """The outcome of an item from the predictions of its rows."""
    first, task = predictions[0], answerer.task
    labels = None
    if first.label:
        labels = tuple(math.log(max(first.probabilities[label], _LEAST)) for label in answerer.labels)
    return Outcome(
        loss=sum(one.loss for one in predictions),
        tokens=sum(one.losses for one in predictions),
        right=sum(one.right for one in predictions),
        answer=first.text if task == QA or (task == SEQ2SEQ and answers) else None,
        seconds=sum(one.seconds for one in predictions),
        labels=labels,
        tags=first.tags if task == TAG else None,
    )


def is_whole(outcome: Outcome, item: TaskItem, labels: Sequence[str], *, answers: bool) -> bool:
    """Whether an outcome that was read back has all that the task's metrics need."""
    if item.task == TAG:
        return outcome.tags is not None and len(outcome.tags) == len(item.example.words)
    if item.task in (QA, SEQ2SEQ):
        return (outcome.answer is not None) == (answers or item.task == QA)
    return outcome.labels is not None and len(outcome.labels) == len(labels)


def constant(task: str, items: Sequence[TaskItem], labels: Sequence[str]) -> tuple[list[Outcome], str]:
    """One answer to every item: its outcomes, and what it is. No answer (qa), or the commonest label of the items."""
    if task == QA:
        return [Outcome(answer="")] * len(items), ""
    given = [
        label for item in items for label in (filter(None, item.example.tags) if task == TAG else item.references[:1])
    ]
    counts = Counter(given)
    best = max(labels, key=lambda label: counts[label])
    if task == TAG:
        return [Outcome(tags=(best,) * len(item.example.words)) for item in items], best
    likely = tuple(0.0 if label == best else math.log(_LEAST) for label in labels)
    return [Outcome(labels=likely)] * len(items), best
