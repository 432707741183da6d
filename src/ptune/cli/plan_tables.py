"""What `ptune plan` prints for people: its tables."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ptune.methods.names import METHODS

if TYPE_CHECKING:
    from ptune.planning.clock import MachineRates
    from ptune.planning.forecast import Forecast


def show_plan(
    args: argparse.Namespace,
    found: Sequence[Forecast],
    timed: Sequence[Forecast],
    largest: Mapping[str, int],
    rates: MachineRates | None,
    *,
    rows_of_data: int | None,
) -> None:
    """Print the tables.

    Args:
        args: The command's flags.
        found: The forecasts, for memory.
        timed: The same for rows of average length, for time.
        largest: The most rows that fit, by method.
        rates: How fast this machine is.
        rows_of_data: For the time of an epoch.
    """
    from ptune.cli.quiet import output

    console = output(width=200)
    once = {one.method: one for one in reversed(found)}
    rows: list[Sequence[str]] = [
        (one.title, f"{one.base_parameters:,}", f"{one.trainable_parameters:,}", f"{one.trainable_percent:.4f}%")
        for one in (once[name] for name in args.methods)
    ]
    _table(console, "Parameters", ("condition", "model parameters", "trainable parameters", "trainable"), rows)
    _memory_table(console, found, timed, rates, rows_of_data)
    if args.memory:
        rows = [(METHODS[name].title, _fits(count)) for name, count in largest.items()]
        title = f"Largest batch in {args.memory / 2**30:.1f} GiB, rows of {found[0].length} tokens"
        _table(console, title, ("condition", "rows"), rows)
    if rates is None and args.calibrate:
        print("No time is forecast: this machine has no GPU to ask.")


def _memory_table(
    console: Any,
    found: Sequence[Forecast],
    timed: Sequence[Forecast],
    rates: MachineRates | None,
    rows_of_data: int | None,
) -> None:
    columns = ["condition", "batch", "loaded", "training"]
    columns += ["weights", "gradients", "optimizer", "activations", "logits", "overhead"]
    if rates is not None:
        columns += ["s/step", "tokens/s"] + (["an epoch"] if rows_of_data else [])
    rows: list[Sequence[str]] = []
    for one, average in zip(found, timed, strict=True):
        parts = one.memory
        figures = (parts.weights, parts.gradients, parts.optimizer, parts.activations, parts.logits, parts.overhead)
        written = "" if one.target_length is None else f" → {one.target_length}"
        row = [one.title, f"{one.rows} × {one.length}{written}", f"{one.loaded_gib:.2f}", f"{parts.total:.2f}"]
        row += [f"{figure:.2f}" for figure in figures]
        if rates is not None:
            row += _times(average, rates.step_seconds(average), rows_of_data)
        rows.append(row)
    place = found[0].device.upper() if found[0].device == "cpu" else "CUDA"
    _table(console, f"Memory in GiB, {found[0].dtype} on {place}", columns, rows)


def _fits(count: int) -> str:
    if count:
        return f"{count:,}"
    return "none: shorten --max-length, or use --dtype bfloat16, --activation-checkpointing or another method"


def _times(one: Forecast, seconds: float, rows: int | None) -> list[str]:
    """Time of a step, tokens a second and time of an epoch, as text."""
    from ptune.training.progress import clock

    row = [f"{seconds:.2f}", f"{one.tokens / seconds:,.0f}"]
    if rows:
        row.append(clock(seconds * -(-rows // (one.rows * one.accumulation))))
    return row


def _table(console: Any, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    console.print(title, style="bold", highlight=False)
    table = Table()
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
