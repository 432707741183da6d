"""The training benchmarks: the same work for every contender, and results with the fields that plots and docs read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3MoeConfig

import contenders
import deep_speed
import training_memory
import training_speed
import workload
from architectures import build
from harness import Benchmark, command_line
from ptune.errors import DataError

PNG = b"\x89PNG"


def test_all_contenders_train_the_same_rows_and_lose_alike(settings: dict[str, Any]):
    answers = {name: contenders.train(name, settings) for name in contenders.CONTENDERS}
    assert {one["rows"] for one in answers.values()} == {8}
    assert {one["steps"] for one in answers.values()} == {2}
    assert len({one["tokens"] for one in answers.values()}) == 1
    assert all(one["cpu_seconds"] > 0 and one["peak_gib"] >= 0 and one["gpu"] is None for one in answers.values())
    losses = {name: one["train_loss"] for name, one in answers.items()}
    assert losses["peft"] == pytest.approx(losses["ptune-packed"], abs=1e-4)
    # Grouped, the batches are others than in random order, and the two libraries draw them apart.
    assert losses["peft"] != pytest.approx(losses["peft-grouped"], abs=1e-4)
    one_batch = [contenders.train(name, {**settings, "rows": 4})["train_loss"] for name in contenders.CONTENDERS]
    assert one_batch == pytest.approx([one_batch[0]] * 4, abs=1e-4)
    json.dumps(answers)


def test_batches_of_one_accumulated(settings: dict[str, Any]):
    told = {**settings, "encoder": "lstm", "batch": 1, "accumulation": 4}
    answers = [contenders.train(name, told) for name in ("peft", "ptune-packed")]
    assert [one["steps"] for one in answers] == [2, 2]
    assert answers[0]["train_loss"] == pytest.approx(answers[1]["train_loss"], abs=1e-4)


@pytest.mark.parametrize("encoder", ["prefix", "prefix-mlp"])
def test_prefix_tuning_loses_as_pefts_does(settings: dict[str, Any], encoder: str):
    told = {**settings, "encoder": encoder}
    answers = {name: contenders.train(name, told) for name in ("peft", "ptune-packed")}
    assert answers["peft"]["train_loss"] == pytest.approx(answers["ptune-packed"]["train_loss"], abs=1e-4)
    vectors = contenders.train("ptune-packed", settings)["train_loss"]
    assert answers["peft"]["train_loss"] != pytest.approx(vectors, abs=1e-4)


def test_a_warm_up_leaves_no_trace(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    def cold(told: Any) -> workload.Workload:
        loaded = workload.load(told)
        return replace(loaded, warm_up=loaded.warm_up.select([]))

    warmed = contenders.train("ptune-packed", settings)
    monkeypatch.setattr(contenders, "load", cold)
    assert contenders.train("ptune-packed", settings)["train_loss"] == pytest.approx(warmed["train_loss"], abs=1e-6)


def test_only_rows_of_the_lengths_asked_for(settings: dict[str, Any]):
    lengths = [len(ids) for ids in workload.load(settings).rows["input_ids"]]
    low, high = sorted(lengths)[2], sorted(lengths)[-2]
    assert min(lengths) < low < high < max(lengths)
    told = {**settings, "row_lengths": (low, high)}
    rows = workload.load(told).rows
    assert len(rows) == settings["rows"]
    assert all(low <= len(ids) <= high for ids in rows["input_ids"])
    parser = command_line(training_speed.BENCHMARK, rounds=1)
    workload.add_flags(parser)
    assert workload.common_settings(parser.parse_args(["--row-lengths=3:9"]))["row_lengths"] == (3, 9)


def test_rows_are_drawn_by_the_seed(settings: dict[str, Any]):
    one, again, other = (workload.load({**settings, "seed": seed}) for seed in (1, 1, 2))
    assert len(one.warm_up) == 2
    assert len(one.rows) == 8
    assert one.rows["input_ids"] == again.rows["input_ids"] != other.rows["input_ids"]


def test_rows_of_so_many_tokens(settings: dict[str, Any]):
    rows = workload.load({**settings, "rows": None, "tokens": 200}).rows
    total, longest = sum(map(len, rows["input_ids"])), 64
    assert 200 - longest < total <= 200


@pytest.mark.parametrize("asked", [{"rows": 100}, {"rows": None, "tokens": 100_000}])
def test_too_few_rows(settings: dict[str, Any], asked: dict[str, Any]):
    with pytest.raises(DataError, match="not 10"):
        workload.load({**settings, **asked})


def test_the_tutorials_model_in_size():
    model = workload.random_model({"model": workload.BLOOM, "seed": 0, "device": "meta", "dtype": "bfloat16"})
    assert sum(one.numel() for one in model.parameters()) == 1_303_111_680
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
    assert not any(one.requires_grad for one in model.parameters())


def test_ids_beyond_a_vocabulary_are_folded_and_labels_with_them(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    plain = workload.load(settings).rows
    monkeypatch.setattr(workload, "_pretrained", lambda _: build("llama", vocab_size=100))
    folded = workload.load(settings).rows
    assert max(map(max, plain["input_ids"])) >= 100 > max(map(max, folded["input_ids"]))
    assert list(map(len, folded["input_ids"])) == list(map(len, plain["input_ids"]))
    for ids, labels in zip(folded["input_ids"], folded["labels"], strict=True):
        assert all(label in (-100, one) for one, label in zip(ids, labels, strict=True))
        assert labels[0] == -100 != labels[-1]


def test_the_script_of_keys_and_values(words: list[str], tmp_path: Path, in_this_process: Callable[[Benchmark], None]):
    in_this_process(deep_speed.BENCHMARK)
    deep_speed.run([*words, "--rows=8"])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "ok"
    assert [case["label"] for case in result["cases"]] == ["prefix n=10", "prefix-mlp n=10"]
    for case in result["cases"]:
        ratios = case["contenders"]["ptune-packed"]["ratios"]
        assert set(ratios) == {"peft", "peft-grouped"}
        assert set(ratios["peft"]) >= {"cpu_seconds", "wall_seconds"}


def test_the_speed_script_writes_result_and_plot(
    words: list[str],
    tmp_path: Path,
    in_this_process: Callable[[Benchmark], None],
    capsys: pytest.CaptureFixture[str],
):
    in_this_process(training_speed.BENCHMARK)
    training_speed.run([*words, "--rows=8", f"--plot={tmp_path / 'speed.png'}", "--only=lstm n=10"])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "ok"
    assert [case["label"] for case in result["cases"]] == ["lstm n=10"]
    with pytest.raises(SystemExit):
        training_speed.run([*words, "--only=lstm"])
    assert "mlp n=10, mlp n=50, mlp n=100, lstm n=10" in capsys.readouterr().err
    for case in result["cases"]:
        assert set(case["contenders"]) == {"peft", "peft-grouped", "ptune-padded", "ptune-packed"}
        ours, theirs = case["contenders"]["ptune-packed"], case["contenders"]["peft"]
        by_hand = theirs["rounds"][0]["cpu_seconds"] / ours["rounds"][0]["cpu_seconds"]
        assert ours["ratios"]["peft"]["cpu_seconds"]["median"] == pytest.approx(by_hand)
    assert (tmp_path / "speed.png").read_bytes().startswith(PNG)


def test_the_memory_script_measures_peaks(
    words: list[str],
    tmp_path: Path,
    in_this_process: Callable[[Benchmark], None],
    monkeypatch: pytest.MonkeyPatch,
):
    cases = training_memory.training_cases
    monkeypatch.setattr(training_memory, "training_cases", lambda options: cases(options)[:1])
    in_this_process(training_memory.BENCHMARK)
    training_memory.run([*words, "--rows=8"])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["metrics"] == ["peak_gib"]
    entries = result["cases"][0]["contenders"]
    assert list(entries) == list(contenders.CONTENDERS)
    assert all(entry["peak_gib"]["median"] >= 0 for entry in entries.values())


@pytest.mark.slow
def test_mixtures_of_experts_train_the_same_packed_and_padded(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """Beside PEFT too, whose loss must agree: what `mixtures.py` compares in time is the same training."""
    few = {"hidden_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2, "num_experts": 4}
    config = Qwen3MoeConfig(**{**workload.RANDOM[workload.MOE].to_dict(), **few, "layer_types": None})
    monkeypatch.setitem(workload.RANDOM, workload.MOE, config)
    given = {**settings, "model": workload.MOE, "encoder": "mlp", "n": 3, "batch": 1}
    losses = [contenders.train(name, given)["train_loss"] for name in ("peft", "ptune-packed")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_on_a_gpu_the_tutorials_model_and_batches():
    parser = command_line(training_speed.BENCHMARK, rounds=5)
    workload.add_flags(parser)
    cases = training_speed.training_cases(parser.parse_args(["--device", "cuda"]), fewer=3)
    told = [case.settings for case in cases]
    assert {(one["dtype"], one["encoder"]) for one in told} == {
        (dtype, encoder) for dtype in ("float32", "bfloat16") for encoder in ("mlp", "lstm")
    }
    assert all((one["batch"], one["accumulation"], one["model"]) == (1, 8, workload.BLOOM) for one in told)
    assert [case.rounds for case in cases] == [None, 3, 3, 3]
