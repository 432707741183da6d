"""Quantization of the frozen model: which package does it, and what a product with such weights is.

| name | weights of the linear layers | by | source |
| --- | --- | --- | --- |
| `int8` | 8 bits, one scale a row | torchao | round to nearest |
| `8bit` | 8 bits, outliers apart | bitsandbytes | LLM.int8(), Dettmers et al. 2022 |
| `4bit` | NF4 in blocks of 64, scales in 8 bits too | bitsandbytes | QLoRA, Dettmers et al. 2023 |

Embeddings, LM head, norms and biases keep the model's dtype; the prompt encoder is float32 as ever. torchao's own
product leaves a full-size copy of every weight for the backward; ptune's unpacks the weight once more there instead.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from ptune.choices import QUANTIZATION_NAMES
from ptune.errors import ModelError, unknown

_REPACKS = "support_avx512bf16_for_cpu"
"""bitsandbytes' name, on its 4-bit layers, for the right to lay weights out anew for answering."""
_PACKAGES = {"int8": "torchao", "8bit": "bitsandbytes", "4bit": "bitsandbytes"}


def quantization_options(kind: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Arguments for `from_pretrained` that quantize a model as it is loaded.

    Args:
        kind: `int8`, `8bit` or `4bit`.
        dtype: What stays of the model, and what 4-bit products are computed in.
        device: Where the weights go; bitsandbytes packs them on their way there.

    Raises:
        ConfigError: An unknown kind.
        ModelError: The package that does it is not installed.
    """
    if kind not in QUANTIZATION_NAMES:
        raise unknown("quantization", kind, QUANTIZATION_NAMES)
    package = _PACKAGES[kind]
    if importlib.util.find_spec(package) is None:
        raise ModelError(
            f"quantization {kind} needs the package {package}, which is not installed.",
            hint='Run pip install "ptune[quantized]".',
        )
    made: BitsAndBytesConfig | TorchAoConfig
    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        made = TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    elif kind == "8bit":
        made = BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    else:
        made = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": made, "device_map": {"": device}}


def repacking_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Layers that lay their weights out anew when they first answer: 4-bit ones on a CPU with AVX512-BF16.

    The product with such weights is fast, and hands no gradient on; nothing brings them back.
    """
    return [module for module in model.modules() if getattr(module, _REPACKS, False)]


def let_repack(layers: list[nn.Module], allowed: bool) -> None:
    """Let `repacking_layers` do that from now on, or not."""
    for layer in layers:
        setattr(layer, _REPACKS, allowed)


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether the model's weights are quantized, by ptune or in its checkpoint."""
    return bool(getattr(model, "is_quantized", False))


def check_quantized(model: PreTrainedModel, kind: str) -> None:
    """Raise `ModelError` when there was nothing to quantize: GPT-2 has no layers that torchao takes."""
    if all(type(weight) is nn.Parameter and weight.is_floating_point() for _, weight in inner_weights(model)):
        raise ModelError(
            f"quantization {kind} found no layer in {type(model).__name__} that it can take.",
            hint="Leave quantization out, or try another.",
        )


def inner_weights(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    """The matrices that quantization may take, by name: all but embeddings (of positions too) and LM head."""
    heads = (model.get_output_embeddings(),)  # type: ignore[no-untyped-call]
    kept = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding) or module in heads}
    return [(name, weight) for name, weight in model.named_parameters() if weight.ndim >= 2 and id(weight) not in kept]
