"""The set of labels of a task, in the order in which a model numbers them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ptune.choices import TAG
from ptune.data.tasks.task_example import TaskExample, TaskExamples
from ptune.data.tasks.task_kinds import LABEL_TASKS
from ptune.errors import ConfigError, DataError, listed, nearest, shown


def labels_of(examples: TaskExamples, known: Sequence[str] | None = None) -> tuple[str, ...]:
    """The labels of `classify` and `fill`, or the tags of `tag`.

    Args:
        examples: Their order is the one that a table gives its classes, where it has them; else numbers by value, else
            the alphabet's.
        known: The labels of the training data, where `examples` are held out: they are checked against these.

    Returns:
        The labels, `known` where that is given.

    Raises:
        DataError: A held-out label that is not known, or fewer than two labels.
        ConfigError: The task has no labels.
    """
    if examples.task not in LABEL_TASKS:
        raise ConfigError(
            f"the task {examples.task} has no set of labels.", hint=f"Those that have: {', '.join(LABEL_TASKS)}."
        )
    if known is not None:
        for example in examples:
            check_labels(example, examples.task, known)
        return tuple(known)
    found = dict.fromkeys(label for example in examples for label in _labels(example, examples.task))
    if examples.class_names:
        # Rows of a source without class names may have others.
        labels = tuple(dict.fromkeys([*examples.class_names, *_in_order(found)]))
    else:
        labels = _in_order(found)
    if len(labels) < 2:
        raise DataError(
            f"{examples.report.source or 'the data'}: a task needs two labels, and there is "
            f"{f'only {shown(labels[0])}' if labels else 'none'}.",
            hint="Give rows of at least two labels, or map the right column with columns label=<column>.",
        )
    return labels


def check_labels(example: TaskExample, task: str, known: Sequence[str]) -> None:
    """Raise `DataError` for a row with a label that is not among the known ones; names label, place and nearest."""
    for label in _labels(example, task):
        if label not in known:
            guess = nearest(label, known)
            place = f"{example.source}: " if example.source else ""
            raise DataError(
                f"{place}the label {shown(label)} is not among those of the training data.",
                hint=(f"Did you mean {guess!r}? " if guess else "") + f"Known: {listed(known)}.",
            )


def _labels(example: TaskExample, task: str) -> Iterator[str]:
    """The labels of a row: of each tagged word, or of the whole."""
    if task == TAG:
        yield from filter(None, example.tags)
    elif example.label is not None:
        yield example.label


def _in_order(labels: dict[str, None]) -> tuple[str, ...]:
    try:
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(labels))
