"""What every benchmark shares: each contender in a process of its own, contenders in turn, rounds over and over.

A script names its contenders and its cases, and gives one function, `work(contender, settings)`, that loads what it
needs, runs a warm-up batch, measures (`measuring`) and returns plain values. Called without `--contender` the script is
the parent: in every round of every case it starts itself once for each contender, so that none finds the caches,
threads or memory of another, and a slow minute of the machine falls on all of them alike. The parent then writes
`results/NAME.json` and prints a table. A ratio is made inside a round, `reference / contender`, so that 2 means half
the reference's time or memory; what is told is the median over the rounds, with the least and the greatest.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OK = "ok"
TIMEOUT_SECONDS = 3600.0

Settings = Mapping[str, Any]
Answer = dict[str, Any]
"""What one process gives: the benchmark's metrics and whatever else is worth keeping, as plain values."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison: each of `contenders` with the same settings.

    Args:
        label: Names the case in progress lines and in the table: `mlp n=10`.
        settings: Given to every process of the case. JSON values; `threads` is also set in the environment.
        contenders: Who takes part, in this order.
        rounds: Rounds at most, for a case that needs fewer than are asked for.
    """

    label: str
    settings: Settings
    contenders: tuple[str, ...]
    rounds: int | None = None


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One question, and how a process answers it.

    Args:
        name: Of the result file.
        what: The question in a sentence or two.
        script: The file to start for each contender.
        work: (contender, settings) → answer. Runs in a process of its own.
        metrics: Values of an answer to summarize, by their names with units (`cpu_seconds`, `peak_gib`).
        references: Contenders that the others are compared with, where they take part.
    """

    name: str
    what: str
    script: Path
    work: Callable[[str, Settings], Answer]
    metrics: tuple[str, ...]
    references: tuple[str, ...]


class Measured(dict[str, float]):
    """`cpu_seconds` (of all threads), `wall_seconds`, and `peak_gib`: peak memory above the loaded model."""


def held_gib(device: str = "cpu") -> float:
    """GiB that this process holds now: resident memory, or with `cuda` what tensors take on the GPU."""
    import psutil
    import torch

    from ptune.memory.measure import GIB

    gc.collect()
    if device == "cuda":
        return torch.cuda.memory_allocated() / GIB
    return float(psutil.Process().memory_info().rss) / GIB


@contextlib.contextmanager
def measuring(device: str = "cpu", *, loaded_gib: float | None = None) -> Iterator[Measured]:
    """Measure a stretch of work; the values are there when the block has ended.

    Args:
        device: `cpu` or `cuda`, whose memory is meant; with `cuda` the block ends when the GPU has.
        loaded_gib: What peak memory is counted from: `held_gib` of the loaded model. By default what is held now, which
            after a warm-up is more than the model.
    """
    import torch

    from ptune.memory.measure import PeakMemory

    cuda = device == "cuda"
    if cuda:
        torch.cuda.synchronize()
    start_gib = held_gib(device) if loaded_gib is None else loaded_gib
    measured = Measured()
    with PeakMemory() as peak:
        cpu, wall = time.process_time(), time.perf_counter()
        yield measured
        if cuda:
            torch.cuda.synchronize()
        measured["cpu_seconds"] = time.process_time() - cpu
        measured["wall_seconds"] = time.perf_counter() - wall
    allocated_gib = peak.report.cuda_allocated_gib
    top_gib = allocated_gib if cuda and allocated_gib is not None else peak.report.resident_peak_gib
    measured["peak_gib"] = max(top_gib - start_gib, 0.0)


# ---- the parent ----------------------------------------------------------------------------------------------------


def run_contenders(
    benchmark: Benchmark, case: Case, rounds: int, say: Console, *, timeout: float = TIMEOUT_SECONDS
) -> dict[str, list[Answer]]:
    """The answers of every contender, one a round, each with a `status`.

    A contender that failed is not started again; its last answer holds the error's text instead of values.
    """
    answers: dict[str, list[Answer]] = {name: [] for name in case.contenders}
    rounds = min(rounds, case.rounds or rounds)
    for number in range(1, rounds + 1):
        for name, given in answers.items():
            if given and given[-1]["status"] != OK:
                continue
            answer = _ask(benchmark.script, name, case.settings, timeout)
            given.append(answer)
            metric = benchmark.metrics[0]
            told = shown(metric, answer[metric]) if answer["status"] == OK else answer["status"]
            say.print(
                f"round {number}/{rounds} {name} {case.label}: {told}", highlight=False, markup=False, soft_wrap=True
            )
    return answers


def _ask(script: Path, contender: str, settings: Settings, timeout: float) -> Answer:
    """Start one process; its last line is the answer."""
    command = [sys.executable, str(script), "--contender", contender, "--settings", json.dumps(dict(settings))]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(settings.get("threads", len(os.sched_getaffinity(0)))),
    }
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return {"status": f"stopped after {timeout:.0f} s"}
    if done.returncode < 0:
        return {"status": f"killed by signal {-done.returncode}"}
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        error = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"status": error[-1].replace(str(ROOT), ".")[:300]}
    return {"status": OK, **json.loads(lines[-1])}


def summarize(
    answers: Mapping[str, Sequence[Answer]], metrics: Sequence[str], references: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """For every contender its status, raw answers, and of each metric median, least and greatest, with the ratios."""
    summary: dict[str, dict[str, Any]] = {}
    for name, given in answers.items():
        good = [one for one in given if one["status"] == OK]
        entry: dict[str, Any] = {"status": given[-1]["status"] if given else "not run", "rounds": list(given)}
        if good:
            entry |= {metric: spread([one[metric] for one in good]) for metric in metrics}
            others = [one for one in references if one in answers and one != name]
            found = {one: {metric: ratios(answers, name, one, metric) for metric in metrics} for one in others}
            entry["ratios"] = {
                one: {metric: spread(values) for metric, values in by_metric.items() if values}
                for one, by_metric in found.items()
            }
        summary[name] = entry
    return summary


def ratios(answers: Mapping[str, Sequence[Answer]], name: str, reference: str, metric: str) -> list[float]:
    """`reference / contender` of every round that both came through."""
    return [
        theirs[metric] / ours[metric]
        for ours, theirs in zip(answers[name], answers[reference], strict=False)
        if ours["status"] == theirs["status"] == OK and ours[metric] > 0
    ]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def run(
    benchmark: Benchmark,
    cases: Sequence[Case],
    rounds: int,
    *,
    output: Path,
    command: str,
    say: Console,
    timeout: float = TIMEOUT_SECONDS,
) -> dict[str, Any]:
    """Run every case, write the result file after each, and return what it holds."""
    result: dict[str, Any] = {
        **heading(benchmark.what, command),
        "rounds": rounds,
        "metrics": list(benchmark.metrics),
        "references": list(benchmark.references),
        "status": "not finished",
        "cases": [],
    }
    for case in cases:
        answers = run_contenders(benchmark, case, rounds, say, timeout=timeout)
        contenders = summarize(answers, benchmark.metrics, benchmark.references)
        result["cases"].append({"label": case.label, "settings": dict(case.settings), "contenders": contenders})
        gpus = [one["gpu"] for given in answers.values() for one in given if one.get("gpu")]
        result["machine"]["gpu"] = gpus[0] if gpus else result["machine"]["gpu"]
        write(result, output)
    entries = [
        (case["label"], name, entry["status"]) for case in result["cases"] for name, entry in case["contenders"].items()
    ]
    faults = [f"{name} {label}: {status}" for label, name, status in entries if status != OK]
    result["status"] = "; ".join(faults) or OK
    write(result, output)
    return result


def heading(what: str, command: str) -> dict[str, Any]:
    """What a result begins with: the question, the command, today's date, the machine and the versions."""
    from ptune.memory.machine import machine, versions

    return {
        "what": what,
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
    }


def write(result: Mapping[str, Any], output: Path) -> None:
    """Write the result under a temporary name and rename it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(output.name + ".tmp")
    temporary.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(output)


# ---- for people ----------------------------------------------------------------------------------------------------

_UNITS = {"cpu_seconds": "s CPU", "seconds": "s", "gib": "GiB"}


def shown(metric: str, value: float) -> str:
    """A value with the unit that its name ends in: `3.14 s CPU`, `0.52 GiB`."""
    unit = next((unit for end, unit in _UNITS.items() if metric.endswith(end)), "")
    return f"{value:.3g} {unit}".strip() if abs(value) < 100 else f"{value:.0f} {unit}".strip()


def table(result: Mapping[str, Any]) -> Table:
    """A row for every contender of every case: median (least to greatest), and the ratios to each reference."""
    metrics, references = result["metrics"], result["references"]
    made = Table(title=None, header_style="bold")
    for title in ("case", "contender", *metrics):
        made.add_column(title, justify="left" if title in ("case", "contender") else "right")
    for reference in references:
        for metric in metrics:
            made.add_column(f"{reference} / it: {metric}", justify="right")
    for case in result["cases"]:
        for name, entry in case["contenders"].items():
            if metrics[0] not in entry:
                made.add_row(case["label"], name, entry["status"])
                continue
            cells = [_cell(metric, entry[metric]) for metric in metrics]
            for reference in references:
                found = entry["ratios"].get(reference, {})
                cells += [f"{found[metric]['median']:.2f}" if metric in found else "" for metric in metrics]
            made.add_row(case["label"], name, *cells)
        made.add_section()
    return made


def _cell(metric: str, values: Mapping[str, float]) -> str:
    return f"{shown(metric, values['median'])} ({values['min']:.3g} to {values['max']:.3g})"


# ---- the command line ----------------------------------------------------------------------------------------------


def command_line(benchmark: Benchmark, *, rounds: int) -> argparse.ArgumentParser:
    """The flags every script has; a script adds its own to them.

    Args:
        benchmark: Its sentence is the help text.
        rounds: The default.
    """
    parser = argparse.ArgumentParser(description=benchmark.what)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"rounds over all contenders (default {rounds})")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default cpu")
    parser.add_argument("--output", type=Path, help=f"the result file (default results/{benchmark.name}.json)")
    parser.add_argument(
        "--timeout", type=float, default=TIMEOUT_SECONDS, help="seconds that one process may take (default %(default)s)"
    )
    parser.add_argument("--only", metavar="LABEL", help="this case alone, as the result names it: 'mlp n=10'")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, not as a table")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, default={}, help=argparse.SUPPRESS)
    return parser


def main(
    benchmark: Benchmark,
    parser: argparse.ArgumentParser,
    cases: Callable[[argparse.Namespace], Sequence[Case]],
    argv: Sequence[str] | None = None,
    *,
    finish: Callable[[argparse.Namespace, dict[str, Any]], None] | None = None,
) -> dict[str, Any] | None:
    """Be the parent, or with `--contender` one of its processes.

    Args:
        benchmark: The question.
        parser: From `command_line`.
        cases: Parsed flags → what to compare.
        argv: Words of the command line; the process's own when None.
        finish: Called with the flags and the result, to draw a plot of it.

    Returns:
        What the result file holds; None in a contender's process.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    options = parser.parse_args(words)
    if options.contender:
        print(json.dumps(benchmark.work(options.contender, options.settings)))
        return None
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {options.rounds}")
    command = shlex.join(["python", f"benchmarks/{benchmark.script.name}", *words]).replace(f"{ROOT}/", "")
    wanted = [case for case in cases(options) if options.only in (None, case.label)]
    if not wanted:
        parser.error(f"--only {options.only}: there are {', '.join(case.label for case in cases(options))}")
    # A GPU's result stands beside the CPU's, not in its place.
    name = benchmark.name if options.device == "cpu" else f"{benchmark.name}_{options.device}"
    say = Console(stderr=True)
    result = run(
        benchmark,
        wanted,
        options.rounds,
        output=options.output or RESULTS / f"{name}.json",
        command=command,
        say=say,
        timeout=options.timeout,
    )
    if finish is not None:
        finish(options, result)
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        # A pipe has no width of its own: 80 columns would cut the table.
        out = Console()
        wide = out if out.is_terminal else Console(width=200)
        wide.print(table(result))
    return result
