"""`--report-to tensorboard` from the command to the event file, read back by TensorBoard's own reader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from commands import run, train_words
from ptune.memory import measure
from ptune.memory.measure import memory_now


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"instruction": f"say {at}", "output": f"{at}!"} for at in range(20)]))
    return path


def test_a_run_as_events(tiny_model_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    out = tmp_path / "out"
    words = ("--report-to", "tensorboard", "--logging-steps", 1, "--eval-rows", 4)
    ran = run(*train_words(tiny_model_dir, data, out, *words))
    assert ran.code == 0, ran.err
    assert f"TensorBoard: tensorboard --logdir {out / 'runs'}" in ran.err
    (folder,) = (out / "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    for name in ("loss", "learning_rate", "tokens_per_second", "memory_gib", "memory_peak_gib", "grad_norm"):
        told = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert told == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in steps]
    evaluated = [line for line in lines if "eval_loss" in line]
    assert evaluated
    assert [event.value for event in events.Scalars("eval/loss")] == pytest.approx(
        [line["eval_loss"] for line in evaluated], rel=1e-6
    )
    arguments = events.Tensors("args/text_summary")[0].tensor_proto.string_val[0]
    assert b'"learning_rate"' in arguments
    # A second run stands beside the first; neither is in the other's way.
    assert run(*train_words(tiny_model_dir, data, out, *words, "--overwrite")).code == 0
    assert folder.is_dir()


@pytest.mark.parametrize(("name", "said"), [("wandb", "pip install wandb"), ("paper", "paper is not supported")])
def test_a_logger_that_is_not_there(
    name: str, said: str, tiny_model_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    ran = run(*train_words(tiny_model_dir, data, tmp_path / "out", "--report-to", name))
    assert ran.code != 0
    assert said in ran.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_memory_on_the_cpu():
    found = memory_now()
    assert found.keys() == {"memory_gib", "memory_peak_gib"}
    assert found["memory_peak_gib"] >= found["memory_gib"] > 0


def test_cuda_tells_three_kinds_of_memory_apart(monkeypatch: pytest.MonkeyPatch):
    sizes = {"memory_allocated": 1, "max_memory_allocated": 2, "memory_reserved": 3}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (6 * measure.GIB, 10 * measure.GIB))
    for name, size in sizes.items():
        monkeypatch.setattr(torch.cuda, name, lambda size=size: size * measure.GIB)
    assert memory_now() == {
        "memory_gib": 1,
        "memory_peak_gib": 2,
        "memory_reserved_gib": 3,
        "memory_device_gib": 4,
    }
