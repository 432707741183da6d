"""Which module has a fused stand-in.

Modules of transformers are told by the name of their class: importing the classes themselves would load the code of
every model. Only classes whose code was read are named; a subclass of one of them may compute something else.
"""

from __future__ import annotations

import functools

from torch import nn
from transformers.pytorch_utils import Conv1D

from ptune.frozen.product import FrozenConv1D, FrozenLinear
from ptune.packed.fused.gated_mlp import FrozenGatedMLP
from ptune.packed.fused.known_code import all_known
from ptune.packed.fused.rms_norm import FrozenRMSNorm
from ptune.packed.fused.rotary import (
    FrozenConfigWindowAttention,
    FrozenNormedAttention,
    FrozenRotaryAttention,
    FrozenWindowAttention,
)
from ptune.packed.fused.tanh_gelu import FusedTanhGELU

_LIKE_LLAMA: dict[str, tuple[str, type[nn.Module]]] = {
    "llama": ("Llama", FrozenRotaryAttention),
    "mistral": ("Mistral", FrozenConfigWindowAttention),
    "qwen2": ("Qwen2", FrozenWindowAttention),
    "qwen3": ("Qwen3", FrozenNormedAttention),
}
_BLOOM = "transformers.models.bloom.modeling_bloom"
_MIXINS: dict[tuple[str, str], type[nn.Module]] = {
    **{
        (f"transformers.models.{family}.modeling_{family}", f"{prefix}{part}"): mixin
        for family, (prefix, attention) in _LIKE_LLAMA.items()
        for part, mixin in (("RMSNorm", FrozenRMSNorm), ("MLP", FrozenGatedMLP), ("Attention", attention))
    },
    (_BLOOM, "BloomGelu"): FusedTanhGELU,
    ("transformers.activations", "NewGELUActivation"): FusedTanhGELU,
}
_ROTARY = ("apply_rotary_pos_emb", "rotate_half")
_HELPERS = {
    **{f"{prefix}Attention": _ROTARY for prefix, _ in _LIKE_LLAMA.values()},
    "BloomGelu": ("GeLUFunction", "bloom_gelu_forward", "bloom_gelu_back"),
}
"""What else the code of a class calls."""
_BLOOM_PARTS = ("BloomModel", "BloomAttention", "BloomBlock", "build_alibi_tensor")


def has_own_packing(kind: type[nn.Module]) -> bool:
    """Whether ptune has packed layers for a model of this class."""
    return (kind.__module__, kind.__qualname__) == (_BLOOM, "BloomForCausalLM") and _bloom_is_known()


@functools.cache
def _bloom_is_known() -> bool:
    return all_known(_BLOOM, _BLOOM_PARTS)


def replacement(kind: type[nn.Module]) -> type[nn.Module]:
    """The class that stands in for `kind`; `kind` itself where there is none."""
    return _replacement(kind)  # type: ignore[arg-type]  # transformers gives nn.Module a __hash__ of its own


@functools.cache
def _replacement(kind: type[nn.Module]) -> type[nn.Module]:
    if kind is nn.Linear:
        return FrozenLinear
    if kind is Conv1D:
        return FrozenConv1D
    if kind.__module__ == _BLOOM and kind.__qualname__ in ("BloomModel", "BloomAttention") and _bloom_is_known():
        from ptune.packed.fused.bloom import PackedBloomAttention, PackedBloomModel

        return PackedBloomModel if kind.__qualname__ == "BloomModel" else PackedBloomAttention
    mixin = _MIXINS.get((kind.__module__, kind.__qualname__))
    if mixin is None or not all_known(kind.__module__, (kind.__name__, *_HELPERS.get(kind.__name__, ()))):
        return kind
    return type(f"Frozen{kind.__name__}", (mixin, kind), {})
