"""PEFT's prefix tuning: an adapter that holds keys and values of every layer in place of virtual-token embeddings.

Li & Liang 2021, "Prefix-Tuning". PEFT 0.21 keeps them under the same key as a prompt, as one row a virtual token:
layer after layer, keys before values, head after head. That is the output of the projection where there was one
(`prefix_projection`), which PEFT bakes as it bakes a prompt encoder. Heads are key/value heads, `token_dim` is their
number times their size, and keys are as the cache has them: no position is turned into them when they are loaded.

Shapes: `P` virtual tokens, `L` layers, `H` key/value heads, `E` head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ptune.errors import PromptError
from ptune.saved.format import check_alone, read_tensors
from ptune.saved.opened_folder import OpenedFolder
from ptune.saved.peft import ADAPTER_WEIGHTS, PEFT_KEY

_SIZES = ("num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim")


@dataclass(frozen=True, kw_only=True)
class SavedPrefix:
    """What a prefix-tuning adapter holds."""

    values: torch.Tensor
    """`(P, 2 L H E)` float32, as PEFT keeps them."""
    layers: int
    """`L`."""
    heads: int
    """`H`."""
    base_model: str | None
    """The frozen model it was trained on."""
    revision: str | None
    """Its revision on the hub."""


def read_prefix(opened: OpenedFolder) -> SavedPrefix:
    """Read a prefix-tuning adapter.

    Raises:
        PromptError: Missing, damaged, not finite, or for an encoder-decoder; the message names the file.
    """
    folder, config = opened.path, opened.details["config"]
    length, layers, heads, width = _sizes(folder, config)
    weights = read_tensors(folder, ADAPTER_WEIGHTS, {})
    check_alone(folder, weights)
    values = weights.get(PEFT_KEY)
    wanted = (length, 2 * layers * width)
    if values is None or tuple(values.shape) != wanted:
        found = "no tensor" if values is None else f"shape {tuple(values.shape)}"
        raise PromptError(f"{folder / ADAPTER_WEIGHTS}: {PEFT_KEY} has {found}, expected {wanted}.")
    return SavedPrefix(
        values=values.float(),
        layers=layers,
        heads=heads,
        base_model=config.get("base_model_name_or_path"),
        revision=config.get("revision"),
    )


def _sizes(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """`P`, `L`, `H` and `H E`, checked."""
    if config.get("task_type") not in (None, "CAUSAL_LM") or config.get("num_transformer_submodules") not in (None, 1):
        raise PromptError(
            f"{folder} is for the task {config.get('task_type')!r}; ptune answers with causal models (CAUSAL_LM)."
        )
    for name in _SIZES:
        value = config.get(name)
        if type(value) is not int or value < 1:
            raise PromptError(f"{folder} is damaged: {name} is {value!r}, not a whole number of at least 1.")
    length, layers, heads, width = (config[name] for name in _SIZES)
    if width % heads:
        raise PromptError(f"{folder} is damaged: token_dim {width} is no multiple of num_attention_heads {heads}.")
    return length, layers, heads, width
