"""What is trained in a benchmark: a frozen model, a tokenizer, and the same rows for every contender.

The rows are real text, drawn with a seed from a file of instructions (`--data`), or from the demo's own where there is
none, in the tutorial's template. A model called `random:` has random weights: what a step costs does not depend on
them. `random:bloom-1b4` is the tutorial's model in size, `random:qwen3-moe` a mixture of experts and
`random:deepseek-v3` one with latent attention. Their rows are cut by SmolLM2's tokenizer and their ids taken modulo the
vocabulary, which leaves the lengths as they are.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV3Config,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3MoeConfig,
)

from harness import ROOT, Settings
from ptune.data.records import load_examples
from ptune.data.template import get_template
from ptune.data.tokenize import tokenize_examples
from ptune.errors import DataError
from ptune.frozen.product import is_plain
from ptune.loading.load import load_model, load_tokenizer
from ptune.loading.place import DTYPES

SMOLLM2 = "builtin:smollm2-135m"
BLOOM, MOE, LATENT = "random:bloom-1b4", "random:qwen3-moe", "random:deepseek-v3"
_EXPERTS = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "moe_intermediate_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 9,
    "num_experts_per_tok": 4,
    "tie_word_embeddings": True,
}
RANDOM = {
    BLOOM: BloomConfig(vocab_size=46145, hidden_size=2048, n_layer=24, n_head=16),
    MOE: Qwen3MoeConfig(**_EXPERTS, num_key_value_heads=3, head_dim=64, num_experts=16),
    LATENT: DeepseekV3Config(
        **_EXPERTS,
        num_key_value_heads=9,
        n_routed_experts=16,
        n_group=4,
        topk_group=2,
        q_lora_rank=192,
        kv_lora_rank=128,
    ),
}
"""Configurations of the models with random weights."""
ALPACA = "../shared/data/alpaca_en/alpaca_data.json"
DEMO = "src/ptune/demo/train.jsonl"


@dataclass(frozen=True)
class Workload:
    """Everything that a contender trains with. The rows have `input_ids`, `attention_mask` and `labels`."""

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    warm_up: Dataset
    rows: Dataset


def add_flags(parser: argparse.ArgumentParser, *, rows: int = 64) -> None:
    """The flags that say what is trained."""
    parser.add_argument("--model", help=f"default {SMOLLM2}; with --device cuda {BLOOM}")
    parser.add_argument("--data", help="a file of instructions and outputs, relative to the repository root")
    parser.add_argument("--rows", type=int, default=rows, help=f"rows of the measured epoch (default {rows})")
    parser.add_argument("--max-length", type=int, default=256, help="longest row in tokens (default 256)")
    parser.add_argument(
        "--row-lengths",
        type=_span,
        metavar="LOW:HIGH",
        help="only rows of so many tokens: rows of nearly one length leave PEFT little padding",
    )
    parser.add_argument("--seed", type=int, default=0, help="draws rows and the prompt's start (default 0)")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads (default 2)")


def _span(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    return int(low), int(high)


def common_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What all cases of a script share: as asked for, with the tutorial's batch on a GPU and the recipe's on a CPU."""
    cuda = options.device == "cuda"
    data = options.data or (ALPACA if (ROOT / ALPACA).is_file() else DEMO)
    return {
        "model": options.model or (BLOOM if cuda else SMOLLM2),
        "data": data,
        "device": options.device,
        "dtype": "float32",
        "rows": options.rows,
        "warm_up_rows": 8,
        "batch": 1 if cuda else 8,
        "accumulation": 8 if cuda else 1,
        "max_length": options.max_length,
        "row_lengths": options.row_lengths,
        "seed": options.seed,
        "threads": options.threads,
    }


def load(settings: Settings) -> Workload:
    """Model, tokenizer and rows.

    Args:
        settings: As `common_settings` makes them; `tokens` in place of `rows` takes rows of so many tokens in all.

    Raises:
        DataError: The data hold fewer rows than are asked for.
    """
    torch.set_num_threads(settings["threads"])
    name = settings["model"]
    base = random_model(settings) if name in RANDOM else _pretrained(settings)
    tokenizer = load_tokenizer(SMOLLM2 if name in RANDOM else name)
    drawn = draw_rows(settings, tokenizer)
    vocabulary = base.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > vocabulary:
        drawn = drawn.map(lambda row: _folded(row, vocabulary))
    warm_up = settings["warm_up_rows"]
    return Workload(base, tokenizer, drawn.select(range(warm_up)), drawn.select(range(warm_up, len(drawn))))


def draw_rows(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Warm-up rows and then the measured ones, drawn with the seed."""
    examples = load_examples(str(ROOT / settings["data"]))
    order = list(range(len(examples)))
    random.Random(settings["seed"]).shuffle(order)
    warm_up, tokens = settings["warm_up_rows"], settings.get("tokens")
    # Rows of which no answer is left within max_length drop out, so some more are drawn.
    wanted = warm_up + (settings["rows"] if tokens is None else tokens // 16)
    span = settings.get("row_lengths")
    chosen = [examples[index] for index in order[: (wanted + wanted // 4 + 8) * (1 if span is None else 30)]]
    template = get_template("tutorial", tokenizer)
    dataset = tokenize_examples(chosen, template, tokenizer, max_length=settings["max_length"]).dataset
    if span is not None:
        dataset = dataset.filter(lambda row: span[0] <= len(row["input_ids"]) <= span[1])
    if tokens is not None:
        wanted = warm_up + _rows_within(dataset.select(range(warm_up, len(dataset))), tokens)
    if len(dataset) < wanted:
        raise DataError(f"{settings['data']} gives {len(dataset)} rows, not {wanted}.", hint="Give fewer --rows.")
    return dataset.select(range(wanted))


def random_model(settings: Settings) -> PreTrainedModel:
    """One of `RANDOM`, with random weights of the asked dtype, frozen and in eval mode."""
    torch.manual_seed(settings["seed"])
    with torch.device(settings["device"]):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(RANDOM[settings["model"]])
    return model.to(DTYPES[settings["dtype"]]).requires_grad_(False).eval()


def _pretrained(settings: Settings) -> PreTrainedModel:
    model = load_model(
        settings["model"],
        dtype=settings["dtype"],
        quantization=settings.get("quantization"),
        device=settings["device"],
    )
    # Weights are mapped from their file and take memory when they are first read: a loaded model is one that was.
    for weight in model.parameters():
        if weight.is_floating_point() and is_plain(weight):
            weight.sum()
    return model


def _rows_within(rows: Dataset, tokens: int) -> int:
    """How many rows from the start fit into so many tokens.

    Raises:
        DataError: All of them do.
    """
    total = 0
    for count, ids in enumerate(rows["input_ids"]):
        total += len(ids)
        if total > tokens:
            return count
    raise DataError(f"the data's {len(rows)} rows have {total} tokens, not {tokens}.", hint="Give other --data.")


def _folded(row: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    return {
        "input_ids": [one % vocabulary for one in row["input_ids"]],
        "labels": [one % vocabulary if one >= 0 else one for one in row["labels"]],
    }
