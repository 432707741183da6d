"""What flags may name, and the defaults that need no model: encoders, starts, kinds of numbers, metrics, tasks.

No library is needed for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version

TASKS = LM, CLASSIFY, TAG, QA, SEQ2SEQ, FILL = ("lm", "classify", "tag", "qa", "seq2seq", "fill")
"""What a model is for: a causal language model's answers; classes of texts or pairs; tags of words; answers marked in a
context; texts for texts; a word in a gap."""
WITH_HEAD = (CLASSIFY, TAG, QA)
"""Tasks in which a head trains with the prompt."""
EMBEDDING = "embedding"
SOFT_ENCODERS = (EMBEDDING, "residual", "mlp", "lstm")
"""Prompt encoders that give virtual-token embeddings."""
DEEP_ENCODERS = PREFIX, PREFIX_MLP = ("prefix", "prefix-mlp")
"""Those that give keys and values of every layer."""
ENCODER_NAMES = (*SOFT_ENCODERS, *DEEP_ENCODERS)
TEXT_TOKENS = ("first", "last", "even")
INITS_FROM_ROWS = ("frequent", "data")
INIT_NAMES = ("random", "vocab", *INITS_FROM_ROWS, "text")
QUANTIZATION_NAMES = ("int8", "8bit", "4bit")
DTYPE_NAMES = ("auto", "float32", "bfloat16", "float16")
DEVICE_MAP_NAMES = ("auto", "balanced", "balanced_low_0", "sequential")
_DEVICE = re.compile(r"cpu|disk|mps|(cuda|xpu|npu|hpu)(:\d+)?")
TRAIN_ON_NAMES = LAST_TURN, ALL_TURNS = ("last", "all-turns")
METRIC_GROUPS = {
    "tokens": ("loss", "perplexity", "token_accuracy"),
    "texts": ("exact_match", "f1", "rouge1", "rouge2", "rougeL", "bleu", "chrf"),
    "rouge": ("rouge1", "rouge2", "rougeL"),
    "json": ("json_valid", "json_exact", "json_keys"),
    "labels": ("accuracy", "accuracy_norm", "macro_f1", "macro_f1_norm"),
}
"""What answers are measured by, and names for several at once."""
METRIC_NAMES = tuple(dict.fromkeys(name for group in METRIC_GROUPS.values() for name in group))
NEW_TOKENS = 128
"""Tokens of the longest answer where no length is asked for."""
GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
"""Options of `generate` that take the likeliest token, whatever the model's own defaults are."""
_TRANSFORMERS = tuple(int(part) for part in version("transformers").split(".")[:2])
CHECKPOINTING = f"{'activation' if _TRANSFORMERS >= (5, 23) else 'gradient'}_checkpointing"
"""The training argument that computes activations again in the backward; 5.23 gave it another name."""
LEARNING_RATES = {EMBEDDING: 0.3, "residual": 5e-3, "mlp": 1e-3, "lstm": 1e-3, PREFIX: 2e-2, PREFIX_MLP: 1e-3}
"""Default rate for each encoder, from trials on SmolLM2-135M; that of `embedding` is a share of the standard deviation
of the model's token embeddings. See `ptune.prompt.default_rate` and docs/concepts.md."""
ADAM_BETAS = {"adam_beta1": 0.7, "adam_beta2": 0.98}
"""Adam's decay rates for a soft prompt: it trains for a hundred steps rather than ten thousand, and 0.9 and 0.999
average over ten and a thousand. See docs/concepts.md."""


def device_map_fault(device_map: str | Mapping[str, str | int]) -> str | None:
    """What is wrong with the form of a device map; whether its devices are there is not known here."""
    for place in device_map.values() if isinstance(device_map, Mapping) else (device_map,):
        named = isinstance(place, str) and (_DEVICE.fullmatch(place) or place == device_map in DEVICE_MAP_NAMES)
        if not named and (type(place) is not int or place < 0):
            names = "" if isinstance(device_map, Mapping) else f"{', '.join(DEVICE_MAP_NAMES)} or "
            return f"device_map: {place!r} is not {names}a device, such as cpu or cuda:1"
    return "device_map is empty" if not device_map else None
