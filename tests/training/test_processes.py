"""Several processes give what one gives: `torchrun` with two gloo processes, and `accelerate launch`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from commands import run, run_apart, train_words
from ptune import TrainRecipe, train
from ptune.errors import ConfigError


def logged(folder: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def vectors(folder: Path) -> torch.Tensor:
    return load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]


def words(model: Path, data: Path, held_out: Path, folder: Path, **values: object) -> list[object]:
    settings = {
        "max_steps": 6,
        "logging_steps": 1,
        "eval_data": held_out,
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "learning_rate": 1e-2,
    }
    return train_words(model, data, folder, "--use-cpu", "--json", **{**settings, **values})


def test_two_processes_are_one_with_twice_the_accumulation(
    tmp_path: Path, tiny_model_dir: Path, train_file: Path, held_out_file: Path
):
    """Packed, and with micro-batches that share a prefix."""
    data, given = (tiny_model_dir, train_file, held_out_file), {"eval_metrics": "f1"}
    one = run(*words(*data, tmp_path / "one", gradient_accumulation_steps=4, **given))
    assert one.code == 0, one.err
    launch = ["--nproc-per-node", 2, "--master-port", 0, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command = words(*data, tmp_path / "two", gradient_accumulation_steps=2, **given)
    two = run_apart(*launch, "-m", "ptune", *command, module="torch.distributed.run")
    assert two.code == 0, two.err
    assert logged(tmp_path / "two", "loss") == pytest.approx(logged(tmp_path / "one", "loss"), abs=1e-5)
    # Nine held-out rows in batches of two on two processes: three rows come twice, and must count once.
    assert logged(tmp_path / "two", "eval_loss") == pytest.approx(logged(tmp_path / "one", "eval_loss"), abs=1e-5)
    assert logged(tmp_path / "two", "eval_f1") == pytest.approx(logged(tmp_path / "one", "eval_f1"), abs=1e-6)
    assert logged(tmp_path / "two", "eval_f1")
    torch.testing.assert_close(vectors(tmp_path / "two"), vectors(tmp_path / "one"), atol=1e-5, rtol=0)
    result, alone = json.loads(two.out), json.loads(one.out)
    for name in ("tokens", "steps", "rows", "held_out_rows"):
        assert result[name] == alone[name]
    for name in ("train_loss", "held_out_loss_before", "held_out_loss_after"):
        assert result[name] == pytest.approx(alone[name], abs=1e-5)
    tokens = [re.findall(r"\(([\d,]+) answer tokens\)", ran.err) for ran in (one, two)]
    assert tokens[0] == tokens[1] != []
    assert "batches: 2 rows packed, no padding; 4 to an optimizer step" in two.err
    assert two.err.count("trainable params: ") == 1, "only the first process speaks"
    assert "Warning" not in two.err


@pytest.mark.slow
def test_two_processes_and_a_quantized_model(
    tmp_path: Path, tiny_model_dir: Path, train_file: Path, held_out_file: Path
):
    """Its weights are tensors of a kind that DDP cannot send round, and need not."""
    pytest.importorskip("torchao")
    values = {"quantization": "int8", "max_steps": 3}
    one = run(
        *words(tiny_model_dir, train_file, held_out_file, tmp_path / "one", gradient_accumulation_steps=2, **values)
    )
    assert one.code == 0, one.err
    launch = ["--nproc-per-node", 2, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "ptune"]
    command = words(tiny_model_dir, train_file, held_out_file, tmp_path / "two", **values)
    two = run_apart(*launch, *command, module="torch.distributed.run")
    assert two.code == 0, two.err
    assert logged(tmp_path / "two", "loss") == pytest.approx(logged(tmp_path / "one", "loss"), abs=1e-4)


@pytest.mark.parametrize(
    ("variables", "way"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "DeepSpeed ZeRO-3"),
    ],
)
def test_a_sharded_model_is_refused_before_it_is_loaded(
    tmp_path: Path, train_file: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], way: str
):
    args = TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    recipe = TrainRecipe(model="no/such-model", data=str(train_file), output=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=rf"{way} shards the frozen model.*") as caught:
        train(recipe, args)
    assert "DDP" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_accelerate_launch(tmp_path: Path, tiny_model_dir: Path, train_file: Path, held_out_file: Path):
    command = words(tiny_model_dir, train_file, held_out_file, tmp_path / "out", max_steps=2)
    launch = ["--cpu", "--num_processes", 1, "--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no"]
    ran = run_apart(*launch, "-m", "ptune", *command, module="accelerate.commands.launch")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["steps"] == 2


@pytest.mark.slow
def test_two_processes_go_on_where_two_stopped(
    tmp_path: Path, tiny_model_dir: Path, train_file: Path, held_out_file: Path
):
    launch = ["--nproc-per-node", 2, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "ptune"]
    values = {"save_steps": 2, "save_total_limit": 9, "encoder": "lstm", "encoder_dropout": 0.3, "logging_steps": 3}
    folder = tmp_path / "out"
    whole = words(tiny_model_dir, train_file, held_out_file, folder, **values)
    ran = run_apart(*launch, *whole, module="torch.distributed.run")
    assert ran.code == 0, ran.err
    before = [(name, logged(folder, name)) for name in ("loss", "eval_loss", "grad_norm")]
    encoder = (folder / "encoder.safetensors").read_bytes()
    for step in (4, 6):
        shutil.rmtree(folder / f"checkpoint-{step}")
    alone = run("train", "--resume", folder)
    assert alone.code == 2
    assert "was written by 2 processes, not 1. Go on with as many as it was begun with." in alone.err
    ran = run_apart(*launch, "train", "--resume", folder, module="torch.distributed.run")
    assert ran.code == 0, ran.err
    assert [(name, logged(folder, name)) for name in ("loss", "eval_loss", "grad_norm")] == before
    assert (folder / "encoder.safetensors").read_bytes() == encoder
