"""Scores of the held-out rows while a prompt trains: those of `evaluate`; they change nothing, and choose the best."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ptune import evaluate
from ptune.errors import ConfigError, DataError
from ptune.recipe import TrainRecipe
from ptune.training import train as story
from ptune.training.progress import read_metrics
from ptune.training.train import TrainResult, train

QUIET = Console(quiet=True)


@pytest.fixture
def task(tiny_model_dir: Path, train_file: Path, held_out_file: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_model_dir),
        "data": str(train_file),
        "eval_data": str(held_out_file),
        "output": str(tmp_path / "out"),
        "num_virtual_tokens": 6,
    }


def run(recipe: dict[str, Any], **values: Any) -> TrainResult:
    settings = {"max_steps": 4, "logging_steps": 1, "use_cpu": True, "eval_strategy": "steps", "eval_steps": 2}
    return train(TrainRecipe(**recipe), {**settings, "learning_rate": 0.03, "save_strategy": "no", **values}, QUIET)


def logged(result: TrainResult, name: str) -> list[float]:
    return [line[name] for line in read_metrics(result.folder / "metrics.jsonl") if name in line]


def test_they_are_those_of_an_evaluation(task: dict[str, Any]):
    names = ["tokens", "exact_match", "f1", "accuracy", "macro_f1"]
    result = run({**task, "eval_metrics": names}, max_steps=6)
    found = evaluate(
        result.folder, data=task["eval_data"], metrics=names, max_length=256, bootstrap=5, shots=0,
        labels=sorted({json.loads(one)["output"] for one in lines_of(task["data"], task["eval_data"])}),
    )  # fmt: skip
    for metric in found.metrics:
        values = logged(result, f"eval_{metric.metric.name}")
        assert len(values) == 3
        assert values[-1] == pytest.approx(metric.scores["prompt"].value, rel=1e-5), metric.metric.name
    assert len(set(logged(result, "eval_perplexity"))) == 3


def lines_of(*paths: str) -> Iterator[str]:
    for path in paths:
        yield from map(json.dumps, json.loads(Path(path).read_text()))


def test_a_run_with_them_is_the_run_without(task: dict[str, Any], tmp_path: Path):
    dropout = {**task, "encoder": "lstm", "encoder_dropout": 0.3}
    one = run(dropout)
    other = run({**dropout, "output": str(tmp_path / "other"), "eval_metrics": ["f1", "accuracy", "token_accuracy"]})
    assert logged(one, "loss") == logged(other, "loss")
    assert (one.folder / "encoder.safetensors").read_bytes() == (other.folder / "encoder.safetensors").read_bytes()


@pytest.mark.parametrize(("name", "best"), [("f1", 4), ("eval_f1", 4), ("perplexity", 6), ("loss", None)])
def test_the_best_checkpoint_is_chosen_by_one(
    name: str, best: int | None, task: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    scripted = iter([{"f1": 0.1, "perplexity": 3.0}, {"f1": 0.3, "perplexity": 2.0}, {"f1": 0.2, "perplexity": 1.0}])
    monkeypatch.setattr(story, "metrics_of_run", lambda *_: lambda: next(scripted))
    result = run(
        {**task, "eval_metrics": ["f1", "perplexity"]}, max_steps=6, save_strategy="steps", save_steps=2,
        save_total_limit=9, load_best_model_at_end=True, metric_for_best_model=name,
    )  # fmt: skip
    losses = logged(result, "eval_loss")
    step = best or 2 * (losses.index(min(losses)) + 1)
    kept = result.folder / f"checkpoint-{step}" / "encoder.safetensors"
    assert (result.folder / "encoder.safetensors").read_bytes() == kept.read_bytes()


def test_early_stopping_goes_by_it(task: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    scripted = iter([{"f1": score} for score in (0.1, 0.4, 0.3, 0.4, 0.9)])
    monkeypatch.setattr(story, "metrics_of_run", lambda *_: lambda: next(scripted))
    result = run(
        {**task, "eval_metrics": ["f1"], "early_stopping_patience": 2}, max_steps=10, save_strategy="steps",
        save_steps=2, save_total_limit=9, metric_for_best_model="f1",
    )  # fmt: skip
    assert result.steps == 8
    kept = result.folder / "checkpoint-4" / "encoder.safetensors"
    assert (result.folder / "encoder.safetensors").read_bytes() == kept.read_bytes()


def test_what_cannot_be_measured(task: dict[str, Any], tmp_path: Path):
    for changed, values, error, says in (
        ({"eval_metrics": ["exakt_match"]}, {}, ConfigError, "Did you mean 'exact_match'"),
        ({"eval_metrics": ["f1"], "eval_data": None}, {}, ConfigError, "eval_metrics needs held-out rows"),
        ({}, {"metric_for_best_model": "f1"}, ConfigError, "--eval-metrics f1"),
        ({"eval_metrics": ["f1"]}, {"metric_for_best_model": "f2"}, ConfigError, "Did you mean 'f1'"),
        ({"eval_metrics": ["json"]}, {}, DataError, "is no JSON object"),
    ):
        with pytest.raises(error, match=says):
            run({**task, **changed}, **values)
        assert not (tmp_path / "out").exists()
