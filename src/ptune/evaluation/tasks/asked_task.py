"""The rows of a task's evaluation, read and checked before a model is loaded, and what they are measured by."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ptune.choices import QA, SEQ2SEQ
from ptune.data.tasks.label_set import labels_of
from ptune.data.tasks.task_example import TaskExample, TaskExamples
from ptune.data.tasks.task_kinds import LABEL_TASKS
from ptune.data.tasks.task_records import load_task_examples
from ptune.errors import ConfigError
from ptune.evaluation.evaluate_settings import SHOTS, EvaluateSettings
from ptune.evaluation.tasks.task_items import TaskItem, make_task_items
from ptune.evaluation.tasks.task_metrics import metric_names_of
from ptune.evaluation.text_metrics import check_packages, missing_package

_OF_TEXTS = {
    "labels": "its labels are those that it was trained with",
    "unrelated": "it answers nothing but its task",
    "written_prompt": "nothing is told in words",
    "shots": "nothing is told in words",
    "shots_data": "nothing is told in words",
}
"""Settings for prompts that answer texts, and why others have no use for them."""


@dataclass(frozen=True)
class AskedTask:
    """What is evaluated."""

    task: str
    examples: TaskExamples
    items: Sequence[TaskItem]
    metrics: tuple[str, ...]
    null_threshold: float | None
    lines: tuple[str, ...]
    """What was read, for people."""

    def check_labels(self, labels: Sequence[str]) -> None:
        """Raise `DataError` for a row with a label that the prompt does not know."""
        if self.task in LABEL_TASKS:
            labels_of(self.examples, known=labels)


def read_asked_task(settings: EvaluateSettings, task: str, said: Collection[str] = ()) -> AskedTask:
    """Read the rows and choose the metrics.

    Args:
        settings: What was asked for.
        task: Of the prompt.
        said: Names of settings that somebody gave, their defaults among them.

    Raises:
        DataError: Data that cannot be read.
        ConfigError: A setting or a metric that does not go with the task, or a metric whose package is not installed.
    """
    check_task_settings(settings, task, said)
    metrics = metric_names_of(task, settings.metrics)
    lines: list[str] = []
    if settings.metrics is None:
        left_out = [name for name in metrics if missing_package(name) is not None]
        metrics = tuple(name for name in metrics if name not in left_out)
        if left_out:
            lines.append(f"left out, for want of packages: {', '.join(left_out)} (pip install 'ptune[evaluate]')")
    check_packages(metrics)
    options: dict[str, Any] = {"columns": settings.columns, "sheet": settings.sheet, "encoding": settings.encoding}
    examples = load_task_examples(
        settings.data, task, split=settings.split, limit=settings.limit, drop_duplicates=False, **options
    )
    items = make_task_items(examples, task)
    if len(items) < len(examples):
        most = max(len(item.rows) for item in items)
        lines.append(f"{len(items):,} different texts, with up to {most} to write each")
    threshold = settings.null_threshold
    if task == QA and threshold is None and any(item.references == ("",) for item in items):
        threshold = 0.0
    return AskedTask(task, examples, items, metrics, threshold, (*examples.report.lines(), *lines))


def check_task_settings(settings: EvaluateSettings, task: str, said: Collection[str] = ()) -> None:
    """Raise `ConfigError` for a setting that does not go with the task; arguments as for `read_asked_task`."""
    given = {name for name in _OF_TEXTS if getattr(settings, name) not in (None, SHOTS if name == "shots" else None)}
    for name, why in _OF_TEXTS.items():
        if name in given or name in said:
            raise _no_use(name, task, why)
    if task != SEQ2SEQ and settings.max_new_tokens is not None:
        raise _no_use("max_new_tokens", task, "it writes no text")
    if task != QA and settings.null_threshold is not None:
        raise _no_use("null_threshold", task, "it marks no answers in a context")


def _no_use(name: str, task: str, why: str) -> ConfigError:
    flag = "--" + name.replace("_", "-")
    return ConfigError(f"{name} has no use for a prompt for the task {task}: {why}.", hint=f"Leave {flag} out.")


def rows_of(items: Sequence[TaskItem]) -> list[TaskExample]:
    """All rows, an item's one after another."""
    return [row for item in items for row in item.rows]
