"""Rows of tasks beside a causal model's answers: classes, tags, answers in a text, texts for texts, words in gaps.

The names below are imported on first use, as those of `ptune.data` are.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptune.choices import CLASSIFY, FILL, QA, SEQ2SEQ, TAG
    from ptune.data.tasks.encode import TokenizedTask, encode_task
    from ptune.data.tasks.encode_spans import Window, Windows
    from ptune.data.tasks.label_set import labels_of
    from ptune.data.tasks.span_answers import Answered, Span, best_spans
    from ptune.data.tasks.task_collate import TaskCollator
    from ptune.data.tasks.task_example import TaskExample, TaskExamples
    from ptune.data.tasks.task_kinds import DATA_TASKS, LABEL_TASKS
    from ptune.data.tasks.task_layouts import check_task_columns
    from ptune.data.tasks.task_records import load_task_examples
    from ptune.data.tasks.task_templates import TaskTemplate, task_template
    from ptune.data.tasks.task_token_report import TaskTokenReport
    from ptune.data.tasks.verbalizer import verbalizer_ids

_HOMES = {
    "span_answers": ("Answered", "Span", "best_spans"),
    "encode": ("TokenizedTask", "encode_task"),
    "encode_spans": ("Window", "Windows"),
    "label_set": ("labels_of",),
    "task_collate": ("TaskCollator",),
    "task_example": ("TaskExample", "TaskExamples"),
    "task_kinds": ("CLASSIFY", "DATA_TASKS", "FILL", "LABEL_TASKS", "QA", "SEQ2SEQ", "TAG"),
    "task_layouts": ("check_task_columns",),
    "task_records": ("load_task_examples",),
    "task_templates": ("TaskTemplate", "task_template"),
    "task_token_report": ("TaskTokenReport",),
    "verbalizer": ("verbalizer_ids",),
}

__all__ = [
    "CLASSIFY",
    "DATA_TASKS",
    "FILL",
    "LABEL_TASKS",
    "QA",
    "SEQ2SEQ",
    "TAG",
    "Answered",
    "Span",
    "TaskCollator",
    "TaskExample",
    "TaskExamples",
    "TaskTemplate",
    "TaskTokenReport",
    "TokenizedTask",
    "Window",
    "Windows",
    "best_spans",
    "check_task_columns",
    "encode_task",
    "labels_of",
    "load_task_examples",
    "task_template",
    "verbalizer_ids",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"ptune.data.tasks.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
