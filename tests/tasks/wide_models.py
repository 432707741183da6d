"""Small random models for every task, and what their own classes make of a row by itself behind real tokens.

Each has hidden size 32, 4 heads, a vocabulary of 128 and no dropout. Weights are drawn wider than is usual, so that a
wrong mask, position or head shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import (
    AlbertConfig,
    BartConfig,
    BertConfig,
    BloomConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedModel,
    Qwen2Config,
    RobertaConfig,
    T5Config,
)

from ptune import PromptTuningConfig
from ptune.config import TaskType
from ptune.loading.for_task import auto_class
from ptune.model.task_model import PTunedTaskModel

VOCABULARY = 128
HIDDEN = 32
CONTEXT = 64
LABELS = 3
PAD, EOS, BOS, FIRST_ORDINARY = 0, 1, 2, 5

_IDS = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": BOS}
_COMMON = {"vocab_size": VOCABULARY, "initializer_range": 0.2, **_IDS}
_ENCODER = {
    **_COMMON,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": CONTEXT,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_DECODER = {
    **_COMMON,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": CONTEXT,
}
_TABLE: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "bert": (BertConfig, _ENCODER),
    # Positions begin behind that of the padding token, which is 1 as in the published models.
    "roberta": (RobertaConfig, {**_ENCODER, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0}),
    "albert": (AlbertConfig, {**_ENCODER, "embedding_size": 16, "classifier_dropout_prob": 0.0}),
    "electra": (ElectraConfig, {**_ENCODER, "embedding_size": 16}),
    "distilbert": (
        DistilBertConfig,
        {
            **_COMMON,
            "dim": HIDDEN,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 64,
            "max_position_embeddings": CONTEXT,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "seq_classif_dropout": 0.0,
            "qa_dropout": 0.0,
        },
    ),
    "modernbert": (
        ModernBertConfig,
        {
            **_COMMON,
            "hidden_size": HIDDEN,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "cls_token_id": BOS,
            "sep_token_id": EOS,
            # A global layer and two local ones that see two tokens each way.
            "local_attention": 4,
        },
    ),
    "deberta": (
        DebertaV2Config,
        {
            **_ENCODER,
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_biased_input": False,
            "pooler_dropout": 0.0,
        },
    ),
    "mpnet": (MPNetConfig, {**_ENCODER, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0}),
    "gpt2": (
        GPT2Config,
        {
            **_COMMON,
            "n_embd": HIDDEN,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": CONTEXT,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "classifier_dropout": 0.0,
        },
    ),
    "llama": (LlamaConfig, _DECODER),
    "qwen2": (Qwen2Config, _DECODER),
    "bloom": (
        BloomConfig,
        {
            **_COMMON,
            "hidden_size": HIDDEN,
            "n_layer": 2,
            "n_head": 4,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        },
    ),
    "t5": (
        T5Config,
        {
            **_IDS,
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "d_kv": 8,
            "d_ff": 64,
            # With fewer layers in the encoder, transformers' own generate has too small a cache.
            "num_layers": 3,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "dropout_rate": 0.0,
            "decoder_start_token_id": PAD,
            "initializer_factor": 2.0,
        },
    ),
    "bart": (
        BartConfig,
        {
            **_IDS,
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": CONTEXT,
            "decoder_start_token_id": EOS,
            "forced_eos_token_id": None,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "activation_dropout": 0.0,
            "init_std": 0.2,
        },
    ),
}
ENCODERS = ("bert", "roberta", "albert", "electra", "distilbert", "modernbert", "deberta", "mpnet")
WITH_TYPES = ("bert", "roberta", "albert", "electra", "deberta")
"""Encoders that know the types of tokens."""
DEEP_ENCODERS = ("bert", "roberta", "electra")
"""Encoders that go on from keys and values."""
DECODERS = ("gpt2", "llama", "qwen2", "bloom")
ENCODER_DECODERS = ("t5", "bart")
WITH_HEADS = (TaskType.SEQ_CLS, TaskType.TOKEN_CLS, TaskType.QUESTION_ANS)
READING = (*WITH_HEADS, TaskType.FEATURE_EXTRACTION)
"""What encoders and decoders are both for."""
PAIRS = [(name, task) for name in (*ENCODERS, *DECODERS) for task in READING]
PAIRS += [(name, TaskType.MASKED_LM) for name in ENCODERS]
"""Architecture and task."""
LENGTHS = (7, 5, 1, 9, 3)
ANSWERS = (4, 6, 1, 5, 3)
"""Tokens of the answers of an encoder-decoder."""


def build(name: str, task: TaskType, **overrides: Any) -> PreTrainedModel:
    """A small random model: the same weights at every call with the same arguments, in eval mode.

    Args:
        name: An architecture.
        task: What it is for.
        overrides: Values of the configuration that differ; `seed` draws other weights.
    """
    kind, values = _TABLE[name]
    seed = overrides.pop("seed", 0)
    labels = {"num_labels": 2 if task is TaskType.QUESTION_ANS else LABELS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = auto_class(task).from_config(kind(**{**labels, **values, **overrides}))
        # Biases begin at zero and norms at one: one that is left out, or added twice, would not show.
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def pad_of(name: str) -> int:
    """The padding token of an architecture."""
    return int(_TABLE[name][1]["pad_token_id"])


def tokens(count: int, *, seed: int = 0) -> torch.Tensor:
    """`(count,)` ordinary tokens."""
    return torch.randint(FIRST_ORDINARY, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))


def texts(lengths: Sequence[int] = LENGTHS) -> list[torch.Tensor]:
    """One row of ordinary tokens for each length."""
    return [tokens(length, seed=100 + at) for at, length in enumerate(lengths)]


def padded(rows: Sequence[torch.Tensor], side: str, fill: float = PAD) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids, types or labels in one `(B, C)` tensor, and its mask."""
    width = max(map(len, rows))
    values = torch.full((len(rows), width), fill, dtype=rows[0].dtype)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for at, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        values[at, place], mask[at, place] = row, 1
    return values, mask


def labelled(name: str, task: TaskType, side: str = "right", lengths: Sequence[int] = LENGTHS) -> dict[str, Any]:
    """A padded batch with what its rows are told; an answer goes from a text's middle to its last token."""
    ids, mask = padded(texts(lengths), side, pad_of(name))
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if task is TaskType.SEQ_CLS:
        given["labels"] = torch.arange(len(ids)) % LABELS
    if task is TaskType.TOKEN_CLS:
        given["labels"] = (ids % LABELS).masked_fill(mask == 0, -100)
    if task is TaskType.MASKED_LM:
        given["labels"] = ids.masked_fill((mask == 0) | (ids % 2 == 0), -100)
    if task is TaskType.QUESTION_ANS:
        first, last = mask.argmax(dim=1), mask.sum(dim=1) - 1
        given |= {"start_positions": first + last // 2, "end_positions": first + last}
    if task is TaskType.SEQ_2_SEQ_LM:
        answers = [tokens(length, seed=200 + at) for at, length in enumerate(ANSWERS[: len(ids)])]
        given["labels"] = padded(answers, "right", -100)[0]
    return given


def behind_tokens(name: str, task: TaskType, prompt: torch.Tensor, **overrides: Any) -> PTunedTaskModel:
    """A model behind a soft prompt that is the embeddings of tokens, in eval mode."""
    model = PTunedTaskModel(build(name, task, **overrides))
    put_tokens(model, "default", prompt)
    return model.eval()


def put_tokens(model: PTunedTaskModel, name: str, prompt: torch.Tensor, **values: Any) -> None:
    """Add a prompt whose vectors are the embeddings of tokens."""
    model.add_prompt(name, PromptTuningConfig(num_virtual_tokens=len(prompt), **values))
    with torch.no_grad():
        model.prompts[name].embedding.weight.copy_(model.base.get_input_embeddings()(prompt))


def inner_of(bare: PreTrainedModel) -> PreTrainedModel:
    """The part that reads text, found as transformers finds it."""
    return bare.base_model


def head_on(name: str, bare: Any, task: TaskType, states: torch.Tensor) -> torch.Tensor:
    """What a model's class does behind the part that reads text, written down here: of hidden states `(1, T, D)`.

    It is `(1, labels)` for SEQ_CLS, `(1, T, …)` otherwise.
    """
    if task is TaskType.SEQ_CLS:
        return _classified(name, bare, states)
    if task is TaskType.MASKED_LM:
        return _words(name, bare, states)
    if name == "modernbert":
        states = bare.head(states)
    layer = getattr(bare, "classifier", None) or getattr(bare, "score", None) or bare.qa_outputs
    return layer(states)


def _classified(name: str, bare: Any, states: torch.Tensor) -> torch.Tensor:
    if name in DECODERS:
        return bare.score(states[:, -1])
    if name == "bert":
        return bare.classifier(bare.bert.pooler(states))
    if name == "albert":
        return bare.classifier(bare.albert.pooler_activation(bare.albert.pooler(states[:, 0])))
    if name == "distilbert":
        return bare.classifier(torch.relu(bare.pre_classifier(states[:, 0])))
    if name == "modernbert":
        pooled = states[:, 0] if bare.config.classifier_pooling == "cls" else states.mean(dim=1)
        return bare.classifier(bare.head(pooled))
    if name == "deberta":
        return bare.classifier(bare.pooler(states))
    return bare.classifier(states)


def _words(name: str, bare: Any, states: torch.Tensor) -> torch.Tensor:
    if name in ("bert", "deberta"):
        return bare.cls(states)
    if name in ("roberta", "mpnet"):
        return bare.lm_head(states)
    if name == "albert":
        return bare.predictions(states)
    if name == "electra":
        return bare.generator_lm_head(bare.generator_predictions(states))
    if name == "distilbert":
        return bare.vocab_projector(bare.vocab_layer_norm(bare.activation(bare.vocab_transform(states))))
    return bare.decoder(bare.head(states))


def close(found: torch.Tensor, wanted: torch.Tensor, error: float = 2e-5) -> bool:
    """Whether two tensors have one shape, and the same numbers but for rounding."""
    if found.shape != wanted.shape:
        return False
    found, wanted = found.detach().double(), wanted.detach().double()
    return bool((found - wanted).norm() <= error * wanted.norm())


def same_gradients(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], error: float = 1e-4) -> bool:
    """Whether gradients have the same names, and the same numbers but for rounding beside the largest of them.

    A bias that adds to every place of an answer changes nothing: its gradient is rounding alone.
    """
    size = max(float(value.norm()) for value in wanted.values())
    return found.keys() == wanted.keys() and all(
        float((found[key] - value).norm()) <= error * float(value.norm()) + 1e-6 * size for key, value in wanted.items()
    )
