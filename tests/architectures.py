"""Small random models of every architecture the tests cover, quick to build and alike in size.

Each has hidden size 32, 4 heads, a vocabulary of 128 and no dropout. Weights are drawn wider than is usual, so that the
logits of different inputs differ clearly and a wrong mask or position shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 128
HIDDEN = 32
LAYERS = 2
CONTEXT = 128
WINDOW = 8
PAD, EOS, BOS = 0, 1, 2

_IDS = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": BOS}
_COMMON = {"vocab_size": VOCABULARY, "initializer_range": 0.2, **_IDS}
_DECODER = {
    **_COMMON,
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "attention_dropout": 0.0,
}
_GROUPED = {**_DECODER, "num_key_value_heads": 2}

_TABLE: dict[str, tuple[type[Any], type[Any], dict[str, Any]]] = {
    "bloom": (
        BloomConfig,
        BloomForCausalLM,
        {
            **_COMMON,
            "hidden_size": HIDDEN,
            "n_layer": LAYERS,
            "n_head": 4,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        },
    ),
    "gpt2": (
        GPT2Config,
        GPT2LMHeadModel,
        {
            **_COMMON,
            "n_embd": HIDDEN,
            "n_layer": LAYERS,
            "n_head": 4,
            "n_positions": CONTEXT,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    ),
    "llama": (LlamaConfig, LlamaForCausalLM, _GROUPED),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, _GROUPED),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {**_GROUPED, "head_dim": 8}),
    "mistral": (MistralConfig, MistralForCausalLM, {**_GROUPED, "sliding_window": WINDOW}),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {
            **_GROUPED,
            "num_hidden_layers": 4,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM, {**_DECODER, "hidden_dropout": 0.0}),
    "opt": (
        OPTConfig,
        OPTForCausalLM,
        {
            **_COMMON,
            "hidden_size": HIDDEN,
            "ffn_dim": 64,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
            "word_embed_proj_dim": HIDDEN,
            "init_std": 0.2,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "layerdrop": 0.0,
        },
    ),
    "mamba": (
        MambaConfig,
        MambaForCausalLM,
        {**_COMMON, "hidden_size": HIDDEN, "state_size": 8, "num_hidden_layers": LAYERS, "expand": 2, "conv_kernel": 4},
    ),
}


def build(name: str, **overrides: Any) -> PreTrainedModel:
    """A small random model: the same weights at every call with the same arguments.

    Float32, frozen nowhere, in eval mode. The state of torch's random generator is left as it was.

    Args:
        name: A key of `ARCHITECTURES`.
        overrides: Values of the configuration that differ; `seed` draws other weights.
    """
    config_class, model_class, values = _TABLE[name]
    seed = overrides.pop("seed", 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class(config_class(**{**values, **overrides}))
    return model.to(torch.float32).eval()


def _builder(name: str) -> Callable[[], PreTrainedModel]:
    return lambda: build(name)


ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {name: _builder(name) for name in _TABLE}
"""Name → builder. All but Mamba take the prompt as keys and values."""
