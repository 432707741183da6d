"""What is evaluated: questions, each with all of its right answers, and what suits to measure them by.

Rows with the same question and several answers are one item with several references, as in E2E, where the same
attributes have up to 43 sentences. Rows that are labelled stay rows of their own: there every one counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

from ptune.choices import METRIC_GROUPS
from ptune.data.example import Example
from ptune.errors import DataError, shown
from ptune.evaluation.json_metrics import parse_object

_MOST_LABELS, _LONGEST_LABEL, _ROWS_A_LABEL = 50, 40, 4


class Asked(Protocol):
    """What a metric and a report know of a row."""

    @property
    def question(self) -> str:
        """What is asked."""

    @property
    def references(self) -> tuple[str, ...]:
        """The right answers."""

    @property
    def source(self) -> str:
        """Where the row stands."""


@dataclass(frozen=True)
class Item:
    """A question with its right answers."""

    rows: tuple[Example, ...]
    """One for each answer."""

    @property
    def example(self) -> Example:
        """The first of its rows."""
        return self.rows[0]

    @property
    def references(self) -> tuple[str, ...]:
        """The right answers."""
        return tuple(row.output.strip() for row in self.rows)

    @property
    def question(self) -> str:
        """What is asked."""
        return self.example.question

    @property
    def source(self) -> str:
        """Where the first of its rows stands."""
        return self.example.source


class Kind(Enum):
    """What the answers are."""

    LABELS = "labels"
    JSON = "json"
    TEXTS = "texts"
    DOCUMENTS = "documents"
    """Whole texts without a question."""


def kind_of(examples: Sequence[Example]) -> Kind:
    """What the answers of rows are: a few short ones that come again and again are labels."""
    if any(example.document for example in examples):
        return Kind.DOCUMENTS
    answers = [example.output.strip() for example in examples]
    if all(parse_object(answer) is not None for answer in answers):
        return Kind.JSON
    different = set(answers)
    few = 2 <= len(different) <= min(_MOST_LABELS, len(answers) / _ROWS_A_LABEL)
    short = all(len(answer) <= _LONGEST_LABEL and "\n" not in answer for answer in different)
    return Kind.LABELS if few and short else Kind.TEXTS


def default_metrics(kind: Kind) -> tuple[str, ...]:
    """What suits answers of a kind."""
    return (*METRIC_GROUPS["tokens"], *(() if kind is Kind.DOCUMENTS else METRIC_GROUPS[kind.value]))


def make_items(examples: Iterable[Example], *, group: bool) -> list[Item]:
    """Items in the order of the data.

    Args:
        examples: The rows.
        group: Put rows with the same question together.
    """
    found: dict[object, list[Example]] = {}
    for number, example in enumerate(examples):
        every = [replace(example, output=answer, further=()) for answer in (example.output, *example.further)]
        key = replace(every[0], output="").content() if group and not example.document else number
        found.setdefault(key, []).extend(every)
    return [Item(tuple(rows)) for rows in found.values()]


def check_labels(items: Sequence[Item], labels: Sequence[str]) -> None:
    """Raise `DataError` for a row none of whose answers is a label, or labels of which there are fewer than two."""
    if len(labels) < 2:
        raise DataError(
            f"the data have {len(labels)} different answer{'s' * (len(labels) != 1)}, and a choice needs two.",
            hint="Name the labels with --labels.",
        )
    for item in items:
        if not set(item.references) & set(labels):
            raise DataError(
                f"{item.example.source}: the answer {shown(item.references[0], 60)} is not among the labels "
                f"{', '.join(labels[:20])}.",
                hint="Add it to --labels, or leave the row out.",
            )


def check_json(items: Sequence[Item]) -> None:
    """Raise `DataError` for a row none of whose answers is a JSON object."""
    for item in items:
        if not any(parse_object(text) is not None for text in item.references):
            raise DataError(
                f"{item.example.source}: the expected answer {shown(item.references[0], 60)} is no JSON object.",
                hint="Measure it by other --metrics, or leave the row out.",
            )
