"""What `ptune evaluate` can be told. A field is a flag and an argument, and its help is its documentation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ptune.choices import METRIC_GROUPS, METRIC_NAMES
from ptune.errors import ConfigError, unknown
from ptune.evaluation.tasks.task_metric_names import ENTITY_METRICS

_DATA, _METRICS, _WORDS, _ANSWERS, _OUTPUT = "data", "metrics", "the model told in words", "answers", "output"
_AT_LEAST = {"limit": 1, "shots": 0, "max_new_tokens": 1, "max_length": 2, "batch_size": 1, "bootstrap": 1, "seed": 0}
MOST_BOOTSTRAP = 100_000
SHOTS = 4


def _flag(group: str, default: Any, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": text, "group": group, **metadata})


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What is measured, on which rows, and beside what.

    Raises:
        ConfigError: Values that cannot be used; all of them at once.
    """

    data: str | Sequence[str] = _flag(
        _DATA,
        "",
        "rows with questions and answers, in any form that ptune train reads; several rows with one question are its "
        "references, and so is a list of answers",
        required=True,
    )
    columns: Mapping[str, str] | None = _flag(
        _DATA, None, "columns of other names, as instruction=QUESTION output=ANSWER", nargs="+"
    )
    split: str = _flag(_DATA, "train", "split of a hub data set, a folder, or a JSON object of lists")
    encoding: str | None = _flag(_DATA, None, "encoding of text files; by default UTF-8")
    sheet: str | None = _flag(_DATA, None, "sheet of an Excel file; by default the first one")
    limit: int | None = _flag(_DATA, None, "use only this many rows, from the start")
    max_length: int | None = _flag(
        _DATA, None, "cut rows at so many tokens, as training does; by default at what the context has room for"
    )
    metrics: Sequence[str] | None = _flag(
        _METRICS,
        None,
        f"of {', '.join(METRIC_NAMES)}, and for tags of words {', '.join(ENTITY_METRICS)}; "
        f"{', '.join(METRIC_GROUPS)} stand for several; by default what suits the data",
        metavar="NAME",
    )
    labels: Sequence[str] | None = _flag(
        _METRICS,
        None,
        "labels to choose from by their likelihood, as a,b,c; by default those in the data",
        metavar="A,B",
    )
    bootstrap: int = _flag(_METRICS, 1000, "resamples for the confidence intervals")
    null_threshold: float | None = _flag(
        _METRICS,
        None,
        "for answers in a context: how far no answer must score above the best one to be given; by default 0 where the "
        "data have questions without an answer, else an answer is always given",
    )
    unrelated: str | None = _flag(
        _METRICS,
        None,
        "rows of other jobs, with columns of a known layout: how much the prompt changes what it should not",
        metavar="FILE",
    )
    written_prompt: str | None = _flag(_WORDS, None, "the job in words, put before every question", metavar="TEXT")
    shots: int = _flag(_WORDS, SHOTS, "examples that are shown, at most as many as the context has room for")
    shots_data: str | None = _flag(
        _WORDS,
        None,
        "where they come from, with columns as in DATA; by default DATA, but never the row's own question",
        metavar="FILE",
    )
    max_new_tokens: int | None = _flag(
        _ANSWERS, None, "longest answer; by default the longest expected one and a quarter more, 128 at most"
    )
    batch_size: int = _flag(_ANSWERS, 16, "rows at a time")
    seed: int = _flag(_OUTPUT, 0, "draws the examples and the resamples")
    output: str | None = _flag(
        _OUTPUT, None, "folder for predictions and reports; an interrupted evaluation goes on there"
    )
    overwrite: bool = _flag(_OUTPUT, False, "replace another evaluation in OUTPUT")

    def __post_init__(self) -> None:
        for name in ("metrics", "labels"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _words(value))
        faults = ["data is missing"] if not self.data else []
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                faults.append(f"{name} must be a whole number of at least {least}, not {value!r}")
        if not faults and self.bootstrap > MOST_BOOTSTRAP:
            faults.append(f"bootstrap must be at most {MOST_BOOTSTRAP:,}, not {self.bootstrap:,}")
        known = (*METRIC_NAMES, *ENTITY_METRICS, *METRIC_GROUPS)
        faults += [str(unknown("metric", name, known)).rstrip(".") for name in self.metrics or () if name not in known]
        labels = self.labels or ()
        if self.labels is not None and (len(set(labels)) < 2 or not all(labels)):
            faults.append(f"labels must be at least two different texts, not {', '.join(labels) or 'none'}")
        if self.null_threshold is not None and not _is_number(self.null_threshold):
            faults.append(f"null_threshold must be a number, not {self.null_threshold!r}")
        if self.metrics is not None and not self.metrics:
            faults.append("metrics names none")
        if faults:
            raise ConfigError(f"{'; '.join(faults)}.", hint="See ptune evaluate --help.")

    def metric_names(self) -> tuple[str, ...] | None:
        """The metrics that were asked for, groups taken apart; None when nobody asked."""
        return None if self.metrics is None else spelled_out(self.metrics)


def spelled_out(names: Iterable[str]) -> tuple[str, ...]:
    """Names of metrics, groups taken apart, each once and in the order of the tables."""
    asked = {one for name in names for one in METRIC_GROUPS.get(name, (name,))}
    return tuple(name for name in METRIC_NAMES if name in asked)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _words(value: str | Sequence[str]) -> tuple[str, ...]:
    """A list; one text alone is cut at its commas."""
    parts = [value] if isinstance(value, str) else list(value)
    return tuple(part.strip() for part in (parts[0].split(",") if len(parts) == 1 else parts))
