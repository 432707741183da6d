"""The metrics of each task: those of every evaluation where they are the same, and those of tags.

Shapes: `N` items, `C` labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ptune.choices import CLASSIFY, FILL, METRIC_GROUPS, QA, TAG
from ptune.errors import ConfigError, listed
from ptune.evaluation.evaluation_result import Breakdown
from ptune.evaluation.items import Asked
from ptune.evaluation.metrics import METRICS, SHARE, Counts, Metric, ratio
from ptune.evaluation.outcomes import Outcome, chosen_label
from ptune.evaluation.tasks.entity_spans import entities, is_schemed
from ptune.evaluation.tasks.task_items import TaskItem, task_item
from ptune.evaluation.tasks.task_metric_names import TASK_METRICS

_LOSS_OF = {CLASSIFY: "a row", FILL: "a row", TAG: "a word", QA: "a window"}
ANSWERABLE, UNANSWERABLE = "answerable", "unanswerable"


def metric_names_of(task: str, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The metrics of a task.

    Args:
        task: The task.
        asked: Names and groups; None for all that suit it.

    Raises:
        ConfigError: One that the task does not have.
    """
    known = TASK_METRICS[task]
    if asked is None:
        return known
    chosen: set[str] = set()
    for name in asked:
        own = [one for one in METRIC_GROUPS.get(name, (name,)) if one in known]
        if not own:
            raise ConfigError(f"the metric {name} is none of the task {task}.", hint=f"It has {listed(known)}.")
        chosen.update(own)
    return tuple(name for name in known if name in chosen)


def task_metrics(task: str, names: Sequence[str], items: Sequence[TaskItem]) -> list[Metric]:
    """The metrics of these names; of qa also apart for questions with and without an answer, where there are both."""
    found = [_metric(task, name) for name in names]
    if task == QA and 0 < sum(item.references == ("",) for item in items) < len(items):
        parted = [one for one in found if one.name in ("exact_match", "f1")]
        found += [
            replace(one, name=f"{one.name}_{part}", title=f"{one.title}, {part}", count=partial(_part, one, part))
            for part in (ANSWERABLE, UNANSWERABLE)
            for one in parted
        ]
    return found


def _metric(task: str, name: str) -> Metric:
    if task == TAG and name in _OF_TAGS:
        return _OF_TAGS[name]
    found = METRICS[name]
    return replace(found, title=f"loss (nats {_LOSS_OF[task]})") if name == "loss" and task in _LOSS_OF else found


def _part(
    metric: Metric, part: str, items: Sequence[Asked], outcomes: Sequence[Outcome], labels: Sequence[str]
) -> Counts:
    """The counts of a metric in some of the items; nothing in the others."""
    counts = metric.count(items, outcomes, labels)
    inside = np.array([(item.references == ("",)) == (part == UNANSWERABLE) for item in items])
    return replace(counts, rows=counts.rows * inside[:, None])


def _pairs(items: Sequence[Asked], outcomes: Sequence[Outcome]) -> list[tuple[list[str], list[str]]]:
    """Right and given tags of each item; words without a right tag are left out, words cut off have none given."""
    found = []
    for item, outcome in zip(items, outcomes, strict=True):
        assert outcome.tags is not None
        both = [pair for pair in zip(task_item(item).example.tags, outcome.tags, strict=True) if pair[0]]
        found.append(([right for right, _ in both], [given for _, given in both]))
    return found


def _tag_accuracy(items: Sequence[Asked], outcomes: Sequence[Outcome], _labels: Sequence[str]) -> Counts:
    pairs = _pairs(items, outcomes)
    right = [sum(one == other for one, other in zip(*pair, strict=True)) for pair in pairs]
    return ratio(right, [len(pair[0]) for pair in pairs])


def _entity(which: str, items: Sequence[Asked], outcomes: Sequence[Outcome], labels: Sequence[str]) -> Counts:
    """Counts `(N, 3)`: entities found rightly, found, and there."""
    schemed = is_schemed(labels)
    rows = np.zeros((len(items), 3))
    for at, (right, given) in enumerate(_pairs(items, outcomes)):
        there, found = entities(right, schemed=schemed), entities(given, schemed=schemed)
        rows[at] = len(there & found), len(found), len(there)
    return Counts(rows, _ENTITY_SCORES[which])


def _precision(sums: np.ndarray) -> float:
    return _share(sums[0], sums[1], sums)


def _recall(sums: np.ndarray) -> float:
    return _share(sums[0], sums[2], sums)


def _f1(sums: np.ndarray) -> float:
    return _share(2 * sums[0], sums[1] + sums[2], sums)


def _share(part: float, whole: float, sums: np.ndarray) -> float:
    """0 where there is no whole, as conlleval has it; NaN where there is no entity at all."""
    if not sums[1] and not sums[2]:
        return float("nan")
    return float(part / whole) if whole else 0.0


_ENTITY_SCORES = {"precision": _precision, "recall": _recall, "f1": _f1}
_OF_TAGS = {
    one.name: one
    for one in (
        Metric("token_accuracy", "words tagged rightly", SHARE, _tag_accuracy),
        Metric("entity_precision", "entities: precision", SHARE, partial(_entity, "precision")),
        Metric("entity_recall", "entities: recall", SHARE, partial(_entity, "recall")),
        Metric("entity_f1", "entities: F1", SHARE, partial(_entity, "f1")),
    )
}


def breakdown(
    task: str, items: Sequence[TaskItem], outcomes: Sequence[Outcome], labels: Sequence[str]
) -> Breakdown | None:
    """Which label was taken for which; of words, where they were not cut off. None for tasks without labels."""
    if task not in (CLASSIFY, FILL, TAG):
        return None
    numbers = {label: at for at, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)))
    if task == TAG:
        pairs = [pair for both in _pairs(items, outcomes) for pair in zip(*both, strict=True) if pair[1]]
    else:
        chosen = [labels[chosen_label(one, labels, normalized=False)] for one in outcomes]
        pairs = list(zip([item.references[0] for item in items], chosen, strict=True))
    for right, given in pairs:
        counts[numbers[right], numbers[given]] += 1
    return Breakdown(tuple(labels), counts)
