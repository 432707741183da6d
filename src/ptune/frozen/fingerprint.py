"""Short, stable names for a frozen model's weights and for a tokenizer.

A soft prompt means nothing to another model. Two checkpoints may share every shape and differ in every number, so the
name is made from weights: a strided sample of each parameter. The sample is brought to bfloat16 before it is hashed, so
that one checkpoint has one fingerprint whether it is loaded in float32 or in bfloat16. Digests of the parameters are
sorted before they are joined: neither the order nor the names of the modules, which change between versions of a
library, take part.

A quantized model (`ptune.frozen.quantized`) has lost the numbers of its linear layers. What is left of it,
embeddings, LM head, norms and biases, names it well enough: `unquantized_fingerprint`, which a full model has too.

What this does not see: a change between the sampled numbers of a parameter only (a single edited row of the embedding);
settings that no weight shows, such as the base of the rotary positions. A checkpoint rounded to float16 or to fewer
bits is another model, and has another fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections import defaultdict
from collections.abc import Iterator, Set
from contextlib import nullcontext

import numpy as np
import torch
from accelerate.utils import align_module_device
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptune.errors import ModelError
from ptune.frozen.quantized import inner_weights

SAMPLES_PER_PARAMETER = 64
_DIGITS = 32
_KEPT: weakref.WeakKeyDictionary[PreTrainedModel, tuple[str, str]] = weakref.WeakKeyDictionary()
"""Both fingerprints of models whose weights are no longer here as a whole."""
_CONFIG_NAMES = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads")
# Where tokenizers of one vocabulary differ: digits, runs of spaces, line ends, capitals, accents, scripts, emoji, code.
_PROBES = (
    "Order 40312 costs 19.99, isn't it?",
    "  two  spaces\n\n1. Item\tTAB\r\n",
    "Straße, naïve, ÉCOLE, ﬁne",
    "软提示很小。 これはテスト",
    "🙂 def f(x): return x**2  # done",
)


def fingerprint(model: PreTrainedModel) -> str:
    """32 hexadecimal digits naming the weights of `model`, the same in float32 and in bfloat16.

    Reads at most 127 numbers of each parameter: milliseconds for small models, and no copy of large ones.

    Raises:
        ModelError: A parameter has no data (the model is on the meta device).
    """
    return _KEPT[model][0] if model in _KEPT else _digest(model, {name for name, _ in model.named_parameters()})


def keep_fingerprints(model: PreTrainedModel) -> None:
    """Take both fingerprints of a model before its weights are scattered over processes."""
    _KEPT[model] = fingerprint(model), unquantized_fingerprint(model)


def _digest(model: PreTrainedModel, names: Set[str]) -> str:
    """The digest of a model's parameters of these names."""
    config = model.config.get_text_config(decoder=True)
    essentials = {name: getattr(config, name, None) for name in _CONFIG_NAMES}
    whole = hashlib.sha256(json.dumps(essentials, sort_keys=True).encode())
    for digest in sorted(_parameter_digests(model, names)):
        whole.update(digest)
    return whole.hexdigest()[:_DIGITS]


def _parameter_digests(model: PreTrainedModel, names: Set[str]) -> Iterator[bytes]:
    """The digest of each parameter: of its shape and its sample. They come from each device in one copy."""
    samples: dict[torch.device, list[tuple[torch.Size, torch.Tensor]]] = defaultdict(list)
    for shape, sample in _samples(model, names):
        samples[sample.device].append((shape, sample))
    for found in samples.values():
        lengths = [len(sample) for _, sample in found]
        whole = torch.cat([sample for _, sample in found]).view(torch.int16).cpu().numpy().astype("<i2")
        for (shape, _), bits in zip(found, np.split(whole, np.cumsum(lengths[:-1])), strict=True):
            yield hashlib.sha256(json.dumps(list(shape)).encode() + bits.tobytes()).digest()


def _samples(model: PreTrainedModel, names: Set[str]) -> Iterator[tuple[torch.Size, torch.Tensor]]:
    """Shape and sample of each parameter."""
    for place, module in model.named_modules():
        own = {f"{place}.{name}".lstrip("."): name for name, _ in module.named_parameters(recurse=False)}
        chosen = own.keys() & names
        # What accelerate has offloaded to the CPU or a disk is there for as long as it is looked at.
        away = any(module.get_parameter(own[name]).is_meta for name in chosen)
        with align_module_device(module) if away else nullcontext():
            for name in chosen:
                parameter = module.get_parameter(own[name])
                yield parameter.shape, _sample(name, parameter)


def unquantized_fingerprint(model: PreTrainedModel) -> str:
    """The same, of the parameters alone that quantization leaves as they are. Raises as `fingerprint`."""
    if model in _KEPT:
        return _KEPT[model][1]
    inner = {name for name, _ in inner_weights(model)}
    return _digest(model, {name for name, _ in model.named_parameters()} - inner)


def _sample(name: str, parameter: torch.Tensor) -> torch.Tensor:
    """A strided sample of a parameter's numbers, in bfloat16 and with memory of its own."""
    if parameter.is_meta:
        raise ModelError(
            f"the weights of {name!r} are not loaded (meta device), so the model cannot be told from others.",
            hint="Load the model with its weights first.",
        )
    flat = parameter.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLES_PER_PARAMETER)].to(torch.bfloat16, copy=True)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """32 hexadecimal digits naming what `tokenizer` does: vocabulary, special ids, and how it cuts a few probe texts.

    The same after saving and loading, and whatever padding or truncation was last asked for. The chat template takes
    no part.
    """
    # The padding token marks what is ignored; that ptune filled it in does not make another tokenizer.
    named = {name: token for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}
    special = {name: tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
    content = [sorted(tokenizer.get_vocab().items()), special, [tokenizer(text)["input_ids"] for text in _PROBES]]
    encoded = json.dumps(content, sort_keys=True, ensure_ascii=True).encode()
    return hashlib.sha256(encoded).hexdigest()[:_DIGITS]
