"""A run that is cut off anywhere and goes on is the run that was left alone, to the last bit."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import Trainer, TrainingArguments

import ptune.training.checkpoint_store as checkpoint_store
from ptune import PTunedModel
from ptune.errors import ConfigError, OutputError, PromptError, RunStoppedError, TrainingError
from ptune.model.wrapper import PTunedModel as Wrapper
from ptune.recipe import TrainRecipe
from ptune.training.checkpoint_store import CheckpointStore
from ptune.training.checkpoints import check_whole, checkpoints
from ptune.training.progress import read_metrics
from ptune.training.train import TrainResult, train
from ptune.training.trainer import PTuneTrainer

QUIET = Console(quiet=True)
SAME = ("loss", "eval_loss", "grad_norm", "learning_rate", "train_loss", "epoch")


class Killed(BaseException):
    """What ends a process that nobody may catch."""


def run(recipe: dict[str, Any], **values: Any) -> TrainResult:
    made = TrainRecipe(num_virtual_tokens=4, **recipe)
    return train(made, {"logging_steps": 1, "use_cpu": True, **values}, QUIET)


@pytest.fixture
def task(tiny_model_dir: Path, train_file: Path, tmp_path: Path) -> dict[str, Any]:
    return {"model": str(tiny_model_dir), "data": str(train_file), "output": str(tmp_path / "out")}


def outcome(folder: Path) -> dict[str, Any]:
    logged = [
        {"step": line["step"], **{name: line[name] for name in SAME if name in line}}
        for line in read_metrics(folder / "metrics.jsonl")
    ]
    return {"logged": logged, **{name: (folder / name).read_bytes() for name in ("encoder.safetensors",)}}


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the next run end right after, or in the middle of, its n-th checkpoint."""
    write, finish = CheckpointStore._write, checkpoint_store.finish_checkpoint

    def cut(after: int | None = None, within: int | None = None) -> None:
        count = iter(range(1, 1000))

        def counted(self: Any, *args: Any) -> None:
            number = next(count)
            if number == within:
                monkeypatch.setattr(checkpoint_store, "finish_checkpoint", stop)
            write(self, *args)
            if number == after:
                raise Killed

        def stop(*_args: Any, **_kwargs: Any) -> None:
            raise Killed

        monkeypatch.setattr(CheckpointStore, "_write", counted)
        monkeypatch.setattr(checkpoint_store, "finish_checkpoint", finish)

    return cut


# 32 rows in batches of 5: epochs of 7 steps.
SETUPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "measured each epoch": ({"eval_rows": 5}, {"save_steps": 7, "max_steps": 17}),
    "logged over a checkpoint": ({"encoder_dropout": 0.3}, {"save_steps": 3, "logging_steps": 5, "max_steps": 11}),
    "logged by epochs": (
        {"eval_rows": 5, "encoder": "lstm", "encoder_dropout": 0.3},
        {"save_steps": 7, "logging_strategy": "epoch", "max_steps": 14},
    ),
    "saved by epochs": ({"eval_rows": 5, "packing": False}, {"save_strategy": "epoch", "max_steps": 16}),
    "accumulated": (
        {"encoder": "lstm", "encoder_dropout": 0.3},
        {"gradient_accumulation_steps": 3, "save_steps": 2, "logging_steps": 3, "max_steps": 8},
    ),
    "best kept": (
        {"eval_rows": 5},
        {
            "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "max_steps": 8, "load_best_model_at_end": True,
            "save_total_limit": 1, "greater_is_better": True, "metric_for_best_model": "loss",
        },
    ),
    "early stopping": (
        {"eval_rows": 5, "early_stopping_patience": 2},
        {
            "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 30,
            "learning_rate": 0.1, "greater_is_better": True, "metric_for_best_model": "loss",
        },
    ),
    "virtual tokens inside the text": (
        {"template": "{prompt:2}{instruction}{prompt:2:task} It was {output}.", "eval_rows": 5},
        {"gradient_accumulation_steps": 2, "save_steps": 2, "max_steps": 6, "eval_steps": 3},
    ),
    "keys and values": (
        {"encoder": "prefix", "num_frozen_tokens": 1, "eval_rows": 5},
        {"gradient_accumulation_steps": 2, "save_steps": 2, "max_steps": 6, "eval_steps": 3},
    ),
    "keys and values by an MLP, padded": (
        {"encoder": "prefix-mlp", "packing": False},
        {"gradient_accumulation_steps": 2, "save_steps": 2, "max_steps": 6},
    ),
    "measured at the start": (
        {"eval_rows": 5}, {"eval_on_start": True, "save_steps": 2, "max_steps": 4, "eval_strategy": "no"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("setup", SETUPS)
def test_cut_off_after_any_checkpoint(setup: str, task: dict[str, Any], tmp_path: Path, cut_off: Callable[..., None]):
    recipe, settings = SETUPS[setup]
    settings = {"per_device_train_batch_size": 5, **settings}
    cut_off()
    whole = run({**task, **recipe}, **settings)
    wanted = outcome(whole.folder)
    steps = whole.steps
    seen = 0
    for number in range(1, 40):
        folder = tmp_path / f"cut-{number}"
        cut_off(after=number)
        try:
            run({**task, **recipe, "output": str(folder)}, **settings)
            break  # that many checkpoints are not written
        except Killed:
            pass
        cut_off()
        resumed = run({**task, **recipe, "output": str(folder), "resume": True}, **settings)
        assert outcome(folder) == wanted, f"cut off after checkpoint {number}"
        assert resumed.steps == steps
        assert resumed.train_loss == whole.train_loss
        assert resumed.tokens == whole.tokens
        assert (resumed.after and resumed.after.loss) == (whole.after and whole.after.loss)
        seen += 1
    assert seen >= 2


def test_cut_off_within_a_save(task: dict[str, Any], tmp_path: Path, cut_off: Callable[..., None]):
    settings = {"save_steps": 2, "max_steps": 6, "per_device_train_batch_size": 5}
    cut_off()
    wanted = outcome(run(task, **settings).folder)
    folder = tmp_path / "cut"
    cut_off(within=2)
    with pytest.raises(Killed):
        run({**task, "output": str(folder)}, **settings)
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-2"]
    assert (folder / ".checkpoint-4.new").is_dir()
    cut_off()
    run({**task, "output": str(folder), "resume": True}, **settings)
    assert outcome(folder) == wanted
    assert not list(folder.glob(".checkpoint-*"))


def test_a_run_that_stopped_early_does_not_go_on(task: dict[str, Any]):
    recipe, settings = SETUPS["early stopping"]
    settings = {"per_device_train_batch_size": 5, **settings}
    first = run({**task, **recipe}, **settings)
    assert first.steps < 30
    # The highest loss is called the best here; the loss falls, so that it soon gets no better.
    evaluated = [line["eval_loss"] for line in read_metrics(first.folder / "metrics.jsonl") if "eval_loss" in line]
    assert evaluated.index(max(evaluated)) == len(evaluated) - 3
    assert first.after is not None
    assert first.after.loss == pytest.approx(max(evaluated), abs=1e-5)
    again = run({**task, **recipe, "resume": True}, **settings)
    assert (again.steps, again.train_loss) == (first.steps, first.train_loss)


def test_more_epochs_go_on_from_a_finished_run(task: dict[str, Any]):
    first = run(task, max_steps=4, lr_scheduler_type="constant", warmup_steps=0)
    more = run({**task, "resume": True}, max_steps=8, lr_scheduler_type="constant", warmup_steps=0)
    longer = run({**task, "output": f"{task['output']}-2"}, max_steps=8, lr_scheduler_type="constant", warmup_steps=0)
    assert (first.steps, more.steps) == (4, 8)
    # The last step of the first run was logged twice as often, but trained the same.
    assert outcome(more.folder)["encoder.safetensors"] == outcome(longer.folder)["encoder.safetensors"]


def test_a_whole_checkpoint_is_all_that_a_run_needs(task: dict[str, Any], tmp_path: Path):
    whole = run({**task, "encoder_dropout": 0.2}, max_steps=6, save_steps=3, save_total_limit=9)
    moved = tmp_path / "moved" / "checkpoint-3"
    shutil.copytree(whole.folder / "checkpoint-3", moved)
    other = {**task, "encoder_dropout": 0.2, "output": str(tmp_path / "new"), "resume": str(moved)}
    assert outcome(run(other, max_steps=6, save_steps=3).folder) == outcome(whole.folder)


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ({"max_length": 20}, {}, "it was trained on other rows"),
        ({"eval_rows": 3}, {}, "it was trained on other rows"),
        ({"template": "{instruction}? {output}"}, {}, "it was trained on other rows"),
        ({"encoder": "lstm"}, {}, "encoder=embedding, not lstm"),
        ({"packing": False}, {}, "packing=True, not False"),
        ({}, {"per_device_train_batch_size": 3}, "per_device_train_batch_size=8, not 3"),
        ({}, {"gradient_accumulation_steps": 2}, "gradient_accumulation_steps=1, not 2"),
        ({}, {"learning_rate": 0.5}, "learning_rate=0.06, not 0.5"),
        ({}, {"seed": 7}, "seed=42, not 7"),
    ],
)
def test_another_run_is_not_gone_on_with(
    task: dict[str, Any], recipe: dict[str, Any], settings: dict[str, Any], message: str
):
    first = run(task, max_steps=2, save_steps=2)
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=message) as caught:
        run({**task, **recipe, "resume": True}, **{"max_steps": 2, "save_steps": 2, **settings})
    assert f"--init-from {first.folder / 'checkpoint-2'}" in str(caught.value)
    assert {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()} == before


# ---- stopped by a signal ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("step", [1, 4, 7, 9])
def test_a_signal_saves_and_what_goes_on_is_the_same(
    task: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, step: int
):
    settings = {"max_steps": 9, "save_steps": 5, "logging_steps": 2, "per_device_train_batch_size": 5}
    recipe = {"eval_rows": 5, "encoder_dropout": 0.3}
    wanted = outcome(run({**task, **recipe}, **settings).folder)
    real, count = PTuneTrainer.training_step, iter(range(1, 100))

    def send(self: Any, *args: Any) -> torch.Tensor:
        if next(count) == step:
            os.kill(os.getpid(), number)
        return real(self, *args)

    monkeypatch.setattr(PTuneTrainer, "training_step", send)
    before = signal.getsignal(number)
    cut = {**task, **recipe, "output": str(tmp_path / "cut")}
    with pytest.raises(RunStoppedError, match=f"stopped after step {step} of 9") as caught:
        run(cut, **settings)
    assert signal.getsignal(number) is before
    assert caught.value.exit_code == code
    assert f"Go on with: ptune train --resume --output {tmp_path / 'cut'}" in str(caught.value)
    check_whole(tmp_path / "cut" / f"checkpoint-{step}")
    monkeypatch.setattr(PTuneTrainer, "training_step", real)
    run({**cut, "resume": True}, **settings)
    assert outcome(tmp_path / "cut") == wanted


# ---- trouble ---------------------------------------------------------------------------------------------------------


def poisoned(monkeypatch: pytest.MonkeyPatch, *, row: str, of: str = "loss") -> None:
    """Make the loss (or its gradient alone) of rows that hold a token not finite, packed or padded."""
    forward = Wrapper.forward

    @functools.wraps(forward)
    def bad(self: Any, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, input_ids, *args, **kwargs)
        if output.loss is not None and bool((input_ids == int(row)).any()):
            factor = torch.tensor(float("nan" if of == "loss" else "inf"))
            output.loss = output.loss * factor if of == "loss" else _ScaledGradient.apply(output.loss, float("inf"))
        return output

    monkeypatch.setattr(Wrapper, "forward", bad)


class _ScaledGradient(torch.autograd.Function):
    """The value as it is, and its gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad * ctx.factor, None


@pytest.fixture
def one_bad_row(tmp_path: Path, tiny_model_dir: Path) -> tuple[Path, int]:
    """Twelve rows, the eighth of which alone holds a `Q`; and its token."""
    from transformers import AutoTokenizer

    rows = [{"instruction": f"word {'Q' if number == 7 else 'a'} {number}", "output": "yes"} for number in range(12)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, AutoTokenizer.from_pretrained(tiny_model_dir)("Q")["input_ids"][0]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("of", ["loss", "gradient"])
def test_the_row_that_is_not_finite_is_named(
    task: dict[str, Any], one_bad_row: tuple[Path, int], monkeypatch: pytest.MonkeyPatch, packing: bool, of: str
):
    data, token = one_bad_row
    recipe = {**task, "data": str(data), "packing": packing}
    settings = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_steps": 1,
        "num_train_epochs": 1,
    }
    poisoned(monkeypatch, row=str(token), of=of)
    with pytest.raises(TrainingError, match=r"in 1 of [24] rows \(.*rows.jsonl:8\)") as caught:
        run(recipe, **settings)
    message = str(caught.value)
    assert ("the loss is nan" if of == "loss" else "the norm of the gradient is") in message
    found = checkpoints(Path(task["output"]))
    for path in found:
        check_whole(path)
        assert torch.isfinite(PTunedModel.from_pretrained(path).encode()).all()
    last = found[0] if found else None
    assert (f"the last good checkpoint is {last}" if last else "no checkpoint was written") in message
    assert not (Path(task["output"]) / "adapter_model.safetensors").exists()


def test_a_gradient_of_nothing_ends_the_run(task: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    forward, steps = Wrapper.forward, iter(range(1, 100))

    @functools.wraps(forward)
    def inert(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        if self.training and next(steps) > 2:
            output.loss = _ScaledGradient.apply(output.loss, 0.0)  # as kernels for inference give
        return output

    monkeypatch.setattr(Wrapper, "forward", inert)
    with pytest.raises(TrainingError, match=r"prompt is exactly 0 at step 3, .*checkpoint-2") as caught:
        run(task, max_steps=4, save_steps=1)
    assert "another quantization" in str(caught.value)


def test_memory_that_is_not_enough_takes_fewer_rows(
    task: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The gradient of every step stays the same, wherever in forward or backward the memory runs out."""
    settings = {"max_steps": 4, "per_device_train_batch_size": 6, "gradient_accumulation_steps": 2}
    wanted = run({**task, "output": str(tmp_path / "a")}, **settings)
    forward, calls = Wrapper.forward, []

    @functools.wraps(forward)
    def small(self: Any, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        rows = len(kwargs.get("row_lengths") or input_ids)
        calls.append(rows)
        output = forward(self, input_ids, *args, **kwargs)
        if self.training and rows > 2 and (rows > 3 or len(calls) > 7):
            output.loss = _NoMemory.apply(output.loss)
        return output

    monkeypatch.setattr(Wrapper, "forward", small)
    said: list[str] = []
    monkeypatch.setattr("ptune.training.train.show_line", lambda line, console: said.append(line))
    found = run({**task, "output": str(tmp_path / "b")}, **settings)
    words = [line for line in said if line.startswith("out of memory")]
    assert words[0] == ("out of memory at step 1 with 6 rows at once: going on with 3 at a time, in the same batches")
    assert "with 3 rows at once: going on with 1 at a time" in words[1]
    for one, other in zip(
        read_metrics(wanted.folder / "metrics.jsonl"), read_metrics(found.folder / "metrics.jsonl"), strict=True
    ):
        if "loss" in one:
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    assert found.tokens == wanted.tokens


class _NoMemory(torch.autograd.Function):
    """Runs out of memory in the backward pass, as CUDA says it."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def test_one_row_that_is_too_much_is_an_error(task: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    @functools.wraps(Wrapper.forward)
    def none(*_args: Any, **_kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(Wrapper, "forward", none)
    with pytest.raises(TrainingError, match=r"not enough for 1 row at step 1 \(CUDA out of memory") as caught:
        run(task, max_steps=2)
    assert "Lower per_device_train_batch_size" in str(caught.value)


@pytest.mark.parametrize("call", ["rename", "mkdir"])
def test_a_full_disk_leaves_the_last_checkpoint(
    task: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
):
    settings = {"max_steps": 6, "save_steps": 2, "save_total_limit": 1, "per_device_train_batch_size": 5}
    wanted = outcome(run({**task, "output": str(tmp_path / "whole")}, **settings).folder)
    real = getattr(Path, call)

    def full(self: Path, *args: Any, **kwargs: Any) -> Any:
        if ".checkpoint-4.new" in str(self):
            raise OSError(28, "No space left on device")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, call, full)
    with pytest.raises(OutputError, match=r"checkpoint of step 4 could not be written: .*No space left") as caught:
        run(task, **settings)
    assert f"the last good checkpoint is {task['output']}/checkpoint-2" in str(caught.value)
    check_whole(Path(task["output"]) / "checkpoint-2")
    assert not list(Path(task["output"]).glob(".checkpoint-*"))
    monkeypatch.setattr(Path, call, real)
    assert outcome(run({**task, "resume": True}, **settings).folder) == wanted


def test_a_prompt_that_is_not_finite_is_not_saved(task: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    step = torch.optim.AdamW.step

    def spoil(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = step(self, *args, **kwargs)
        if self.state[self.param_groups[0]["params"][0]]["step"] == 3:
            self.param_groups[0]["params"][0].data.fill_(math.nan)
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", spoil)
    with pytest.raises(TrainingError, match="the prompt is not finite after step 3") as caught:
        run(task, max_steps=6, save_steps=1, save_total_limit=9)
    assert "the last good checkpoint is" in str(caught.value)
    assert [path.name for path in checkpoints(Path(task["output"]))] == ["checkpoint-2", "checkpoint-1"]


# ---- other beginnings ------------------------------------------------------------------------------------------------


def test_a_new_run_starts_from_a_finished_prompt(task: dict[str, Any], tmp_path: Path):
    first = run({**task, "encoder": "lstm", "encoder_hidden_size": 8}, max_steps=3)
    again = {**task, "output": str(tmp_path / "again"), "init_from": task["output"]}
    same = run({**again, "encoder": "lstm", "encoder_hidden_size": 8}, max_steps=1, learning_rate=0.0)
    vectors = PTunedModel.from_pretrained(first.folder).encode()
    assert torch.equal(PTunedModel.from_pretrained(same.folder).encode(), vectors)
    assert outcome(same.folder)["encoder.safetensors"] == outcome(first.folder)["encoder.safetensors"]
    for encoder in ("residual", "mlp", "embedding"):
        other = {**again, "output": str(tmp_path / encoder), "encoder": encoder}
        started = PTunedModel.from_pretrained(run(other, max_steps=1, learning_rate=0.0).folder).encode()
        torch.testing.assert_close(started, vectors, rtol=0, atol=1e-5)
    with pytest.raises(PromptError, match="there is no prompt folder"):
        run({**again, "init_from": str(tmp_path / "nothing"), "output": str(tmp_path / "x")}, max_steps=1)


def test_plain_trainer_and_ours_reload_the_best_to_the_last_digit(
    task: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    from ptune.data.collate import PackingCollator
    from ptune.data.records import load_examples
    from ptune.data.template import get_template
    from ptune.data.tokenize import tokenize_examples
    from ptune.loading.load import load_model, load_tokenizer

    tokenizer = load_tokenizer(task["model"])
    rows = tokenize_examples(load_examples(task["data"]), get_template("tutorial", tokenizer), tokenizer, max_length=99)
    parts = rows.dataset.train_test_split(8, seed=1)
    for kind in (Trainer, PTuneTrainer):
        torch.manual_seed(0)
        recipe = TrainRecipe(model="m", data="d", output="o", num_virtual_tokens=4, encoder="lstm")
        model = PTunedModel(load_model(task["model"], device="cpu"), recipe.prompt_config())
        args = TrainingArguments(
            str(tmp_path / kind.__name__), max_steps=12, eval_strategy="steps", eval_steps=2, save_steps=2,
            load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True, learning_rate=0.5,
            logging_steps=1, report_to="none", use_cpu=True,
        )  # fmt: skip
        trainer = kind(
            model=model, args=args, train_dataset=parts["train"], eval_dataset=parts["test"],
            data_collator=PackingCollator(),
        )  # fmt: skip
        trainer.train()
        recorded = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        # The highest loss is called the best here, so that the best is not the last.
        assert recorded[-1] < max(recorded) - 0.01
        assert trainer.evaluate()["eval_loss"] == max(recorded)
    os.truncate(tmp_path / "PTuneTrainer" / "checkpoint-12" / "training_state.safetensors", 9)
    with caplog.at_level("WARNING", logger="ptune"):
        trainer.train(resume_from_checkpoint=True)
    assert "checkpoint-12 is not whole and is passed over" in caplog.text
    assert trainer.state.global_step == 12


def test_the_finished_prompt_goes_to_the_hub(task: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    sent: list[Any] = []
    monkeypatch.setattr(
        "ptune.training.train.upload_prompt", lambda folder, name, **more: sent.append((folder, name, more))
    )
    run(task, max_steps=2, save_steps=1, push_to_hub=True, hub_model_id="me/tickets", hub_private_repo=True)
    more = {"private": True, "token": None, "branch": None}
    assert sent == [(Path(task["output"]), "me/tickets", more)]
    assert "me/tickets" not in (Path(task["output"]) / "ptune.json").read_text()
