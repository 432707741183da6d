"""The rows of an evaluation, read and checked before a model is loaded, and what they are measured by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ptune.choices import METRIC_GROUPS
from ptune.data.example import Example
from ptune.data.records import Examples, load_examples
from ptune.errors import ConfigError, DataError
from ptune.evaluation.evaluate_settings import EvaluateSettings
from ptune.evaluation.items import Item, Kind, check_json, check_labels, default_metrics, kind_of, make_items
from ptune.evaluation.metrics import needs_of
from ptune.evaluation.outcomes import Needs
from ptune.evaluation.tasks.task_metric_names import ENTITY_METRICS
from ptune.evaluation.text_metrics import check_packages, missing_package


@dataclass(frozen=True)
class AskedRows:
    """What is evaluated."""

    items: Sequence[Item]
    metrics: tuple[str, ...]
    labels: tuple[str, ...]
    pool: Sequence[Example]
    """Examples that the model told in words may be shown."""
    unrelated: Sequence[Item]
    lines: tuple[str, ...]
    """What was read, for people."""

    @property
    def needs(self) -> Needs:
        """What must be computed."""
        return needs_of(self.metrics, self.labels)

    @property
    def documents(self) -> bool:
        """Whether the rows are texts without questions."""
        return self.items[0].example.document


def read_asked(settings: EvaluateSettings) -> AskedRows:
    """Read the rows and choose the metrics.

    Raises:
        DataError: Data that cannot be read, or do not go with a metric or with the labels.
        ConfigError: A metric whose package is not installed.
    """
    _check_settings(settings)
    examples = _read(settings, settings.data, limit=settings.limit)
    lines = examples.report.lines()
    kind = kind_of(examples) if settings.labels is None else Kind.LABELS
    metrics = settings.metric_names() or ()
    if not metrics:
        chosen = default_metrics(kind)
        metrics = tuple(name for name in chosen if missing_package(name) is None)
        if left_out := [name for name in chosen if name not in metrics]:
            lines.append(f"left out, for want of packages: {', '.join(left_out)} (pip install 'ptune[evaluate]')")
    check_packages(metrics)
    by_label = bool(set(metrics) & set(METRIC_GROUPS["labels"]))
    items = make_items(examples, group=not by_label)
    if len(items) < len(examples):
        most = max(len(item.rows) for item in items)
        lines.append(f"{len(items):,} different questions, with up to {most} answers each")
    labels: tuple[str, ...] = ()
    if by_label:
        labels = tuple(settings.labels or sorted({one for item in items for one in item.references}))
        check_labels(items, labels)
        lines.append(f"labels: {', '.join(labels)}")
    _check(items, metrics, settings)
    unrelated = make_items(_read(settings, settings.unrelated, alike=False), group=False) if settings.unrelated else []
    return AskedRows(items, metrics, labels, _pool(settings, examples), unrelated, tuple(lines))


def _check_settings(settings: EvaluateSettings) -> None:
    """Raise `ConfigError` for what belongs to prompts for other tasks."""
    for metric in settings.metrics or ():
        if metric in ENTITY_METRICS:
            raise ConfigError(f"the metric {metric} is for prompts that tag words, and this one answers texts.")
    if settings.null_threshold is not None:
        raise ConfigError(
            "null_threshold is for prompts that mark answers in a context, and this one writes them.",
            hint="Leave --null-threshold out.",
        )


def _read(
    settings: EvaluateSettings, source: str | Sequence[str], *, limit: int | None = None, alike: bool = True
) -> Examples:
    """Rows; `alike` says that their columns are called as those of DATA are."""
    options: dict[str, Any] = {"columns": settings.columns, "sheet": settings.sheet} if alike else {}
    return load_examples(
        source,
        split=settings.split,
        encoding=settings.encoding,
        limit=limit,
        drop_duplicates=False,
        all_answers=True,
        **options,
    )


def _check(items: Sequence[Item], metrics: Sequence[str], settings: EvaluateSettings) -> None:
    """Refuse metrics that the rows cannot be measured by."""
    if {"json_exact", "json_keys"} & set(metrics):
        check_json(items)
    document = next((item for item in items if item.example.document), None)
    if document is None:
        return
    if beyond := [name for name in metrics if name not in METRIC_GROUPS["tokens"]]:
        raise DataError(
            f"{document.example.source} is a text without a question, which {beyond[0]} cannot measure.",
            hint=f"Such texts have {', '.join(METRIC_GROUPS['tokens'])}.",
        )
    if settings.written_prompt is not None or settings.shots_data is not None:
        raise ConfigError(
            f"{document.example.source} is a text without a question, before which nothing can be told.",
            hint="Leave written_prompt and shots_data out.",
        )


def _pool(settings: EvaluateSettings, examples: Sequence[Example]) -> Sequence[Example]:
    """What may be shown as an example; texts without a question may not."""
    if settings.shots == 0:
        return ()
    pool = examples if settings.shots_data is None else _read(settings, settings.shots_data)
    if settings.shots_data is not None and (text := next((one for one in pool if one.document), None)):
        raise DataError(f"{text.source} is a text without a question, and no example of a job.")
    return pool


def items_digest(items: Sequence[Item]) -> str:
    """A name for what is asked: equal items, equal name."""
    digest = hashlib.sha256()
    for item in items:
        for row in item.rows:
            digest.update(repr(row.content()).encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()
