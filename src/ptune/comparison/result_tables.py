"""The tables of a comparison as rows of text: the tutorial's table first, then time, loss and size.

GiB are units of 2^30 bytes, kB and MB of 10^3 and 10^6.
"""

from __future__ import annotations

from collections.abc import Sequence

from ptune.choices import LM
from ptune.comparison.summary import Comparison, MethodSummary, Spread
from ptune.evaluation.page import TextTable

_NONE = "–"
_HOW = (
    "ptune's prompts train on packed rows with the head on answer tokens; full fine-tuning, LoRA and PEFT's prompts "
    "train through transformers.Trainer, with padded batches."
)
_HOW_FOR_TASKS = (
    "ptune's prompts of a decoder train on packed rows; those of other models, full fine-tuning, LoRA and PEFT's "
    "prompts on padded batches. A head that is not in the checkpoint trains with every method."
)
_SHARES = ("full", "mlp", "lstm")
"""The conditions of the tutorial's table."""


def tables(comparison: Comparison) -> list[TextTable]:
    """All tables of a comparison, in order."""
    found = [parameters_and_memory(comparison), speed_and_loss(comparison)]
    if comparison.on_cuda:
        found.append(_cuda_memory(comparison))
    return found


def parameters_and_memory(comparison: Comparison) -> TextTable:
    """The tutorial's table: parameters, and memory before and in training."""
    what = "tensors on the GPU" if comparison.on_cuda else "resident memory above the process before the model"
    rows = []
    for one in comparison.methods:
        if not one.ok:
            rows.append((one.title, short_status(one), *[_NONE] * 4))
            continue
        rows.append(
            (
                one.title,
                _count(comparison.base.all_parameters),
                _count(one.trainable_parameters),
                f"{one.trainable_percent:.4f}%",
                spread(one.loaded_gib, 2),
                spread(one.peak_gib, 2),
            )
        )
    columns = ("condition", "model parameters", "trainable parameters", "trainable", "loaded (GiB)", "training (GiB)")
    return TextTable("Parameters and memory", columns, tuple(rows), f"Memory: {what}, GiB = 2^30 bytes.")


def speed_and_loss(comparison: Comparison) -> TextTable:
    """Time, loss and size."""
    rows: list[tuple[str, ...]] = []
    columns = (
        "condition",
        "learning rate",
        "step (s)",
        *([] if comparison.on_cuda else ["CPU time (s)"]),
        "tokens/s",
        "loss, first tenth",
        "loss, last tenth",
        "held-out loss",
        "on disk",
    )
    if comparison.base.held_out_loss is not None:
        empty = [_NONE] * (len(columns) - 3)
        rows.append(("the model alone", *empty, f"{comparison.base.held_out_loss:.4f}", _NONE))
    for one in comparison.methods:
        if not one.ok:
            rows.append((one.title, short_status(one), *[_NONE] * (len(columns) - 2)))
            continue
        first, last = loss_ends(one)
        rows.append(
            (
                one.title,
                f"{one.learning_rate:g}",
                spread(one.step_seconds, 2),
                *([] if comparison.on_cuda else [spread(one.step_cpu_seconds, 2)]),
                spread(one.tokens_per_second, 0),
                f"{first:.3f}",
                f"{last:.3f}",
                spread(one.held_out_loss, 4),
                size(one),
            )
        )
    note = f"Step: median. Losses: nats per {comparison.unit}. On disk: what is needed to use it, beside the model."
    return TextTable("Speed, loss and size", columns, tuple(rows), note)


def _cuda_memory(comparison: Comparison) -> TextTable:
    rows = [
        (one.title, spread(one.peak_gib, 2), spread(one.reserved_gib, 2), spread(one.device_gib, 2))
        for one in comparison.methods
    ]
    note = "Allocated: what tensors took. Reserved: what PyTorch held. Device: what the driver had given to everybody."
    return TextTable("GPU memory in training", ("condition", "allocated", "reserved", "device"), tuple(rows), note)


def memory_ratio(comparison: Comparison) -> str | None:
    """The tutorial's three conditions as shares of full fine-tuning's memory."""
    peaks = {one.method: one.peak_gib.mean for one in comparison.methods if one.peak_gib is not None}
    there = [name for name in _SHARES if name in peaks]
    if not peaks.get("full") or len(there) < 2:
        return None
    shares = " : ".join(f"{peaks[name] / peaks['full']:.2f}" for name in there)
    return f"Memory in training, {' : '.join(there)}, full = 1: {shares}."


def loss_ends(one: MethodSummary) -> tuple[float, float]:
    """Mean training loss over the first and the last tenth of the steps, at least one step each."""
    losses = [point[1] for point in one.losses]
    if not losses:
        return float("nan"), float("nan")
    share = max(len(losses) // 10, 1)
    return sum(losses[:share]) / share, sum(losses[-share:]) / share


def short_status(one: MethodSummary) -> str:
    """What went wrong, in a few words; the whole of it stands below the tables."""
    return one.status.partition(":")[0]


def spread(value: Spread | None, digits: int) -> str:
    """`1.23`, or `1.23 (1.20–1.31)` where the seeds differ as far as the digits show."""
    if value is None:
        return _NONE
    mean, low, high = (f"{number:,.{digits}f}" for number in (value.mean, value.low, value.high))
    return mean if low == high else f"{mean} ({low}–{high})"


def size(one: MethodSummary) -> str:
    """Bytes on disk in a fitting unit."""
    if one.bytes_on_disk is None:
        return _NONE
    count = one.bytes_on_disk
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB"


def _count(number: int | None) -> str:
    return _NONE if number is None else f"{number:,}"


def facts(comparison: Comparison) -> Sequence[str]:
    """Sentences on how it was measured."""
    recipe, given = comparison.settings["recipe"], comparison.settings["arguments"]
    batch = given.get("per_device_train_batch_size", 8)
    together = given.get("gradient_accumulation_steps", 1)
    steps = next((run.steps for run in comparison.runs if run.steps), None)
    place = comparison.machine["gpu"] if comparison.on_cuda else comparison.machine["cpu"]
    seeds = comparison.settings["comparison"]["seeds"]
    said = [
        f"Model: {recipe['model']}. Data: {recipe['data']}, rows up to {recipe['max_length']} tokens.",
        f"{steps} steps of {batch} rows" + (f", {together} batches to a step" if together > 1 else "") + ".",
        f"{recipe['num_virtual_tokens']} virtual tokens; {seeds} run{'s' if seeds > 1 else ''} of each method"
        + (", means with the least and the greatest in brackets." if seeds > 1 else "."),
        "Rows and their order: "
        + ("the same for all methods (checked)." if comparison.same_rows else "NOT the same for all methods."),
        _HOW if comparison.settings["recipe"].get("task", LM) == LM else _HOW_FOR_TASKS,
        f"Machine: {place}, {comparison.machine['cores']} cores, {comparison.machine['memory_gib']} GiB; "
        + ", ".join(f"{name} {version}" for name, version in comparison.versions.items())
        + ".",
    ]
    ratio = memory_ratio(comparison)
    said += [ratio] if ratio else []
    said += [f"{one.title}: {one.status}" for one in comparison.methods if one.status != "ok"]
    return said
