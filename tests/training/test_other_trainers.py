"""Scripts written for transformers alone: what they save loads, and their losses are right."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    pipeline,
)

from prompting import draw, relative_error, texts
from ptune import PromptEncoderConfig, PTunedModel, get_peft_model

LENGTHS = (9, 4, 12, 6)
ROWS = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in texts(LENGTHS)] * 2
CONFIG = {"num_virtual_tokens": 4, "encoder_hidden_size": 16}


@pytest.fixture
def base(tiny_model_dir: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir)


@pytest.fixture
def model(base: Any) -> PTunedModel:
    torch.manual_seed(0)
    return get_peft_model(base, PromptEncoderConfig(**CONFIG))


def arguments(folder: Path, **values: Any) -> dict[str, Any]:
    settings = {
        "output_dir": str(folder),
        "max_steps": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "per_device_train_batch_size": 4,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
    }
    return {**settings, **values}


def trainer(model: PTunedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, **values: Any) -> Trainer:
    """As the tutorial has it: nothing of ptune's but the model."""
    data = {name: values.pop(name) for name in ("train_dataset", "eval_dataset", "data_collator") if name in values}
    data = {"train_dataset": ROWS, "data_collator": DataCollatorForSeq2Seq(tokenizer, padding=True), **data}
    return Trainer(model=model, args=TrainingArguments(**arguments(folder, **values)), **data)


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=draw(2, 7)).logits


@pytest.mark.parametrize("kind", ["MLP", "LSTM"])
def test_what_a_plain_trainer_saves_loads(
    kind: str, base: Any, tiny_tokenizer: PreTrainedTokenizerFast, tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = get_peft_model(base, PromptEncoderConfig(**CONFIG, encoder_reparameterization_type=kind))
    run = trainer(model, tiny_tokenizer, tmp_path, save_strategy="steps", save_steps=2)
    run.train()
    run.save_model(str(tmp_path / "final"))
    wanted = logits_of(model)
    for folder in (tmp_path / "final", tmp_path / "checkpoint-4"):
        for load in (
            PTunedModel.from_pretrained,
            lambda folder: PTunedModel.from_pretrained(folder, trainable=True),
            lambda folder: peft.AutoPeftModelForCausalLM.from_pretrained(str(folder)),
        ):
            assert relative_error(logits_of(load(folder))[:, -7:], wanted) < 1e-5
    assert PTunedModel.from_pretrained(tmp_path / "final").base.name_or_path == str(tiny_model_dir)


def test_every_prompt_is_saved_as_peft_saves_adapters(base: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    model = get_peft_model(base, PromptEncoderConfig(**CONFIG))
    model.add_prompt("other", PromptEncoderConfig(num_virtual_tokens=3))
    trainer(model, tiny_tokenizer, tmp_path).save_model(str(tmp_path / "final"))
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "final"))
    theirs.load_adapter(str(tmp_path / "final" / "other"), "other")
    for name in ("default", "other"):
        model.set_prompt(name)
        theirs.set_adapter(name)
        assert relative_error(logits_of(theirs)[:, -7:], logits_of(model)) < 1e-5


def test_resume_and_the_best_checkpoint(base: Any, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    def run(folder: Path, **values: Any) -> tuple[Trainer, PTunedModel]:
        torch.manual_seed(0)
        model = get_peft_model(copy.deepcopy(base), PromptEncoderConfig(**CONFIG))
        saved = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
        return trainer(model, tiny_tokenizer, folder, eval_dataset=ROWS[:3], **saved, **values), model

    whole, wanted = run(tmp_path / "whole")
    whole.train()
    cut, resumed = run(tmp_path / "whole")
    cut.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(resumed.encode(), wanted.encode())
    best, model = run(tmp_path / "best", load_best_model_at_end=True, learning_rate=0.5)
    best.train()
    assert best.state.best_model_checkpoint is not None
    loaded = PTunedModel.from_pretrained(best.state.best_model_checkpoint)
    assert relative_error(loaded.encode(), model.encode()) < 1e-6
    assert best.evaluate()["eval_loss"] == pytest.approx(best.state.best_metric, rel=1e-5)


def test_label_smoothing_is_over_the_next_token(model: PTunedModel, tiny_tokenizer: Any, tmp_path: Path) -> None:
    """transformers shifts the labels for causal models alone, which it tells by the name of their class."""
    run = trainer(model, tiny_tokenizer, tmp_path, label_smoothing_factor=0.1)
    batch = run.data_collator([copy.deepcopy(row) for row in ROWS[:4]])
    found = run.compute_loss(model, dict(batch))
    total, count = torch.zeros(()), 0
    for row in ROWS[:4]:
        ids = torch.tensor([row["input_ids"]])
        logits = model(ids).logits[0, :-1]
        total = total + F.cross_entropy(logits, ids[0, 1:], label_smoothing=0.1, reduction="sum")
        count += ids.shape[1] - 1
    assert relative_error(found, total / count) < 1e-5


@pytest.mark.parametrize("options", [{}, {"return_position_ids": False, "return_flash_attn_kwargs": True}])
def test_flattened_rows_do_not_see_each_other(model: PTunedModel, options: dict[str, bool]) -> None:
    rows = [dict(row) for row in ROWS[:4]]
    batch = DataCollatorWithFlattening(**options)(rows)
    found = model.eval()(**batch).loss
    total = sum(F.cross_entropy(model(row[None]).logits[0, :-1], row[1:], reduction="sum") for row in texts(LENGTHS))
    assert relative_error(found, total / (sum(LENGTHS) - len(LENGTHS))) < 1e-5


def test_seq2seq_trainer_generates_and_measures(model: PTunedModel, tiny_tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"input_ids": row["input_ids"][:3], "labels": row["input_ids"][3:]} for row in ROWS[:4]]
    seen: list[Any] = []
    run = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            **arguments(tmp_path, predict_with_generate=True, generation_max_length=8, per_device_eval_batch_size=4)
        ),
        eval_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tiny_tokenizer, padding=True),
        processing_class=tiny_tokenizer,
        compute_metrics=lambda prediction: seen.append(prediction.predictions) or {"rows": len(prediction.predictions)},
    )
    metrics = run.evaluate()
    assert metrics["eval_rows"] == 4
    prompts = torch.tensor([row["input_ids"] for row in rows])
    assert torch.equal(torch.from_numpy(seen[0][:, :8]), model.generate(prompts, max_length=8))
    labels = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor([-100] * 3 + row["labels"]) for row in rows], batch_first=True, padding_value=-100
    )
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row["input_ids"] + row["labels"]) for row in rows], batch_first=True
    )
    wanted = model(
        ids, attention_mask=(torch.arange(ids.shape[1]) < torch.tensor(LENGTHS)[:, None]), labels=labels
    ).loss
    assert metrics["eval_loss"] == pytest.approx(float(wanted), rel=1e-5)


def test_a_pipeline_takes_it_without_a_word(
    model: PTunedModel, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("transformers").propagate = True
    answer = pipeline("text-generation", model=model, tokenizer=tiny_tokenizer)
    with caplog.at_level(logging.WARNING):
        found = answer("a b c", max_new_tokens=3, do_sample=False, return_full_text=False)[0]["generated_text"]
    ids = tiny_tokenizer("a b c", return_tensors="pt")
    mine = model.generate(**ids, max_new_tokens=3, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert found == tiny_tokenizer.decode(mine, skip_special_tokens=True)
    assert not [record for record in caplog.records if "not supported" in record.message]


def test_an_accelerate_loop_trains_saves_and_goes_on(
    model: PTunedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """The loop of accelerate's examples: `prepare`, `accumulate`, `clip_grad_norm_`, `save_state`, `unwrap_model`."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    rows = DataLoader(ROWS, batch_size=2, collate_fn=DataCollatorForSeq2Seq(tiny_tokenizer, padding=True))  # type: ignore[arg-type]
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    prepared, optimizer, rows = accelerator.prepare(model, optimizer, rows)

    def epoch() -> list[float]:
        losses = []
        for batch in rows:
            with accelerator.accumulate(prepared):
                loss = prepared(**batch).loss
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(float(loss))
        return losses

    before = epoch()
    accelerator.save_state(str(tmp_path / "state"))
    wanted = epoch()
    assert sum(wanted) < sum(before)
    accelerator.load_state(str(tmp_path / "state"))
    assert epoch() == wanted
    trained = accelerator.unwrap_model(prepared)
    assert type(trained) is type(model)
    trained.save_pretrained(tmp_path / "final", is_main_process=accelerator.is_main_process)
    assert relative_error(logits_of(PTunedModel.from_pretrained(tmp_path / "final")), logits_of(trained)) < 1e-5
