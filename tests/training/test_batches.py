"""Packed where the model can, padded with a reason where it cannot, and what a run says about it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, TrainingArguments

from architectures import build
from prompting import encoder_prompt
from ptune.data.collate import PackingCollator, PaddingCollator
from ptune.errors import ConfigError
from ptune.recipe import TrainRecipe
from ptune.training.batches import Collator, batches_line, budget_sampler, choose_collator, token_lengths

ROWS = [{"input_ids": [5] * length} for length in (3, 7, 5, 5)]


class Choice:
    """What a recipe leads to."""

    def __init__(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerFast,
        architecture: str = "llama",
        given: Collection[str] = (),
        recipe: dict[str, Any] | None = None,
        **values: Any,
    ) -> None:
        self.recipe = TrainRecipe(model="m", data="d", output=str(folder), **(recipe or {}))
        self.args = TrainingArguments(
            output_dir=str(folder), use_cpu=True, **{**self.recipe.trainer_defaults(), **values}
        )
        self.model = encoder_prompt(build(architecture))
        self.collate: Collator = choose_collator(self.recipe, self.args, self.model, tokenizer, given)

    def line(self) -> str:
        budget = self.recipe.tokens_per_batch
        sampler = None if budget is None else budget_sampler(ROWS, budget, self.args)
        return batches_line(self.recipe, self.args, self.model, self.collate, sampler)


def test_packed_by_default(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast):
    choice = Choice(tmp_path, tiny_tokenizer)
    assert isinstance(choice.collate, PackingCollator)
    assert choice.args.train_sampling_strategy == "random"
    assert choice.line() == "batches: 8 rows packed, no padding"


def test_packed_batches_are_not_compiled(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast):
    with pytest.raises(ConfigError, match=r"torch_compile does not go with packed batches.*no-packing"):
        Choice(tmp_path, tiny_tokenizer, torch_compile=True)
    choice = Choice(tmp_path, tiny_tokenizer, recipe={"packing": False}, torch_compile=True)
    assert isinstance(choice.collate, PaddingCollator)


def test_model_that_cannot_pack_says_why(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast):
    choice = Choice(tmp_path, tiny_tokenizer, "mamba", gradient_accumulation_steps=3)
    assert choice.collate == PaddingCollator(pad_token_id=0)
    assert choice.args.train_sampling_strategy == "group_by_length"
    line = choice.line()
    assert line.startswith("batches: 8 rows of similar length, padded (MambaForCausalLM keeps a running state")
    assert line.endswith("; 3 to an optimizer step")


@pytest.mark.parametrize("strategy", ["random", "sequential"])
def test_strategy_that_was_given_stays(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, strategy: str):
    choice = Choice(
        tmp_path, tiny_tokenizer, "mamba", given=["train_sampling_strategy"], train_sampling_strategy=strategy
    )
    assert choice.args.train_sampling_strategy == strategy
    assert choice.line().startswith("batches: 8 rows, padded (")


def test_no_packing(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast):
    choice = Choice(tmp_path, tiny_tokenizer, recipe={"packing": False})
    assert isinstance(choice.collate, PaddingCollator)
    assert choice.line() == "batches: 8 rows of similar length, padded"


def test_budget_of_tokens(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast):
    choice = Choice(tmp_path, tiny_tokenizer, recipe={"tokens_per_batch": 10}, gradient_accumulation_steps=2)
    assert choice.line() == "batches: up to 10 tokens packed, 2 an epoch, 100% full; 2 to an optimizer step"
    with pytest.raises(ConfigError, match=r"tokens_per_batch=10 needs packed batches: Mamba.*per_device_train_batch"):
        Choice(tmp_path, tiny_tokenizer, "mamba", recipe={"tokens_per_batch": 10})


@pytest.mark.parametrize("name", ["seed", "data_seed"])
def test_budget_follows_the_seed(tmp_path: Path, name: str):
    rows = [{"input_ids": [5] * (1 + number % 9)} for number in range(60)]

    def order(seed: int) -> list[list[int]]:
        return list(budget_sampler(rows, 20, TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: seed})))

    assert order(1) == order(1) != order(2)


def test_lengths_of_tables_views_and_lists():
    data = Dataset.from_list(ROWS)
    assert token_lengths(ROWS) == token_lengths(data) == token_lengths(data.with_format("torch")) == [3, 7, 5, 5]
    assert token_lengths(data.select([3, 1])) == [5, 7]
