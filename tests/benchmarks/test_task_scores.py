"""`benchmarks/task_scores.py` on small data: scores are `ptune evaluate`'s, prompts are those that were noted."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from rich.console import Console

import learning
import task_scores
from ptune import evaluate
from ptune.evaluation.columns import ALONE, PROMPT, WRITTEN


@pytest.fixture
def options(data: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What `learning.py` leaves, and the command line that goes on from there."""
    monkeypatch.setattr(learning, "RATES", (1e-2,))
    monkeypatch.setattr(task_scores, "LENGTH", 4)
    monkeypatch.setattr(task_scores, "LADDER", (1e-3, 1e-2, 1e-1))
    given = argparse.Namespace(
        model=str(model_dir), data=str(data), tasks="sst2,e2e", lengths="4", seeds=1, steps=2, held_out=4,
        robustness="none", threads=1, work=str(tmp_path / "work"), output=tmp_path / "learning.json",
    )  # fmt: skip
    learning.measure(given, Console(quiet=True))
    more = {
        "learned": given.output,
        "output": tmp_path / "result.json",
        "full_tasks": "sst2",
        "full_rates": "",
        "full_seeds": 2,
    }
    return argparse.Namespace(**{**vars(given), **more, "scored": 10, "scored_inputs": 3})


def test_every_contender_is_measured_and_kept(options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    result = task_scores.measure(options, Console(quiet=True))
    assert result["status"] == "ok"
    films, places = result["tasks"]
    assert (films["task"], films["items"], films["references"]) == ("sst2", 10, 10)
    assert (places["task"], places["items"], places["references"]) == ("e2e", 3, 6)
    counts = [[len(runs) for runs in task["contenders"].values()] for task in result["tasks"]]
    assert counts == [[1, 1, 1, 1, 1, 2], [1, 1, 1, 1, 1]]
    assert films["full_rates_tried"][f"{films['full_rate']:g}"] == min(films["full_rates_tried"].values())
    assert all(run["learning_rate"] == films["full_rate"] for run in films["contenders"][task_scores.FULL])
    assert json.loads(options.output.read_text())["tasks"] == json.loads(json.dumps(result["tasks"]))
    monkeypatch.setattr(task_scores.Answerer, "open", None)
    monkeypatch.setattr(task_scores, "load_model", None)
    monkeypatch.setattr(task_scores, "load_base", None)
    again = task_scores.measure(options, Console(quiet=True))
    assert (again["tasks"], again["runs"]) == (result["tasks"], result["runs"])
    task_scores.report(again, Console(quiet=True))


@pytest.mark.parametrize("task", ["sst2", "e2e"])
def test_the_scores_are_those_of_ptune_evaluate(options: argparse.Namespace, task: str) -> None:
    options.tasks, options.full_rates = task, "0.01"
    (found,) = task_scores.measure(options, Console(quiet=True))["tasks"]
    work = Path(options.work) / task
    ours = evaluate(
        work / "ptune-n4-2-steps-rate-default-seed-0",
        data=str(work / "scored.json"),
        metrics=task_scores.SCORES[task],
        shots=task_scores.SHOTS,
        shots_data=str(work / "train.json"),
        written_prompt=task_scores.IN_WORDS[task],
    )
    pairs = {task_scores.OURS: PROMPT, task_scores.ALONE: ALONE, task_scores.SHOWN: WRITTEN}
    for who, column in pairs.items():
        for name in task_scores.SCORES[task]:
            assert found["contenders"][who][0]["scores"][name]["value"] == pytest.approx(ours.score(name, column))


def test_a_prompt_that_is_not_the_one_noted_is_refused(options: argparse.Namespace) -> None:
    noted = json.loads(options.learned.read_text())
    noted["compared"][0]["held_out_loss"]["ptune"][0] += 0.1
    options.learned.write_text(json.dumps(noted))
    with pytest.raises(RuntimeError, match="was noted"):
        task_scores.measure(options, Console(quiet=True))
