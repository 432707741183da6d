"""A small random model of every class behind `AutoModelForCausalLM` in the installed transformers.

Each is made from its own configuration class: `SIZES` brings the fields that most configurations share down to a few
dozen thousand parameters, and `OVERRIDES` says what a class needs beyond that. A class that cannot be made is in
`IMPOSSIBLE`, with the reason. Weights are drawn wider than is usual, so that a wrong mask or position shows.

Where a class has a sliding window it is 8 tokens, sparse attention keeps 4 keys, and half of the layers have the
other kind of attention where there are two: the texts of the sweep are longer than each of these.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 128
PAD, EOS, BOS = 0, 1, 2
MOST_PARAMETERS = 6_000_000

_WIDTH, _HEADS, _KEY_HEADS, _LAYERS = 32, 4, 2, 4
_NO_DROPOUT = (
    "activation_dropout attention_dropout attention_probs_dropout_prob attn_pdrop decoder_layerdrop dropout emb_pdrop "
    "embd_pdrop embed_dropout embedding_dropout hidden_dropout hidden_dropout_prob input_jitter_noise layerdrop "
    "local_attention_probs_dropout_prob resid_dropout resid_pdrop residual_dropout router_jitter_noise"
)
SIZES: dict[str, Any] = {
    **dict.fromkeys(_NO_DROPOUT.split(), 0.0),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd"), _WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), _LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), _HEADS),
    **dict.fromkeys(("intermediate_size", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_dim", "n_inner"), 2 * _WIDTH),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "original_max_position_embeddings"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "mamba_n_groups"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), _WIDTH // 2),
    **dict.fromkeys(("mamba_d_state", "state_size", "v_head_dim", "kv_lora_rank", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("head_dim", "query_pre_attn_scalar", "index_head_dim", "sliding_window", "chunk_size"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_chunk_size"), 8),
    **dict.fromkeys(("linear_num_value_heads", "mamba_n_heads", "qk_rope_head_dim", "index_topk", "mamba_d_conv"), 4),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "mamba_expand"), _KEY_HEADS),
    **dict.fromkeys(("attention_window_size", "keep_window_size", "sliding_window_size", "window_size"), 8),
    **dict.fromkeys(("initializer_range", "init_std"), 0.2),
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "sep_token_id": EOS,
    "bos_token_id": BOS,
    "decoder_start_token_id": BOS,
    "forced_eos_token_id": None,
    "encoder_layers": _LAYERS,
    "encoder_attention_heads": _HEADS,
    "ffn_hidden_size": 2 * _WIDTH,
    "q_lora_rank": 16,
    # With few heads many keys score exactly nothing, and which of them are taken is chance.
    "index_n_heads": 16,
    "attention_chunk_size": 8,
    "local_attention": 16,
    "mamba_d_head": 16,
    "first_k_dense_replace": 1,
    "is_decoder": True,
}
"""Field → value, in every configuration that has the field."""

_LATENT = {"num_key_value_heads": _HEADS}
_TWO_KINDS = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_HYBRID = {"layer_types": ["linear_attention"] * 3 + ["full_attention"]}
_CONVOLUTIONS = {"layer_types": ["conv", "full_attention"] * 2}
_PICTURES = {
    "hidden_size": _WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
_TEXT = {
    name: SIZES[name]
    for name in (
        *("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings", "initializer_range"),
        *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("pad_token_id", "eos_token_id", "bos_token_id"),
    )
}
_LAYER_INPUTS = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY}
_GEMMA_3N = {
    **_TWO_KINDS,
    **_LAYER_INPUTS,
    "num_kv_shared_layers": 2,
    "laurel_rank": 8,
    "activation_sparsity_pattern": [0.0] * 4,
}
_GEMMA_4 = {**_TWO_KINDS, **_LAYER_INPUTS, "num_kv_shared_layers": 2, "global_head_dim": 8}
_DOTS_3 = {
    **_LATENT,
    **{f"swa_{name}": SIZES[name] for name in ("num_attention_heads", "q_lora_rank", "kv_lora_rank", "v_head_dim")},
    "swa_num_key_value_heads": _HEADS,
    "swa_qk_nope_head_dim": 8,
    "swa_head_dim": 12,
    "shared_experts_intermediate_size": 16,
}
_QWEN_4 = {
    "indexer_n_heads": 16,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 4,
    "indexer_compress_ratio": 2,
    "hc_lowrank": 8,
    "ngram_vocab_size_base": 64,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 1,
    "heads_per_ngram": 2,
}
_INKLING_2 = {
    "layer_types": ["hybrid_sliding", "hybrid"] * 2,
    "unpadded_vocab_size": VOCABULARY,
    "swa_num_attention_heads": _HEADS,
    "swa_num_key_value_heads": _KEY_HEADS,
    "swa_head_dim": 8,
    "d_rel": 8,
    "rel_extent": 64,
    "n_layers_per_attn_res_block": 2,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}

OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), _LATENT),
    **dict.fromkeys(("glm_moe_dsa", "minicpm3", "sarvam_mla", "youtu"), _LATENT),
    "bailing_hybrid": {**_LATENT, **_HYBRID},
    "bamba": {"attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 4},
    "inkling2_loop_text": {**_INKLING_2, "loop_layer_index_start": 2, "loop_layer_index_end": 4, "loop_num_passes": 2},
    "inkling2_text": _INKLING_2,
    "cohere_compass_text": {**_TWO_KINDS, "rope_parameters": dict.fromkeys(_TWO_KINDS["layer_types"], _ROPE)},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_top_k": 2, "hidden_size": _WIDTH},
    },
    "dots3_note": {
        "vision_config": {
            **_PICTURES,
            "adapter_in_dim": _WIDTH,
            "adapter_out_dim": _WIDTH,
            "mlp_layer_types": ["dense"],
        },
        "audio_config": {
            "adapter_out_dim": _WIDTH,
            "adapter_input_size": _WIDTH,
            "hidden_size": _WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
        },
        "text_config": _DOTS_3,
    },
    "dots3_note_text": _DOTS_3,
    "ernie4_5_moe": {"moe_k": 2, "moe_num_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "fuyu": {"text_config": {**_TEXT, "model_type": "persimmon"}, "image_token_id": 125},
    "gemma3": {
        "vision_config": {"model_type": "siglip_vision_model", **_PICTURES},
        "mm_tokens_per_image": 4,
        "image_token_index": 125,
    },
    "gemma3n_text": _GEMMA_3N,
    "gemma4": {
        "text_config": _GEMMA_4,
        "vision_config": None,
        "audio_config": None,
        "image_token_id": 125,
        "video_token_id": 124,
        "audio_token_id": 126,
    },
    "gemma4_text": _GEMMA_4,
    "gemma4_unified": {"vision_config": None, "audio_config": None},
    "git": {"vision_config": _PICTURES},
    "got_ocr2": {
        "text_config": {**_TEXT, "model_type": "qwen2"},
        "vision_config": {
            **_PICTURES,
            "output_channels": 8,
            "image_size": 32,
            "patch_size": 8,
            "global_attn_indexes": [0],
            "window_size": 2,
            "mlp_dim": 64,
        },
        "image_token_index": 125,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {**_HYBRID, "shared_intermediate_size": 32},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {**_LATENT, **_HYBRID, "linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2": _CONVOLUTIONS,
    "lfm2_moe": {**_CONVOLUTIONS, "num_dense_layers": 1},
    "longcat_flash": {
        "num_layers": 2,
        "num_key_value_heads": 4,
        "expert_ffn_hidden_size": 16,
        "zero_expert_num": 2,
        "head_dim": 4,
    },
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 2},
    "moss_transcribe_diarize": {
        "text_config": {**_TEXT, "model_type": "qwen3", "head_dim": 8},
        "audio_config": {**_PICTURES, "num_mel_bins": 8, "max_source_positions": 16},
        "audio_token_id": 125,
    },
    "phi4_multimodal": {
        "vision_config": {**_PICTURES, "crop_size": 28, "image_token_id": 125},
        "audio_config": {
            "hidden_size": _WIDTH,
            "intermediate_size": 64,
            "num_blocks": 1,
            "num_attention_heads": 4,
            "ext_pw_out_channel": _WIDTH,
            "depthwise_separable_out_channel": _WIDTH,
            "nemo_conv_channels": 8,
            "audio_token_id": 126,
            "input_size": 8,
        },
    },
    "qwen4_exp": {"text_config": _QWEN_4},
    "qwen4_exp_text": _QWEN_4,
    "reformer": {
        "axial_pos_embds": False,
        "attention_head_size": 8,
        "attn_layers": ["local", "lsh", "local", "lsh"],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "feed_forward_size": 64,
        "num_buckets": 2,
        "hash_seed": 1,
    },
    "roc_bert": {
        "pronunciation_vocab_size": 64,
        "shape_vocab_size": 64,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "xlm": {"emb_dim": _WIDTH, "causal": True, "embed_init_std": 0.2},
    "xlstm": {"qk_dim_factor": 1.0, "chunk_size": 16, "hidden_size": 64},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 6,
        "num_key_value_heads": 4,
        "mamba_dt_rank": 2,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid", "hybrid"],
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "n_mamba_heads": 4,
        "num_key_value_heads": 4,
        "adapter_rank": 4,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
"""Model type → further values of its configuration; those of a `text_config` are added to what `SIZES` gives it."""

IMPOSSIBLE: dict[str, str] = {
    "blt": "transformers cannot run it with its default cache: its configuration has no num_hidden_layers",
    "gemma3n": "its picture tower needs the package timm; the language model is gemma3n_text",
    "gemma4_assistant": "it drafts for another model from that model's keys and values, and does not run alone",
    "gemma4_unified_assistant": "it drafts for another model from that model's keys and values, and does not run alone",
    "reformer": "its hashing is random in training, and it takes no gradient otherwise: nothing says what is right",
    "musicgen": "AutoModelForCausalLM cannot make it of its configuration, and it writes audio codes, not text",
    "musicgen_melody": "AutoModelForCausalLM cannot make it of its configuration, and it writes audio codes, not text",
}
"""Model type → why no small model can be made of it."""

FLOAT32_ALONE: dict[str, str] = {
    "bloom": "its mask gives NaN in float64 for tokens that see nothing, as padding does (transformers' own)",
}
"""Model type → why it is tried in float32."""

MODEL_TYPES: tuple[str, ...] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""Every model type that `AutoModelForCausalLM` knows."""


def small_config(model_type: str, **overrides: Any) -> PretrainedConfig:
    """The configuration of a small model of this type."""
    kind = CONFIG_MAPPING[model_type]
    values = _sized(kind, {**OVERRIDES.get(model_type, {}), **overrides})
    text = getattr(kind, "sub_configs", {}).get("text_config")
    if dataclasses.is_dataclass(text):
        values["text_config"] = _sized(text, values.get("text_config", {}))
    return kind(**values)


def _sized(kind: type[Any], more: dict[str, Any]) -> dict[str, Any]:
    known = {item.name for item in dataclasses.fields(kind)}
    return {**{name: value for name, value in SIZES.items() if name in known}, **more}


def small_decoder(model_type: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A small random model, in float32 and eval mode: the same weights at every call.

    The state of torch's random generator is left as it was.
    """
    config = small_config(model_type, **overrides)
    with torch.device("meta"):
        size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    assert size <= MOST_PARAMETERS, f"{model_type} has {size:,} parameters: bring more of its fields down"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # The padding token's row is made of zeros, which score exactly the same in sparse attention.
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table[PAD] = 0.5 * (table[BOS] + table[VOCABULARY // 2])
    return model.float().eval()
