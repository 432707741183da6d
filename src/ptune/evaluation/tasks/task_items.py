"""The rows of a task as they are evaluated: what is asked, what is right.

Rows of seq2seq with one text and several to write for it are one item with several references.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ptune.choices import QA, SEQ2SEQ, TAG
from ptune.data.tasks.task_example import TaskExample
from ptune.evaluation.items import Asked
from ptune.evaluation.text_metrics import normalized


@dataclass(frozen=True)
class TaskItem:
    """A row of a task, or several of seq2seq that differ in what is to be written alone."""

    task: str
    rows: tuple[TaskExample, ...]

    @property
    def example(self) -> TaskExample:
        """The first of its rows."""
        return self.rows[0]

    @property
    def question(self) -> str:
        """What is asked, for people."""
        one = self.example
        if self.task == TAG:
            return " ".join(one.words)
        return one.question if self.task == QA else "\n".join([one.text, *([one.second] if one.second else [])])

    @property
    def references(self) -> tuple[str, ...]:
        """What is right; of a question without an answer the empty text."""
        one = self.example
        if self.task == TAG:
            return (" ".join(tag or "–" for tag in one.tags),)
        if self.task == QA:
            # As SQuAD's script has it: what is empty when normalised is no answer to compare with.
            return tuple(dict.fromkeys(text for text, _ in one.answers if normalized(text))) or ("",)
        if self.task == SEQ2SEQ:
            return tuple(row.target.strip() for row in self.rows)
        return (str(one.label),)

    @property
    def source(self) -> str:
        """Where the first of its rows stands."""
        return self.example.source


def make_task_items(examples: Iterable[TaskExample], task: str) -> list[TaskItem]:
    """Items in the order of the data."""
    found: dict[object, list[TaskExample]] = {}
    for number, example in enumerate(examples):
        found.setdefault((example.text, example.second) if task == SEQ2SEQ else number, []).append(example)
    return [TaskItem(task, tuple(rows)) for rows in found.values()]


def task_item(one: Asked) -> TaskItem:
    """A row of a task that a metric of tasks was given."""
    assert isinstance(one, TaskItem)
    return one


def task_digest(items: Sequence[TaskItem]) -> str:
    """A name for what is asked: equal items, equal name."""
    digest = hashlib.sha256()
    for item in items:
        for row in item.rows:
            digest.update(repr(row.content()).encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()
