"""`PTuneTrainer`, and transformers' own `Trainer`, around a `PTunedModel`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from architectures import PAD, build
from ptune import PromptEncoderConfig, PTunedModel, PTuneTrainer
from ptune.data.collate import PaddingCollator
from ptune.evaluation.loss import held_out_loss

COLLATE = PaddingCollator(pad_token_id=PAD)


def token_rows(count: int, seed: int = 0) -> Dataset:
    """Rows of 4 to 20 tokens, the last 1 to 8 of them supervised."""
    source = random.Random(seed)
    made = []
    for _ in range(count):
        length = source.randint(4, 20)
        ids = [source.randint(3, 120) for _ in range(length)]
        answer = source.randint(1, min(8, length - 1))
        made.append(
            {"input_ids": ids, "attention_mask": [1] * length, "labels": [-100] * (length - answer) + ids[-answer:]}
        )
    return Dataset.from_list(made)


def prompted(encoder: str = "MLP", architecture: str = "llama") -> PTunedModel:
    torch.manual_seed(0)
    config = PromptEncoderConfig(num_virtual_tokens=4, encoder_reparameterization_type=encoder, encoder_hidden_size=16)
    return PTunedModel(build(architecture), config)


def arguments(folder: Path, **values: Any) -> TrainingArguments:
    settings = {
        "output_dir": str(folder),
        "max_steps": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant",
        "prediction_loss_only": True,
        **values,
    }
    return TrainingArguments(**settings)


def trained(
    folder: Path, kind: type[Trainer] = PTuneTrainer, model: PTunedModel | None = None, **values: Any
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The logged losses and the prompt encoder after a short run."""
    model = prompted() if model is None else model
    trainer = kind(model=model, args=arguments(folder, **values), train_dataset=token_rows(24), data_collator=COLLATE)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, {key: value.detach().clone() for key, value in model.state_dict().items()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], atol: float) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], atol=atol, rtol=0)


def test_batch_of_eight_is_eight_batches_of_one(tmp_path: Path):
    whole, weights = trained(tmp_path / "a", per_device_train_batch_size=8, optim="sgd")
    parts, part_weights = trained(
        tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=8, optim="sgd"
    )
    assert len(whole) == 3
    assert whole == pytest.approx(parts, abs=1e-5)
    assert_same(weights, part_weights, atol=1e-5)
    assert any((weights[key] - value).abs().max() > 1e-3 for key, value in prompted().state_dict().items())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mamba"])
def test_activation_checkpointing_changes_nothing(tmp_path: Path, architecture: str):
    # Plain gradient descent: the weights after a step are the gradient, up to a factor.
    settings = {
        "per_device_train_batch_size": 4,
        "optim": "sgd",
        "learning_rate": 1.0,
        "max_grad_norm": 0,
        "max_steps": 1,
    }
    plain = trained(tmp_path / "a", model=prompted(architecture=architecture), **settings)
    less = trained(tmp_path / "b", model=prompted(architecture=architecture), activation_checkpointing=True, **settings)
    assert plain[0] == pytest.approx(less[0], abs=1e-5)
    assert_same(plain[1], less[1], atol=2e-5)


def test_plain_trainer_gives_the_same(tmp_path: Path):
    ours = trained(tmp_path / "a", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    plain = trained(tmp_path / "b", kind=Trainer, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert ours[0] == pytest.approx(plain[0], abs=1e-5)
    assert_same(ours[1], plain[1], atol=1e-5)


@pytest.mark.parametrize("kind", [Trainer, PTuneTrainer])
def test_checkpoint_holds_the_prompt_encoder_alone(tmp_path: Path, kind: type[Trainer]):
    _, weights = trained(tmp_path, kind=kind, save_strategy="steps", save_steps=3)
    saved = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert all(key.startswith("prompts.") for key in saved)
    assert_same(saved, weights, atol=0)
    assert (tmp_path / "checkpoint-3" / "ptune.json").is_file() == (kind is PTuneTrainer)


def test_evaluation_weighs_every_answer_token_the_same(tmp_path: Path):
    model, rows = prompted(), token_rows(7, seed=5)
    for size in (1, 3, 8):
        args = arguments(tmp_path, per_device_eval_batch_size=size)
        measured = PTuneTrainer(model=model, args=args, eval_dataset=rows, data_collator=COLLATE).evaluate()
        assert measured["eval_loss"] == pytest.approx(loss_by_hand(model, rows), abs=1e-5)
        assert held_out_loss(model, rows, COLLATE, batch_size=size).loss == pytest.approx(
            measured["eval_loss"], abs=1e-5
        )
    # The mean of the batches' means, which Trainer gives, is another number: the test can tell them apart.
    plain = Trainer(
        model=model, args=arguments(tmp_path, per_device_eval_batch_size=3), eval_dataset=rows, data_collator=COLLATE
    )
    assert plain.evaluate()["eval_loss"] != pytest.approx(loss_by_hand(model, rows), abs=1e-3)


def loss_by_hand(model: PTunedModel, rows: Dataset, epsilon: float = 0.0) -> float:
    """Cross-entropy over answer tokens, a row at a time, the vectors put before the embeddings by hand."""
    total, tokens = 0.0, 0
    table = model.base.get_input_embeddings()
    with torch.no_grad():
        vectors = model.eval().encode()
        for row in rows:
            ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
            logits = model.base(inputs_embeds=torch.cat([vectors, table(ids)]).unsqueeze(0)).logits[0]
            ahead = logits[len(vectors) - 1 : -1]
            keep = labels != -100
            total += float(F.cross_entropy(ahead[keep], labels[keep], reduction="sum", label_smoothing=epsilon))
            tokens += int(keep.sum())
    return total / tokens


def test_label_smoothing_looks_one_token_ahead(tmp_path: Path):
    # Trainer itself shifts logits only for class names it knows, and PTunedModel is none of them.
    rows = token_rows(6, seed=3)
    args = arguments(
        tmp_path, label_smoothing_factor=0.2, per_device_train_batch_size=6, max_steps=1, learning_rate=0.0
    )
    model = prompted()
    trainer = PTuneTrainer(model=model, args=args, train_dataset=rows, data_collator=COLLATE)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss_by_hand(model, rows, epsilon=0.2), abs=1e-4)


def test_metrics_see_logits_that_line_up_with_the_labels(tmp_path: Path):
    rows, model, seen = token_rows(5, seed=7), prompted(), {}

    def note(prediction: Any) -> dict[str, float]:
        seen["logits"], seen["labels"] = prediction.predictions, prediction.label_ids
        return {"rows": float(len(prediction.label_ids))}

    args = arguments(tmp_path, prediction_loss_only=False, per_device_eval_batch_size=5)
    trainer = PTuneTrainer(model=model, args=args, eval_dataset=rows, data_collator=COLLATE, compute_metrics=note)
    result = trainer.evaluate()
    assert result["eval_rows"] == 5.0
    assert seen["logits"].shape[:2] == seen["labels"].shape
    ahead, labels = torch.tensor(seen["logits"])[:, :-1].flatten(0, 1), torch.tensor(seen["labels"])[:, 1:].flatten()
    assert float(F.cross_entropy(ahead, labels)) == pytest.approx(result["eval_loss"], abs=1e-4)


def test_log_tells_speed_and_memory(tmp_path: Path):
    rows = token_rows(24)
    trainer = PTuneTrainer(
        model=prompted(),
        args=arguments(tmp_path, per_device_train_batch_size=8),
        train_dataset=rows,
        data_collator=COLLATE,
    )
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["tokens_per_second"] > 0 and entry["memory_gib"] > 0 for entry in entries)
    assert trainer.total_tokens() == trainer.tokens_seen == sum(len(row["input_ids"]) for row in rows)
