"""Whole trainings on the simulated accelerator: batches, steps, evaluations, checkpoints, what goes on from them.

`test_simulated.py` runs these cases in a process of their own. The losses are the CPU's, nothing that has to do with
the model is computed on the host, and every wait of the host is one of those listed in `WAITS`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from architectures import build
from devices import placing
from devices.gpu_tensor import cpu, is_gpu
from devices.ledger import LEDGER
from devices.placing import rows, spread
from devices.simulated_accelerator import FakeGpu, to_gpu
from ptune import PTunedModel, PTuneTrainer
from ptune.data.collate import PackingCollator, PaddingCollator
from ptune.evaluation.held_out_loss import held_out_loss

NAMES = ("llama", "gpt2", "bloom", "qwen2", "mistral")
STEPS, MICRO_BATCHES, EVAL_BATCHES = 4, 2, 2
HALFWAY = STEPS // 2
DATA = Dataset.from_list([{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows() * 4])
PRECISION = {torch.float32: 1e-4, torch.bfloat16: 0.02}
"""Of losses after some steps, in parts of them."""
WAITS = {
    "step": MICRO_BATCHES + 1,  # the labels of each micro-batch; whether loss and gradient are finite
    "log": 2,  # Trainer's: the loss, and the norm of the gradient
    "evaluation": EVAL_BATCHES + 3,  # the labels of each batch; losses, numbers of labels, and Trainer's own losses
    # Every tensor that is saved (7 of the encoder, each with 3 of Adam's; the vectors; the sum of losses), whether
    # the prompt is finite, the norm of the last gradient, and two names for the frozen weights.
    "checkpoint": 7 * (1 + 3) + 2 + 4,
}
"""How often the host waits for the device in each part of a run."""
WAITS_OF_PADDING = {
    "step": MICRO_BATCHES,  # the mask of each batch
    "log": 1,  # the number of tokens that are not padding
    "evaluation": EVAL_BATCHES,
    "checkpoint": 0,
}
"""How often it waits besides where batches are padded."""


def prompted(base: PreTrainedModel) -> PTunedModel:
    """Without the self-check, which the cases of single steps have."""
    return placing.prompted(base, self_check=False)


class Watch(TrainerCallback):
    """Counts the waits of each part of a run, and what the host computes in it."""

    def __init__(self) -> None:
        self.waits: dict[str, list[int]] = {}
        self.on_host: Counter[str] = Counter()

    def _note(self, part: str) -> None:
        self.waits.setdefault(part, []).append(sum(LEDGER.waits.values()))
        self.on_host.update(LEDGER.host if part in ("step", "evaluation") else ())
        LEDGER.reset()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        LEDGER.reset()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._note("step")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self._note("log")

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self._note("evaluation")

    def on_save(self, *_: Any, **__: Any) -> None:
        self._note("checkpoint")


def trainer_of(model: PTunedModel, folder: Path, collate: Any, watch: Watch | None = None) -> PTuneTrainer:
    """A trainer whose best checkpoint is not the last one: the worst loss counts as the best."""
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=MICRO_BATCHES,
        learning_rate=1e-2,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=HALFWAY,
        save_steps=HALFWAY,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
        prediction_loss_only=True,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )
    watching = [] if watch is None else [watch]
    return PTuneTrainer(
        model=model,
        args=args,
        train_dataset=DATA,
        eval_dataset=DATA.select(range(2 * EVAL_BATCHES)),
        data_collator=collate,
        callbacks=watching,
    )


def losses(trainer: PTuneTrainer, after: int = 0) -> torch.Tensor:
    """What was logged after a step, in order: training losses and held-out ones."""
    entries = [entry for entry in trainer.state.log_history if entry["step"] > after]
    return torch.tensor([entry[name] for entry in entries for name in ("loss", "eval_loss") if name in entry])


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says where Trainer puts its batches."""
    monkeypatch.setattr(LEDGER, "where", False)  # the place of every kernel takes time to find
    return lambda name: monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", name)


def on_cpu(name: str, dtype: torch.dtype, folder: Path, collate: Any, device: Any) -> torch.Tensor:
    device("cpu")
    trainer = trainer_of(prompted(build(name).to(dtype)), folder, collate)
    trainer.train()
    return losses(trainer)


def assert_waits(watch: Watch, *, padded: bool = False) -> None:
    wanted = {part: {waits + (WAITS_OF_PADDING[part] if padded else 0)} for part, waits in WAITS.items()}
    assert {part: set(found) for part, found in watch.waits.items()} == wanted
    assert len(watch.waits["step"]) == STEPS


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_the_cpus(name: str, dtype: torch.dtype, tmp_path: Path, device: Any) -> None:
    collate = PackingCollator()
    own = on_cpu(name, dtype, tmp_path / "cpu", collate, device)
    device("gpux:0")
    with FakeGpu():
        watch, model = Watch(), prompted(to_gpu(build(name).to(dtype)))
        trainer = trainer_of(model, tmp_path / "run", collate, watch)
        trainer.train()
        found, second_half = losses(trainer), losses(trainer, after=HALFWAY)
        torch.testing.assert_close(found, own, rtol=PRECISION[dtype], atol=0)
        assert_waits(watch)
        assert not watch.on_host, watch.on_host
        assert all(is_gpu(one) for one in model.parameters())

        best = tmp_path / f"run/checkpoint-{HALFWAY}"
        measured = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        assert measured[0] > measured[1]
        assert trainer.state.best_model_checkpoint == str(best)
        saved = PTunedModel.from_pretrained(best, base=model.base)
        assert torch.equal(cpu(model.eval().encode().detach()), cpu(saved.encode().detach()))
        assert trainer.evaluate()["eval_loss"] == measured[0]

        resumed = trainer_of(prompted(to_gpu(build(name).to(dtype))), tmp_path / "run", collate)
        resumed.train(resume_from_checkpoint=str(best))
        assert torch.equal(losses(resumed, after=HALFWAY), second_half)


def test_padded_batches_wait_for_their_mask_too(tmp_path: Path, device: Any) -> None:
    own = on_cpu("llama", torch.float32, tmp_path / "cpu", PaddingCollator(0), device)
    device("gpux:0")
    with FakeGpu():
        watch = Watch()
        trainer = trainer_of(prompted(to_gpu(build("llama"))), tmp_path / "run", PaddingCollator(0), watch)
        trainer.train()
    torch.testing.assert_close(losses(trainer), own, rtol=PRECISION[torch.float32], atol=0)
    assert_waits(watch, padded=True)


@pytest.mark.parametrize("batches_on", ["gpux:0", "gpux:1"])
@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_a_model_over_two_devices(name: str, batches_on: str, tmp_path: Path, device: Any) -> None:
    """Wherever Trainer puts its batches, and with batches that are still the host's."""
    collate = PackingCollator()
    own = on_cpu(name, torch.float32, tmp_path / "cpu", collate, device)
    wanted = held_out_loss(prompted(build(name)), DATA, collate)
    device(batches_on)
    with FakeGpu():
        model = prompted(spread(build(name)))
        LEDGER.reset()
        measured = held_out_loss(model, DATA, collate)
        trainer = trainer_of(model, tmp_path / "run", collate)
        trainer.train()
    assert measured.tokens == wanted.tokens
    assert measured.loss == pytest.approx(wanted.loss, rel=1e-5)
    torch.testing.assert_close(losses(trainer), own, rtol=PRECISION[torch.float32], atol=0)
