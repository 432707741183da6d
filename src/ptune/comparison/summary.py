"""What the jobs gave, method by method: means over the seeds, with the least and the greatest."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ptune.choices import LM, SEQ2SEQ
from ptune.comparison.job import BASE, Job, JobResult
from ptune.comparison.settings import CompareSettings
from ptune.memory.machine import machine, versions
from ptune.methods.names import METHODS
from ptune.recipe import TrainRecipe

FORMAT = 1


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """Over the values that are there; None where there are none."""
        numbers = [float(value) for value in values if value is not None]
        return cls(statistics.fmean(numbers), min(numbers), max(numbers)) if numbers else None


@dataclass(frozen=True, kw_only=True)
class MethodSummary:
    """A row of the tables. Units as in `JobResult`."""

    method: str
    title: str
    status: str
    """ok, or what went wrong, in words."""
    runs: int
    """That came to their end."""
    asked: int
    learning_rate: float | None
    trainable_parameters: int | None
    all_parameters: int | None
    loaded_gib: Spread | None
    peak_gib: Spread | None
    reserved_gib: Spread | None
    device_gib: Spread | None
    step_seconds: Spread | None
    step_cpu_seconds: Spread | None
    tokens_per_second: Spread | None
    held_out_loss: Spread | None
    bytes_on_disk: int | None
    bytes_to_train_on: int | None
    losses: tuple[tuple[int, float, float, float], ...]
    """(step, mean, least, greatest training loss), over the seeds."""

    @property
    def ok(self) -> bool:
        """Whether there is anything to show."""
        return self.runs > 0

    @property
    def trainable_percent(self) -> float | None:
        """Of all parameters."""
        if self.trainable_parameters is None or not self.all_parameters:
            return None
        return 100 * self.trainable_parameters / self.all_parameters


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A whole comparison."""

    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    base: JobResult
    """The frozen model alone."""
    methods: tuple[MethodSummary, ...]
    runs: tuple[JobResult, ...]
    same_rows: bool
    """Whether all runs of a seed saw the same rows in the same order."""
    on_cuda: bool

    @property
    def unit(self) -> str:
        """What losses are given for."""
        return "answer token" if self.settings["recipe"].get("task", LM) in (LM, SEQ2SEQ) else "label"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `results.json`."""
        return {
            "format": FORMAT,
            "settings": dict(self.settings),
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "same_rows_in_the_same_order": self.same_rows,
            "base": self.base.to_dict(),
            "methods": [{**asdict(one), "trainable_percent": one.trainable_percent} for one in self.methods],
            "runs": [run.to_dict() for run in self.runs],
        }


def summarize(
    recipe: TrainRecipe,
    settings: CompareSettings,
    given: Mapping[str, Any],
    jobs: Sequence[Job],
    results: Mapping[str, JobResult],
) -> Comparison:
    """Everything about a comparison, from the results of its jobs by name."""
    runs = [(job, results[job.name]) for job in jobs if job.method != BASE]
    base = results[BASE]
    gpu = next((run.device_gib is not None for _, run in runs if run.ok), False)
    return Comparison(
        settings={
            "recipe": {name: value for name, value in asdict(recipe).items() if name not in ("encoder", "overwrite")},
            "comparison": asdict(settings),
            "arguments": dict(given),
        },
        machine=machine(),
        versions=versions(),
        base=base,
        methods=tuple(
            summarize_method(name, settings, [run for job, run in runs if job.method == name])
            for name in settings.names()
        ),
        runs=tuple(run for _, run in runs),
        same_rows=_same_rows([run for _, run in runs if run.ok]),
        on_cuda=gpu,
    )


def summarize_method(name: str, settings: CompareSettings, runs: Sequence[JobResult]) -> MethodSummary:
    """One method over its seeds."""
    good = [run for run in runs if run.ok]
    bad = [run for run in runs if not run.ok]
    first = good[0] if good else None
    names = (
        "loaded_gib",
        "peak_gib",
        "reserved_gib",
        "device_gib",
        "step_seconds",
        "step_cpu_seconds",
        "tokens_per_second",
        "held_out_loss",
    )
    return MethodSummary(
        method=name,
        title=METHODS[name].title,
        status=f"{bad[0].status}: {bad[0].error}" if bad else "ok",
        runs=len(good),
        asked=len(runs),
        learning_rate=settings.learning_rate(name) if first is None else first.learning_rate,
        trainable_parameters=None if first is None else first.trainable_parameters,
        all_parameters=None if first is None else first.all_parameters,
        bytes_on_disk=None if first is None else first.bytes_on_disk,
        bytes_to_train_on=None if first is None else first.bytes_to_train_on,
        losses=_mean_losses(good),
        **{figure: Spread.of([getattr(run, figure) for run in good]) for figure in names},
    )


def _mean_losses(runs: Sequence[JobResult]) -> tuple[tuple[int, float, float, float], ...]:
    """Loss by step over the runs, for the steps that all of them have."""
    curves = [dict(run.losses) for run in runs]
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    points = []
    for step in steps:
        values = [curve[step] for curve in curves]
        points.append((step, statistics.fmean(values), min(values), max(values)))
    return tuple(points)


def _same_rows(runs: Sequence[JobResult]) -> bool:
    """Whether the digests of a seed's rows are one."""
    by_seed: dict[int, set[str | None]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, set()).add(run.rows_digest)
    return all(len(digests) == 1 for digests in by_seed.values())
