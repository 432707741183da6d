"""What is shown and written while a run goes on."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from ptune.errors import OutputError
from ptune.training.plot import plot_loss
from ptune.training.progress import MetricsFile, ProgressReporter, clock, read_metrics


@pytest.fixture
def args(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")


def state(step: int, first: bool = True) -> TrainerState:
    return TrainerState(global_step=step, max_steps=100, is_world_process_zero=first)


def test_metrics_are_json_lines(tmp_path: Path, args: TrainingArguments):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step, logs in enumerate(
        [{"loss": 1.5, "total_flos": 9}, {"loss": float("nan")}, {"loss": torch.tensor(2.0), "n": np.int64(3)}], start=1
    ):
        file.on_log(args, state(step), TrainerControl(), logs=logs)
    file.on_log(args, state(9, first=False), TrainerControl(), logs={"loss": 0.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert lines == [{"step": 1, "loss": 1.5}, {"step": 2, "loss": None}, {"step": 3, "loss": 2.0, "n": 3}]


def test_metrics_that_cannot_be_written(tmp_path: Path, args: TrainingArguments):
    with pytest.raises(OutputError, match="cannot write"):
        MetricsFile(tmp_path / "none" / "metrics.jsonl").on_log(args, state(1), TrainerControl(), logs={"loss": 1.0})


def test_last_line_cut_by_a_crash_is_left_out(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize(("first", "lines"), [(True, 2), (False, 0)])
def test_pipe_gets_a_line_a_log(args: TrainingArguments, first: bool, lines: int):
    out = io.StringIO()
    reporter = ProgressReporter(Console(file=out))
    control = TrainerControl()
    reporter.on_train_begin(args, state(0, first), control)
    reporter.on_step_end(args, state(10, first), control)
    reporter.on_log(args, state(10, first), control, logs={"loss": 1.25, "tokens_per_second": 50.0})
    reporter.on_log(args, state(10, first), control, logs={"eval_loss": 2.5})
    reporter.on_log(args, state(10, first), control, logs={"train_runtime": 1.0})
    reporter.on_train_end(args, state(10, first), control)
    text = out.getvalue()
    assert len(text.splitlines()) == lines
    if first:
        assert text.startswith("step 10/100  loss 1.2500  50 tokens/s  0:0")
        assert "held-out loss 2.5000" in text


def test_terminal_without_a_bar(args: TrainingArguments):
    out = io.StringIO()
    reporter = ProgressReporter(Console(file=out, force_terminal=True), bar=False)
    reporter.on_train_begin(args, state(0), TrainerControl())
    reporter.on_log(args, state(1), TrainerControl(), logs={"loss": 1.0})
    assert "━" not in out.getvalue()
    assert "step 1/100" in out.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (64.6, "1:05"), (7383, "2:03:03"), (-1, "0:00")])
def test_clock(seconds: float, text: str):
    assert clock(seconds) == text


def test_plot_of_nothing_and_of_everything(tmp_path: Path):
    records = [{"step": 1, "loss": 2.0}, {"step": 2, "eval_loss": 1.5}, {"step": 2, "loss": None}]
    for number, (lines, values) in enumerate((([], {}), (records, {"before": 3.0, "after": 1.0}))):
        path = plot_loss(lines, tmp_path / f"{number}.png", title="t", **values)
        assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match="cannot write"):
        plot_loss(records, tmp_path / "none" / "x.png", title="t")
