"""What a search shows: the live line, the table, the picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from ptune.tuning import trials_plot
from ptune.tuning.trials_table import show_trials
from ptune.tuning.tune_progress import TuneProgress
from ptune.tuning.tune_result import TrialResult, TuneResult, best_of


def trial(number: int, **values: Any) -> TrialResult:
    made = {
        "trial": number, "state": "complete", "encoder": "mlp", "num_virtual_tokens": 10, "init": "random",
        "learning_rate": 10.0**-number, "held_out_loss": float(number), "steps": 8, "seconds": 65.0,
        "measured": ((8, float(number)),), "fault": None,
    }  # fmt: skip
    return TrialResult(**{**made, **values})


TRIALS = (
    trial(1, held_out_loss=3.0),
    trial(2, held_out_loss=2.0, encoder="lstm"),
    trial(3, held_out_loss=1.9, state="pruned", steps=2),
    trial(4, held_out_loss=None, state="failed", steps=None, fault="the loss is nan at step 3"),
    trial(5, held_out_loss=2.5),
    trial(6, held_out_loss=20.0, state="pruned", steps=2, encoder="embedding"),
)


@pytest.fixture
def result(tmp_path: Path) -> TuneResult:
    best = best_of(TRIALS)
    assert best is TRIALS[1]
    return TuneResult(
        folder=tmp_path, frozen_loss=9.0, trials=TRIALS, running=0, best=best, prompt=tmp_path / "best",
        recipe=tmp_path / "best.yaml",
    )  # fmt: skip


def test_the_table_has_complete_trials_first_and_faults_last(result: TuneResult):
    said = io.StringIO()
    show_trials(result, Console(file=said, width=160))
    rows = [line.split("│")[1].strip() for line in said.getvalue().splitlines() if line.startswith("│")]
    assert rows == ["2", "5", "1", "3", "6", "4"]
    assert "failed: the loss is nan at step 3" in said.getvalue()
    assert "best: trial 2, lstm, 10 virtual tokens, start random, rate 0.01: held-out loss 2.0000" in said.getvalue()


def test_the_picture_has_a_mark_for_every_loss(result: TuneResult, monkeypatch: pytest.MonkeyPatch):
    kept: list[Figure] = []
    monkeypatch.setattr(trials_plot, "save_figure", lambda drawn, path: kept.append(drawn) or path)
    trials_plot.plot_trials(result, result.folder / "x.png")
    left, right = kept[0].axes
    top = left.get_ylim()[1]
    for axes, place in ((left, "trial"), (right, "learning_rate")):
        marks = [(line, *line.get_xydata()[0]) for line in axes.lines if len(line.get_xdata()) == 1]
        full = {(x, y) for line, x, y in marks if line.get_markerfacecolor() != "none"}
        hollow = {(x, y) for line, x, y in marks if line.get_markerfacecolor() == "none" and line.get_marker() == "o"}
        ((x, y),) = [(x, y) for line, x, y in marks if line.get_marker() == "^"]
        assert full == {(getattr(TRIALS[number], place), TRIALS[number].held_out_loss) for number in (0, 1, 4)}
        assert hollow == {(getattr(TRIALS[2], place), 1.9)}
        assert x == getattr(TRIALS[5], place)
        assert 3.0 < y < top < 20.0
    (steps,) = [line for line in left.lines if len(line.get_xdata()) > 1]
    assert list(steps.get_ydata()) == [3.0, 2.0, 2.0]
    assert {text.get_text() for text in kept[0].legends[0].get_texts()} == {"mlp", "lstm", "embedding", "best so far"}


def test_a_terminal_has_one_live_line():
    said = io.StringIO()
    console = Console(file=said, force_terminal=True, width=150, color_system=None)
    with TuneProgress(console, total=5) as progress:
        progress.begin(0, "mlp, 10 virtual tokens", None)
        progress.step(1, 4, 2.34567)
        progress._bar.refresh()  # type: ignore[union-attr]
        progress.done(TRIALS[0], 3.0)
        progress.begin(1, "lstm, 10 virtual tokens", 3.0)
        progress.step(2, 4)
        progress._bar.refresh()  # type: ignore[union-attr]
    text = said.getvalue()
    assert "trial 1/5  mlp, 10 virtual tokens" in text
    assert "loss 2.3457  best –" in text
    assert "trial 2/5  lstm, 10 virtual tokens" in text
    assert "best 3.0000" in text
    assert "left" in text
    assert (
        "trial 1/5: mlp, 10 virtual tokens, start random, rate 0.1: held-out loss 3.0000 (the best so far), 1:05"
        in text
    )


def test_a_pipe_has_no_live_line():
    said = io.StringIO()
    with TuneProgress(Console(file=said, width=200), total=5) as progress:
        progress.begin(0, "mlp", None)
        progress.step(1, 4, 2.0)
        for one in TRIALS[2:4]:
            progress.done(one, 2.0)
    first, second = said.getvalue().splitlines()
    assert first.startswith("trial 3/5: mlp, 10 virtual tokens, start random, rate 0.001: ")
    assert first.endswith(": given up after step 2, held-out loss 1.9000, 1:05")
    assert second.endswith("rate 0.0001: failed: the loss is nan at step 3, 1:05")
