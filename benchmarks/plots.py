"""The pictures of the benchmarks, drawn from their results and from nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ptune.comparison.plots import smoothed
from ptune.evaluation.picture import save_figure
from ptune.methods.names import METHODS

COLORS = {"peft": "#8b949e", "peft-grouped": "#57606a", "ptune-padded": "#54aeff", "ptune-packed": "#1f6feb"}
NAMES = {
    "peft": "PEFT",
    "peft-grouped": "PEFT, grouped by length",
    "ptune-padded": "ptune, padded",
    "ptune-packed": "ptune, packed",
}
ENCODERS = {"mlp": "MLP", "lstm": "LSTM"}


def plot_speed(result: Mapping[str, Any], path: Path, *, metric: str = "cpu_seconds") -> Path:
    """Horizontal bars: for every case how many times faster than PEFT each contender is, with least and greatest.

    Args:
        result: Of `training_speed`.
        path: The PNG to write.
        metric: What is compared.
    """
    cases = [case for case in result["cases"] if "ratios" in case["contenders"].get("peft", {})]
    shown = [name for name in NAMES if any("ratios" in case["contenders"].get(name, {}) for case in cases)]
    figure = Figure(figsize=(9, 0.7 + 1.05 * len(cases)), layout="constrained")
    axes = figure.add_subplot()
    height = 0.84 / len(shown)
    for place, name in enumerate(shown):
        spots, spreads = [], []
        for row, case in enumerate(cases):
            entry = case["contenders"].get(name, {})
            if name != "peft" and "peft" not in entry.get("ratios", {}):
                continue
            one = {"median": 1.0, "min": 1.0, "max": 1.0}
            spots.append(row + (place - (len(shown) - 1) / 2) * height)
            spreads.append(one if name == "peft" else entry["ratios"]["peft"][metric])
        middles = [spread["median"] for spread in spreads]
        reach = [
            [spread["median"] - spread["min"] for spread in spreads],
            [spread["max"] - spread["median"] for spread in spreads],
        ]
        bars = axes.barh(
            spots, middles, height * 0.92, color=COLORS[name], label=NAMES[name], xerr=reach, error_kw={"alpha": 0.5}
        )
        axes.bar_label(bars, labels=[f"{middle:.1f}×" for middle in middles], padding=4, fontsize=8.5)
    axes.set_yticks(range(len(cases)), [_prompt(case["settings"]) for case in cases])
    axes.invert_yaxis()
    axes.set_xlabel("examples for the same CPU time, PEFT = 1" if metric == "cpu_seconds" else "speed, PEFT = 1")
    axes.margins(x=0.1)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(shown), frameon=False)
    _plain(axes)
    axes.grid(visible=False, axis="y")
    return save_figure(figure, path)


def plot_scaling(result: Mapping[str, Any], path: Path) -> Path:
    """Four panels: CPU time and peak memory of a step, against virtual tokens and against tokens of text.

    Args:
        result: Of `scaling`.
        path: The PNG to write.
    """
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col")
    sweeps = (("n", "virtual tokens (8 rows of text)"), ("tokens", "tokens of text in the batch (10 virtual tokens)"))
    measures = (("cpu_seconds", "CPU time of a step (s)"), ("peak_gib", "peak above the model (GiB)"))
    for column, (sweep, across) in enumerate(sweeps):
        for row, (metric, up) in enumerate(measures):
            axes: Axes = panels[row][column]
            for name in ("peft", "ptune-packed"):
                points = _points(result, sweep, metric, name)
                if points:
                    axes.plot(
                        *zip(*points, strict=True), color=COLORS[name], marker="o", markersize=4, label=NAMES[name]
                    )
            axes.set_ylim(bottom=0)
            axes.set_xlim(left=0)
            axes.set_ylabel(up)
            axes.set_xlabel(across if row else "")
            _plain(axes)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return save_figure(figure, path)


def _points(result: Mapping[str, Any], sweep: str, metric: str, name: str) -> list[tuple[float, float]]:
    """(size, median) of every case of a sweep that the contender came through; padding is no text."""
    points = []
    for case in result["cases"]:
        entry = case["contenders"].get(name, {})
        if case["settings"]["sweep"] != sweep or metric not in entry:
            continue
        size = case["settings"]["n"] if sweep == "n" else entry["rounds"][0]["tokens"]
        points.append((float(size), float(entry[metric]["median"])))
    return sorted(points)


def _prompt(settings: Mapping[str, Any]) -> str:
    return f"{ENCODERS[settings['encoder']]}, {settings['n']} virtual tokens"


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


LOSS_COLORS = {"prompt-tuning": "#8b949e", "mlp": "#1f6feb", "lstm": "#bf3989"}


def plot_loss_curves(result: Mapping[str, Any], path: Path) -> Path:
    """A column for every data set: the loss of each method, and below it what parts it from prompt tuning.

    Both are running means over the steps. Every seed has its own rows in its own order, the same for all methods, so
    differences are taken within a seed; their band is from the least to the greatest.

    Args:
        result: Of `loss_curves`.
        path: The PNG to write.
    """
    columns = result["data"]
    figure = Figure(figsize=(5.4 * len(columns), 6.4), layout="constrained")
    panels: Any = figure.subplots(2, len(columns), squeeze=False, sharex="col", sharey="row")
    for place, one in enumerate(columns):
        upper, lower = panels[0][place], panels[1][place]
        reference = one["methods"]["prompt-tuning"]["losses"]
        for name, summary in one["methods"].items():
            color, label = LOSS_COLORS[name], f"{METHODS[name].title}, rate {one['rates'][name]:g}"
            mean = [statistics.fmean(values) for values in zip(*map(smoothed, summary["losses"]), strict=True)]
            upper.plot(range(1, len(mean) + 1), mean, color=color, linewidth=1.8, label=label)
            parts = [
                smoothed([its - other for its, other in zip(curve, base, strict=True)])
                for curve, base in zip(summary["losses"], reference, strict=True)
            ]
            by_step = list(zip(*parts, strict=True))
            steps = range(1, len(by_step) + 1)
            lower.plot(steps, [statistics.fmean(values) for values in by_step], color=color, linewidth=1.8)
            low, high = [min(values) for values in by_step], [max(values) for values in by_step]
            lower.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        upper.set(title=one["data"], ylabel="training loss (nats per answer token)")
        upper.legend(frameon=False, fontsize=9)
        lower.set(xlabel="optimizer step", ylabel="the same less prompt tuning's")
        _plain(upper)
        _plain(lower)
    return save_figure(figure, path)


def plot_robustness(result: Mapping[str, Any], path: Path) -> Path:
    """Held-out loss against the learning rate, in shares of ptune's default and of the reference's best.

    Args:
        result: Of `learning`, the part `robustness`.
        path: The PNG to write.
    """
    figure = Figure(figsize=(6.0, 3.8), layout="constrained")
    axes: Any = figure.subplots()
    labels = {"ptune": "ptune, around its default", "reference": "PEFT's start, around its best"}
    for name, color in (("reference", "#8b949e"), ("ptune", "#1f6feb")):
        points = result["points"][name]
        axes.plot(
            [point["factor"] for point in points], [point["held_out_loss"] for point in points],
            color=color, marker="o", linewidth=1.8, label=labels[name],
        )  # fmt: skip
    axes.set(
        xscale="log", xlabel="learning rate, as a share of that", ylabel="held-out loss (nats per answer token)",
        title=f"{result['task']}, {result['virtual_tokens']} virtual tokens",
    )  # fmt: skip
    axes.legend(frameon=False, fontsize=9)
    _plain(axes)
    return save_figure(figure, path)
