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

from architectures import build
from commands import run, run_apart, train_words
from prompting import encoder_prompt
from ptune import PTuneTrainer, TrainRecipe, train
from ptune.errors import ConfigError
from ptune.training import processes
from ptune.training.processes import take_over_sharding

RECIPE = {"model": "m", "data": "d", "output": "o"}


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


@pytest.mark.parametrize(
    ("more", "encoder"),
    [([], "embedding"), (["--fsdp"], "embedding"), ([], "prefix"), ([], "prefix-mlp")],
    ids=["whole", "sharded", "keys and values", "keys and values by an MLP"],
)
def test_two_processes_are_one_with_twice_the_accumulation(
    tmp_path: Path, tiny_model_dir: Path, train_file: Path, held_out_file: Path, more: list[str], encoder: str
):
    """Packed, and with micro-batches that share a prefix where the model is whole in each process."""
    data, given = (tiny_model_dir, train_file, held_out_file), {} if more else {"eval_metrics": "f1"}
    given |= {"encoder": encoder, "num_frozen_tokens": 1 if encoder == "prefix" else 0}
    one = run(*words(*data, tmp_path / "one", gradient_accumulation_steps=4, **given))
    assert one.code == 0, one.err
    launch = ["--nproc-per-node", 2, "--master-port", 0, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command = words(*data, tmp_path / "two", gradient_accumulation_steps=2, **given)
    two = run_apart(*launch, "-m", "ptune", *command, *more, module="torch.distributed.run")
    assert two.code == 0, two.err
    assert ("the frozen layers are in 2 shards" in two.err) is bool(more)
    assert logged(tmp_path / "two", "loss") == pytest.approx(logged(tmp_path / "one", "loss"), abs=1e-5)
    # Nine held-out rows in batches of two on two processes: three rows come twice, and must count once.
    assert logged(tmp_path / "two", "eval_loss") == pytest.approx(logged(tmp_path / "one", "eval_loss"), abs=1e-5)
    assert logged(tmp_path / "two", "eval_f1") == pytest.approx(logged(tmp_path / "one", "eval_f1"), abs=1e-6)
    assert more or logged(tmp_path / "two", "eval_f1")
    torch.testing.assert_close(vectors(tmp_path / "two"), vectors(tmp_path / "one"), atol=1e-5, rtol=0)
    result, alone = json.loads(two.out), json.loads(one.out)
    for name in ("tokens", "steps", "rows", "held_out_rows"):
        assert result[name] == alone[name]
    for name in ("train_loss", "held_out_loss_before", "held_out_loss_after"):
        assert result[name] == pytest.approx(alone[name], abs=1e-5)
    noted = [json.loads((tmp_path / name / "ptune.json").read_text())["base_fingerprint"] for name in ("one", "two")]
    assert noted[0] == noted[1] is not None
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


@pytest.mark.slow
def test_padded_rows_on_layers_that_accelerate_asks_to_shard(
    tmp_path: Path, tiny_model_dir: Path, train_file: Path, held_out_file: Path
):
    """Where a prompt's keys and values were shared, gradients would come to a layer that has been let go."""
    values: dict[str, object] = {"max_steps": 3, "gradient_accumulation_steps": 4}
    one = run(*words(tiny_model_dir, train_file, held_out_file, tmp_path / "one", **values), "--no-packing")
    assert one.code == 0, one.err
    launch = ["--use_fsdp", "--fsdp_version", 2, "--num_processes", 2, "--num_machines", 1, "--main_process_port", 0]
    values["gradient_accumulation_steps"] = 2
    command = words(tiny_model_dir, train_file, held_out_file, tmp_path / "two", **values)
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "ptune"]
    two = run_apart(*launch, *command, "--no-packing", module="accelerate.commands.launch")
    assert two.code == 0, two.err
    assert "the frozen layers are in 2 shards" in two.err
    assert logged(tmp_path / "two", "loss") == pytest.approx(logged(tmp_path / "one", "loss"), abs=1e-5)
    assert logged(tmp_path / "two", "eval_loss") == pytest.approx(logged(tmp_path / "one", "eval_loss"), abs=1e-5)


SCRIPT = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, TrainingArguments
from ptune import PackingCollator, PromptEncoderConfig, PTuneTrainer, get_peft_model

model, output, *fsdp = sys.argv[1:]
torch.manual_seed(0)
model = get_peft_model(AutoModelForCausalLM.from_pretrained(model), PromptEncoderConfig(num_virtual_tokens=4))
rows = [{"input_ids": list(range(5, 9 + at)), "labels": list(range(5, 9 + at))} for at in range(8)]
args = TrainingArguments(
    output, use_cpu=True, report_to="none", max_steps=4, logging_steps=1, save_steps=2, learning_rate=1e-2,
    per_device_train_batch_size=2, train_sampling_strategy="sequential", disable_tqdm=True, save_total_limit=9,
    gradient_accumulation_steps=1 if fsdp else 2, fsdp=bool(fsdp),
)
trainer = PTuneTrainer(model, args, train_dataset=rows, data_collator=PackingCollator())
trainer.train()
local = sum(one.to_local().numel() if hasattr(one, "to_local") else one.numel() for one in model.base.parameters())
if args.process_index == 0:
    print(json.dumps({"loss": [log["loss"] for log in trainer.state.log_history if "loss" in log], "held": local}))
"""


@pytest.mark.slow
def test_a_script_with_ptune_trainer_on_sharded_layers(tmp_path: Path, tiny_model_dir: Path):
    script, found = tmp_path / "script.py", {}
    script.write_text(SCRIPT)
    for number, more in ((1, []), (2, ["fsdp"])):
        launch = ["--nproc-per-node", number, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", script]
        ran = run_apart(*launch, tiny_model_dir, tmp_path / f"{number}", *more, module="torch.distributed.run")
        assert ran.code == 0, ran.err
        found[number] = json.loads(ran.out.splitlines()[-1])
    assert found[2]["loss"] == pytest.approx(found[1]["loss"], abs=1e-5)
    layers = sum(
        weight.numel() for name, weight in load_file(tiny_model_dir / "model.safetensors").items() if ".layers." in name
    )
    assert found[1]["held"] - found[2]["held"] == pytest.approx(layers / 2, rel=0.05)
    for checkpoint in ("checkpoint-2", "checkpoint-4"):
        torch.testing.assert_close(
            vectors(tmp_path / "2" / checkpoint), vectors(tmp_path / "1" / checkpoint), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(
    ("variables", "given", "said", "way_out"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "FSDP version 1", "--fsdp_version 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, {}, "this is the only one", "torchrun"),
        ({}, {"fsdp": True}, "this is the only one", "torchrun"),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            {},
            "DeepSpeed ZeRO-3 shards the frozen model",
            "--fsdp",
        ),
    ],
)
def test_shards_that_no_prompt_trains_on_are_refused_before_anything_is_loaded(
    tmp_path: Path,
    train_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    given: dict[str, bool],
    said: str,
    way_out: str,
):
    args = TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none", **given)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    recipe = TrainRecipe(model="no/such-model", data=str(train_file), output=str(tmp_path / "out"))
    with pytest.raises(ConfigError) as caught:
        train(recipe, args)
    assert said in caught.value.message
    assert way_out in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_sharded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    args = TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none", fsdp=True)
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    monkeypatch.setattr(processes, "init_device_mesh", lambda *_: object())
    with pytest.raises(ConfigError, match="quantization=int8 and FSDP exclude each other"):
        take_over_sharding(args, TrainRecipe(**RECIPE, quantization="int8"))
    with pytest.raises(ConfigError, match="eval_metrics and FSDP exclude each other"):
        take_over_sharding(args, TrainRecipe(**RECIPE, eval_rows=2, eval_metrics=("f1",)))
    with pytest.raises(
        ConfigError, match="device_map='auto' spreads the model over the devices of one process"
    ) as found:
        take_over_sharding(args, TrainRecipe(**RECIPE, device_map="auto"))
    assert "--fsdp" in str(found.value.hint)
    model = encoder_prompt(build("llama"))
    model.base.hf_device_map = {"": "cpu"}
    with pytest.raises(ConfigError, match="whole in every process") as caught:
        PTuneTrainer(model, args)
    assert "--fsdp_cpu_ram_efficient_loading false" in str(caught.value.hint)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_accelerate_launch_on_a_cpu(
    tmp_path: Path, tiny_model_dir: Path, train_file: Path, held_out_file: Path, processes: int
):
    """accelerate starts one process, whatever it is asked for."""
    command = words(tiny_model_dir, train_file, held_out_file, tmp_path / "out", max_steps=2)
    launch = [
        "--cpu",
        "--num_processes",
        processes,
        "--num_machines",
        1,
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    ran = run_apart(*launch, "-m", "ptune", *command, module="accelerate.commands.launch")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["steps"] == 2
    assert ("one process trains, where accelerate launch was asked for more" in ran.err) is (processes > 1)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--fsdp"]], ids=["whole", "sharded"])
def test_two_processes_go_on_where_two_stopped(
    tmp_path: Path, tiny_model_dir: Path, train_file: Path, held_out_file: Path, more: list[str]
):
    launch = ["--nproc-per-node", 2, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "ptune"]
    values = {"save_steps": 2, "save_total_limit": 9, "encoder": "lstm", "encoder_dropout": 0.3, "logging_steps": 3}
    folder = tmp_path / "out"
    whole = words(tiny_model_dir, train_file, held_out_file, folder, **values)
    ran = run_apart(*launch, *whole, *more, module="torch.distributed.run")
    assert ran.code == 0, ran.err
    before = [(name, logged(folder, name)) for name in ("loss", "eval_loss", "grad_norm")]
    encoder = (folder / "encoder.safetensors").read_bytes()
    for step in (4, 6):
        shutil.rmtree(folder / f"checkpoint-{step}")
    alone = run("train", "--resume", folder)
    assert alone.code == 2
    assert "was written by 2 processes, not 1. Go on with as many as it was begun with." in alone.err
    ran = run_apart(*launch, "train", "--resume", folder, *more, module="torch.distributed.run")
    assert ran.code == 0, ran.err
    assert [(name, logged(folder, name)) for name in ("loss", "eval_loss", "grad_norm")] == before
    assert (folder / "encoder.safetensors").read_bytes() == encoder
