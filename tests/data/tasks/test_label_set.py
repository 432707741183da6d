"""The labels of a task and their order; held-out labels are known ones."""

from __future__ import annotations

import pytest

from ptune.choices import CLASSIFY, QA, TAG
from ptune.data.tasks.label_set import labels_of
from ptune.data.tasks.task_example import TaskExample, TaskExamples
from ptune.errors import ConfigError, DataError


def classified(*labels: str | None) -> TaskExamples:
    return TaskExamples(
        [TaskExample(text="a", label=one, source=f"f:{at}") for at, one in enumerate(labels, 1)], CLASSIFY
    )


def test_order():
    assert labels_of(classified("b", "a", "b", None)) == ("a", "b")
    assert labels_of(classified("10", "9", "-2", "9")) == ("-2", "9", "10")
    assert labels_of(classified("10", "9", "x")) == ("10", "9", "x")
    assert labels_of(classified("true", "false")) == ("false", "true")
    named = TaskExamples(classified("b", "z", "a"), CLASSIFY, class_names=("c", "b", "a"))
    assert labels_of(named) == ("c", "b", "a", "z")
    tags = TaskExamples([TaskExample(words=("a", "b", "c"), tags=("O", "", "B-X"))], TAG)
    assert labels_of(tags) == ("B-X", "O")


def test_too_few():
    with pytest.raises(DataError, match=r"a task needs two labels, and there is only 'a'. Give rows of at least two"):
        labels_of(classified("a", "a"))
    with pytest.raises(DataError, match="there is none"):
        labels_of(classified(None))
    with pytest.raises(ConfigError, match=r"the task qa has no set of labels. Those that have: classify"):
        labels_of(TaskExamples([], QA))


def test_held_out_labels_are_known():
    known = ("negative", "positive")
    assert labels_of(classified("positive"), known) == known
    with pytest.raises(
        DataError, match=r"f:2: the label 'postive' is not among .* Did you mean 'positive'\? Known: neg"
    ):
        labels_of(classified("positive", "postive"), known)
    with pytest.raises(DataError, match=r"f:7: the label 'B-Y'"):
        labels_of(TaskExamples([TaskExample(words=("a",), tags=("B-Y",), source="f:7")], TAG), ("B-X", "O"))
