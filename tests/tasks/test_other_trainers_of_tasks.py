"""Scripts written for transformers and PEFT alone, with one import changed: they run, learn, and count the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

import ptune
from ptune.config import TaskType
from tasks.peft_pairs import KINDS, config_of
from tasks.wide_models import PAD, build, padded, tokens

GOOD, BAD = 50, 60
"""Words that say which of two classes a text is of."""


def rows(count: int) -> list[dict[str, Any]]:
    """Texts of different lengths with one of the two words somewhere in them."""
    made = []
    for at in range(count):
        ids = tokens(3 + at % 4, seed=at) % 40 + 5
        ids[at % len(ids)] = GOOD if at % 2 else BAD
        made.append({"input_ids": ids, "labels": at % 2})
    return made


def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    ids, mask = padded([row["input_ids"] for row in batch], "right")
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["labels"] for row in batch])}


def arguments(folder: Path, **values: Any) -> dict[str, Any]:
    """A short run on the CPU, silent."""
    settings = {
        "output_dir": str(folder),
        "max_steps": 12,
        "learning_rate": 3e-2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
    }
    return {**settings, **values}


def accuracy(prediction: Any) -> dict[str, float]:
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return {"accuracy": float((np.argmax(logits, axis=1) == prediction.label_ids).mean())}


def published_script(library: Any, folder: Path) -> tuple[Trainer, Any]:
    """PEFT's guide to P-tuning of a sequence classifier, on a small model and made-up rows."""
    torch.manual_seed(0)
    model = build("roberta", TaskType.SEQ_CLS, num_labels=2)
    config = library.PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=20, encoder_hidden_size=128)
    model = library.get_peft_model(model, config)
    model.print_trainable_parameters()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**arguments(folder, max_steps=3)),
        train_dataset=rows(32),
        eval_dataset=rows(12),
        data_collator=collate,
        compute_metrics=accuracy,
    )
    trainer.train()
    return trainer, model


def test_pefts_published_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One import changed: the same line of parameters, and a run with a metric; what it saves loads."""
    _, theirs = published_script(peft, tmp_path / "theirs")
    printed = capsys.readouterr().out.splitlines()[0]
    run, mine = published_script(ptune, tmp_path / "mine")
    assert capsys.readouterr().out.splitlines()[0] == printed
    assert printed.startswith("trainable params: ")
    assert mine.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    metrics = run.evaluate()
    assert 0 <= metrics["eval_accuracy"] <= 1
    run.save_model(tmp_path / "saved")
    again = ptune.PeftModel.from_pretrained(build("roberta", TaskType.SEQ_CLS, num_labels=2), tmp_path / "saved")
    batch = collate(rows(6))
    with torch.no_grad():
        found, wanted = again.eval()(**batch), mine.eval()(**batch)
    torch.testing.assert_close(found.logits, wanted.logits)
    assert type(again).__name__ == type(theirs).__name__ == "PeftModelForSequenceClassification"


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_plain_trainer_learns_what_can_be_learned(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ptune.PromptTuningConfig(num_virtual_tokens=4)
    model = ptune.get_peft_model(build(name, TaskType.SEQ_CLS, num_labels=2), config)
    run = Trainer(
        model=model,
        args=TrainingArguments(**arguments(tmp_path, max_steps=40)),
        train_dataset=rows(64),
        eval_dataset=rows(20),
        data_collator=collate,
        compute_metrics=accuracy,
    )
    before = run.evaluate()
    run.train()
    after = run.evaluate()
    assert after["eval_loss"] < 0.7 * before["eval_loss"]
    assert after["eval_accuracy"] >= 0.8 > before["eval_accuracy"]
    logged = [one["loss"] for one in run.state.log_history if "loss" in one]
    assert sum(logged[-5:]) < 0.7 * sum(logged[:5])


def _numbers(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    given = collate(batch)
    return {**given, "labels": given["labels"].float() * 2 - 0.5}


@pytest.mark.parametrize(("labels", "collator"), [(2, collate), (1, _numbers)], ids=["classes", "numbers"])
def test_micro_batches_are_one_step(labels: int, collator: Callable[..., Any], tmp_path: Path) -> None:
    """Eight rows at once, or one at a time accumulated over eight: the same weights, classes or numbers."""
    states = []
    for size in (8, 1):
        torch.manual_seed(0)
        config = ptune.PromptTuningConfig(num_virtual_tokens=4)
        model = ptune.get_peft_model(build("bert", TaskType.SEQ_CLS, num_labels=labels), config)
        given = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "max_steps": 2}
        options = arguments(tmp_path, **given, optim="sgd", learning_rate=0.05, max_grad_norm=0.0)
        Trainer(model=model, args=TrainingArguments(**options), train_dataset=rows(16), data_collator=collator).train()
        states.append(model.state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-3, atol=1e-5)


class _Tokenizer:
    """As much of a tokenizer as `Seq2SeqTrainer` asks for."""

    pad_token_id = eos_token_id = PAD
    padding_side = "right"

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        """Nothing to save."""

    def pad(self, *_: Any, **__: Any) -> None:
        """Rows are padded already."""


@pytest.mark.parametrize("kind", ["vectors", "keys"])
def test_seq2seq_trainer_generates_and_measures(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    configs: dict[str, Any] = {
        "vectors": ptune.PromptTuningConfig(num_virtual_tokens=4),
        "keys": ptune.PrefixTuningConfig(num_virtual_tokens=4),
    }
    model = ptune.get_peft_model(build("t5", TaskType.SEQ_2_SEQ_LM), configs[kind])
    data = [{"input_ids": row["input_ids"], "labels": row["input_ids"][:3]} for row in rows(16)]

    def pairs(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids, mask = padded([row["input_ids"] for row in batch], "right")
        labels = padded([row["labels"] for row in batch], "right", -100)[0]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    seen: list[Any] = []
    run = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            **arguments(tmp_path, predict_with_generate=True, generation_max_length=5, learning_rate=5e-2)
        ),
        train_dataset=data,
        eval_dataset=data[:8],
        data_collator=pairs,
        processing_class=_Tokenizer(),
        compute_metrics=lambda one: seen.append(one.predictions) or {"rows": len(one.predictions)},
    )
    before = run.evaluate()
    batch = pairs(data[:8])
    text = {key: batch[key] for key in ("input_ids", "attention_mask")}
    answers = model.generate(**text, max_length=5)
    assert torch.equal(torch.from_numpy(seen[0])[:, : answers.shape[1]], answers)
    with torch.no_grad():
        assert before["eval_loss"] == pytest.approx(float(model.eval()(**batch).loss), rel=1e-4)
    run.train()
    assert run.evaluate()["eval_loss"] < before["eval_loss"]


@pytest.mark.parametrize(
    ("name", "task", "kind"),
    [
        *[("bert", task, kind) for task in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS") for kind in KINDS],
        *[("gpt2", "SEQ_CLS", kind) for kind in KINDS],
        *[("roberta", "FEATURE_EXTRACTION", kind) for kind in ("table", "mlp", "prefix")],
    ],
)
def test_trainable_parameters_are_pefts(name: str, task: str, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counts = [
            library.get_peft_model(
                build(name, TaskType(task)), config_of(library, kind, task_type=task)
            ).get_nb_trainable_parameters()
            for library in (ptune, peft)
        ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("name", "task", "kind"),
    [
        ("bert", TaskType.SEQ_CLS, "PeftModelForSequenceClassification"),
        ("llama", TaskType.TOKEN_CLS, "PeftModelForTokenClassification"),
        ("roberta", TaskType.QUESTION_ANS, "PeftModelForQuestionAnswering"),
        ("t5", TaskType.SEQ_2_SEQ_LM, "PeftModelForSeq2SeqLM"),
        ("bert", TaskType.FEATURE_EXTRACTION, "PeftModelForFeatureExtraction"),
        ("bert", TaskType.MASKED_LM, "PeftModelForTask"),
    ],
)
def test_pefts_class_is_told_by_the_models(name: str, task: TaskType, kind: str) -> None:
    model: Any = ptune.get_peft_model(build(name, task), ptune.PromptTuningConfig(num_virtual_tokens=4))
    assert type(model).__name__ == kind
    assert model.active_peft_config.task_type is model.task is task
    assert not isinstance(model, ptune.PTunedModel)
