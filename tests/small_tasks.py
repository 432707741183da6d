"""Small random models for every task, and prompt folders for them as training writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForPreTraining,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)

from ptune import PTunedTaskModel, load_model
from ptune.choices import CLASSIFY, FILL, SEQ2SEQ, TAG
from ptune.config import PromptTuningConfig, TaskType
from ptune.data.tasks.task_kinds import TASK_TYPES
from task_tokenizers import make_bert, make_gpt2, make_t5

LABELS = {CLASSIFY: ("bad", "good", "news"), TAG: ("B-LOC", "B-PER", "I-LOC", "I-PER", "O"), FILL: ("bad", "good")}
WORDS = {"bad": "terrible", "good": "great"}
TEXTS = ("it was great", "it was terrible", "where is my order ?", "the lamp is broken", "a soft prompt", "good news")
TOKENS = 3


def base_folder(folder: Path, task: str) -> Path:
    """A model for a task with its tokenizer; a BERT has its pooler and its masked-language-model head."""
    return save_t5(folder) if task == SEQ2SEQ else save_bert(folder)


def save_bert(folder: Path, positions: int = 64) -> Path:
    """An encoder with its tokenizer, as BERT was published: LM head and pooler."""
    tokenizer = make_bert()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=positions, initializer_range=0.3, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return _saved(BertForPreTraining, config, tokenizer, folder)


def save_t5(folder: Path, *, wide: float = 3.0) -> Path:
    """An encoder-decoder with its tokenizer; weights are so many times as wide as T5's own."""
    tokenizer = make_t5()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, initializer_factor=wide,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    return _saved(T5ForConditionalGeneration, config, tokenizer, folder)


def save_llama(folder: Path) -> Path:
    """A causal language model with its tokenizer; its LM head is its token embeddings."""
    tokenizer = make_gpt2()
    tokenizer.pad_token = tokenizer.eos_token
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    return _saved(LlamaForCausalLM, config, tokenizer, folder)


def _saved(kind: Any, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prompted(base: Path, task: str, config: Any = None, **options: Any) -> PTunedTaskModel:
    """A random prompt and a random head on a model for a task."""
    labels = LABELS[task] if task in (CLASSIFY, TAG) else None
    kind: TaskType = TASK_TYPES[task]
    model = load_model(str(base), task=kind, labels=labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = PTunedTaskModel(model, config or PromptTuningConfig(num_virtual_tokens=TOKENS), task=kind, **options)
        with torch.no_grad():
            for parameter in made.prompts.parameters():
                parameter.copy_(torch.randn_like(parameter))
    return made.eval()


def prompt_folder(folder: Path, base: Path, task: str, **noted: Any) -> Path:
    """A prompt folder for a task, as training writes one."""
    details: dict[str, Any] = {"task": task, "template": "", "recipe": {"max_length": 48, "target_length": 6}}
    if task in LABELS:
        details["labels"] = list(LABELS[task])
    if task == FILL:
        details |= {"template": "{text} it was {mask} .", "verbalizer": WORDS}
    return prompted(base, task).save_pretrained(folder, **{**details, **noted})
