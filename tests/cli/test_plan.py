"""`ptune plan`: from a config.json alone to a table, one JSON object, and the command to run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from architectures import build
from commands import run
from ptune.planning import clock
from ptune.planning.clock import MachineRates


@pytest.fixture(scope="session")
def config_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration and nothing else."""
    folder = tmp_path_factory.mktemp("config-only")
    build("llama").config.save_pretrained(folder)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    return folder


def plan(folder: Path, *more: object) -> list[object]:
    return [
        "plan", "--model", folder, "--max-length", 64, "--num-virtual-tokens", 4, "--no-calibrate",
        "--device", "cpu", *more,
    ]  # fmt: skip


def test_tables_for_people(config_only: Path):
    ran = run(*plan(config_only, "--per-device-train-batch-size", "2,4", "--memory", "1GB"))
    assert (ran.code, ran.err) == (0, "")
    for words in ("full fine-tuning", "p-tuning (LSTM)", "LoRA", "trainable parameters", "2 × 64", "4 × 64"):
        assert words in ran.out
    assert "Memory in GiB, float32 on CPU" in ran.out
    assert "Largest batch in 0.9 GiB, rows of 64 tokens" in ran.out
    last = ran.out.rstrip().splitlines()[-1]
    assert last.startswith(f"Next: ptune train --model {config_only} --data DATA --output OUTPUT --encoder mlp")
    assert "\x1b" not in ran.out


def test_one_json_object(config_only: Path):
    ran = run(*plan(config_only, "--methods", "full,mlp", "--memory", "1GiB", "--json"))
    assert (ran.code, ran.err) == (0, "")
    told = json.loads(ran.out)
    assert ran.out.count("\n") == 1
    assert [one["method"] for one in told["forecasts"]] == ["full", "mlp"]
    for one in told["forecasts"]:
        parts = dict(one["memory"])
        assert parts.pop("total") == pytest.approx(sum(parts.values()))
        assert set(parts) == {"weights", "gradients", "optimizer", "activations", "logits", "overhead"}
        assert one["step_seconds"] is None
    assert told["memory_bytes"] == 2**30
    assert told["largest_batch"]["mlp"] > told["largest_batch"]["full"] > 0
    assert told["base_parameters"] == sum(weight.numel() for weight in build("llama").parameters())


@pytest.mark.parametrize("method", ["mlp", "prefix", "prefix-mlp"])
def test_the_command_trains(method: str, config_only: Path, data_file: Path, tiny_model_dir: Path, tmp_path: Path):
    told = json.loads(run(*plan(config_only, "--methods", method, "--json")).out)["command"]
    assert f"--encoder {method} " in told
    words = told.replace(str(config_only), str(tiny_model_dir)).replace("DATA", str(data_file))
    words = words.replace("OUTPUT", str(tmp_path / "out")).split()
    assert words[:2] == ["ptune", "train"]
    assert run(*words[1:], "--max-steps", 1).code == 0


def test_time_where_the_machine_is_asked(config_only: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[dict[str, object]] = []

    def rates(**given: object) -> MachineRates:
        asked.append(given)
        return MachineRates(
            flops_per_second=1e10, own_flops_per_second=1e10, bytes_per_second=1e10, seconds_per_operation=1e-5
        )

    monkeypatch.setattr(clock, "calibrate", rates)
    words = [word for word in plan(config_only, "--methods", "mlp", "--rows", 1000) if word != "--no-calibrate"]
    ran = run(*words)
    assert ran.code == 0
    assert (asked[0]["tokens"], asked[0]["width"], asked[0]["device"]) == (512, 32, "cpu")
    assert "s/step" in ran.out
    assert "an epoch" in ran.out


def test_nothing_fits(config_only: Path):
    ran = run(*plan(config_only, "--methods", "mlp", "--memory", "1MB"))
    assert ran.code == 0
    assert "none: shorten --max-length" in ran.out


def test_no_time_for_a_gpu_that_is_not_here(config_only: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = ["plan", "--model", config_only, "--max-length", 64, "--methods", "mlp", "--device", "cuda"]
    ran = run(*words, "--num-virtual-tokens", 4)
    assert ran.code == 0
    assert "bfloat16 on CUDA" not in ran.out.splitlines()[0]
    assert "No time is forecast: this machine has no GPU to ask." in ran.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "mpl"], "unknown method 'mpl'"),
        (["--methods", ","], "names no method"),
        (["--per-device-train-batch-size", "0"], "0"),
        (["--max-length", "12,x"], "x"),
        (["--memory", "24"], "'24' is no size; write 24GiB"),
        (["--memory", "0GiB"], "is no size"),
        (["--memory", "24 parsecs"], "is no size"),
        (["--methods", "prefix", "--activation-checkpointing"], "drops the keys and values that prefix gives"),
        (["--max-length", "128"], "exceed the model's context of 128 tokens. Use a max_length of at most 124."),
    ],
    ids=" ".join,
)
def test_what_cannot_be_planned(config_only: Path, words: list[str], said: str):
    ran = run(*plan(config_only, *words))
    assert ran.code == 2
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert ran.out == ""


def test_a_model_that_is_not_there(tmp_path: Path):
    ran = run("plan", "--model", tmp_path / "nowhere", "--no-calibrate")
    assert ran.code != 0
    assert "nowhere" in ran.err
    assert ran.err.count("\n") == 1
