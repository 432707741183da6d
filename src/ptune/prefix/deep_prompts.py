"""Deep prompts, keys and values of every layer, between their two forms: rows as an encoder gives them, or a `Prefix`.

Li & Liang 2021, "Prefix-Tuning"; Liu et al. 2022, "P-Tuning v2". The rows are laid out as PEFT keeps them. As a
`Prefix` they are what every other prompt is once it has run through the model, so forward, packed rows and generation
take them. One thing they cannot give: what the model predicts for the first text token, since there is no hidden state
of the last virtual token. PEFT leaves out the label of the first token too.

Shapes: `P` virtual tokens, `L` layers, `H` key/value heads, `E` head dimension, `T` tokens, `D` token dimension, `V`
vocabulary.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from ptune.errors import ModelError
from ptune.frozen.cache_argument import as_cache
from ptune.frozen.capability import prefix_capability
from ptune.frozen.eval_mode import in_eval_mode
from ptune.frozen.parameters import device_of, has_weights
from ptune.frozen.parts import output_head
from ptune.prefix.keys_values import Prefix, keys_and_values

_SAME = 1e-3
"""Relative difference below which hidden states are the same at other positions."""
_TRIED = 32
"""Tokens of a text that show it."""


def prefix_of(
    rows: torch.Tensor, *, layers: int, heads: int, vocab_size: int, devices: Sequence[torch.device] | None = None
) -> Prefix:
    """Rows as keys and values, with their gradients and, on one device, without a copy.

    Args:
        rows: `(P, 2 L H E)`, in the model's dtype.
        layers: `L`.
        heads: `H`.
        vocab_size: `V`.
        devices: Of each layer, where a model is spread over several.
    """
    parts = rows.view(len(rows), 2 * layers, heads, -1).permute(1, 2, 0, 3).unsqueeze(1)
    places = [rows.device] * layers if devices is None else devices
    return Prefix(
        layers=tuple((parts[2 * at].to(place), parts[2 * at + 1].to(place)) for at, place in enumerate(places)),
        logits=rows.new_zeros(1, vocab_size),
        predicts=False,
    )


def rows_of(prefix: Prefix) -> torch.Tensor:
    """`(P, 2 L H E)` in float32: the keys and values of a prefix, whose layers are of one shape."""
    device = prefix.layers[0][0].device
    parts = [part[0].transpose(0, 1).flatten(1).float().to(device) for layer in prefix.layers for part in layer]
    return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class KeyValueShape:
    """Keys and values of one token, as a model's cache holds them."""

    layers: int
    """`L`."""
    heads: int
    """`H`."""
    head_dim: int
    """`E`."""

    @property
    def token_dim(self) -> int:
        """`H E`."""
        return self.heads * self.head_dim

    @property
    def numbers(self) -> int:
        """`2 L H E`."""
        return 2 * self.layers * self.token_dim

    def __str__(self) -> str:
        return f"{self.layers} layers with {self.heads} heads of {self.head_dim}"


_known: weakref.WeakKeyDictionary[PreTrainedModel, tuple[KeyValueShape, tuple[torch.device, ...]]]
_known = weakref.WeakKeyDictionary()


def key_value_shape(base: PreTrainedModel) -> KeyValueShape:
    """The shape of a model's keys and values, found by running one token.

    Raises:
        ModelError: It keeps no keys and values, or such as differ from layer to layer; or there is no model to run.
    """
    return _found(base)[0]


def tell_key_value_shape(base: PreTrainedModel, shape: KeyValueShape) -> None:
    """Say what the keys and values of a model without weights look like, which cannot be found by running it."""
    _known[base] = shape, ()


def layer_devices(base: PreTrainedModel) -> tuple[torch.device, ...] | None:
    """Where each layer keeps its keys and values; None for a model that is not spread over several devices."""
    return None if getattr(base, "hf_device_map", None) is None else _found(base)[1]


def _found(base: PreTrainedModel) -> tuple[KeyValueShape, tuple[torch.device, ...]]:
    if base not in _known:
        _known[base] = _look(base)
    return _known[base]


def _look(base: PreTrainedModel) -> tuple[KeyValueShape, tuple[torch.device, ...]]:
    name, capability = type(base).__name__, prefix_capability(base)
    hint = "Take an encoder of virtual-token embeddings, such as embedding."
    if not (capability.prefix or base.config.is_encoder_decoder):
        reason = capability.reason.partition(";")[0]
        raise ModelError(f"a prompt of keys and values needs a model that goes on from them, and {reason}.", hint=hint)
    if not has_weights(base):
        raise ModelError(
            f"the weights of this {name} are not here, and it must run on a token to show the shape of its keys and "
            "values, which a deep prompt is made of.",
            hint="Use the model itself.",
        )
    own = encode_tokens(base, [0])
    shapes = sorted({tuple(part.shape[1::2]) for layer in own.layers for part in layer})
    config = base.config.get_text_config(decoder=True)
    # An encoder-decoder may have more layers on one side than on the other.
    layers = len(own.layers) if config.is_encoder_decoder else getattr(config, "num_hidden_layers", len(own.layers))
    if len(shapes) > 1 or len(own.layers) != layers:
        found = " or ".join(f"{heads} heads of {size}" for heads, size in shapes)
        raise ModelError(
            f"{name} has {layers} layers and keeps keys and values in {len(own.layers)} of them, {found}; a deep "
            "prompt needs some of one shape in every layer.",
            hint=hint,
        )
    return KeyValueShape(len(own.layers), *shapes[0]), tuple(keys.device for keys, _ in own.layers)


def encode_tokens(base: PreTrainedModel, ids: Sequence[int], *, first_position: int = 0) -> Prefix:
    """The keys and values of a text, without gradients; it predicts what comes after it.

    Args:
        base: The frozen model.
        ids: Its `T` tokens.
        first_position: Where the text begins to count. The model must count distances alone.
    """
    return _run(base, ids, first_position, last=True)[0]


def counts_distances(base: PreTrainedModel, ids: Sequence[int]) -> bool:
    """Whether a model computes the same of a text wherever it begins to count, as rotary embeddings have it."""
    if not prefix_capability(base).takes_position_ids:
        return False
    here, there = (_run(base, ids[:_TRIED], first)[1].double() for first in (0, 1))
    return bool((there - here).norm() < _SAME * here.norm())


def _run(
    base: PreTrainedModel, ids: Sequence[int], first_position: int, *, last: bool = False
) -> tuple[Prefix, torch.Tensor]:
    """A text as a prefix, and what comes out of it `(T, …)`, or of its last token where that is enough."""
    given = torch.tensor([list(ids)], device=device_of(base))
    options: dict[str, Any] = {"attention_mask": torch.ones_like(given)}
    if last and output_head(base) is not None and not base.config.is_encoder_decoder:
        options["logits_to_keep"] = 1
    if first_position:
        options["position_ids"] = torch.arange(first_position, first_position + len(ids), device=given.device)[None]
    return _kept(base, {"input_ids": given, **options})


def encode_vectors(base: PreTrainedModel, vectors: torch.Tensor) -> Prefix:
    """The keys and values of vectors `(P, D)` that are run through a model as a text, without gradients."""
    return _kept(base, {"inputs_embeds": vectors.clone()[None]})[0]


@torch.no_grad()
def _kept(base: PreTrainedModel, inputs: dict[str, Any]) -> tuple[Prefix, torch.Tensor]:
    """What a model keeps of one row in its layers (an encoder-decoder in those of its decoder), and what comes out.

    In eval mode, whatever mode the model is in.
    """
    # A cache built without the configuration keeps every position, in sliding-window layers too.
    cache = DynamicCache()
    whole: Any = cache
    if base.config.is_encoder_decoder:
        whole = EncoderDecoderCache(cache, DynamicCache())
        read = {name.replace("input", "decoder_input", 1): value for name, value in inputs.items() if "input" in name}
        inputs = {**inputs, **read}
    with in_eval_mode(base):
        output = base(**inputs, **as_cache(base, whole), use_cache=True)
    found = output.logits if output_head(base) is not None else output.last_hidden_state
    logits = found[:, -1] if output_head(base) is not None else found.new_zeros(1, 1)
    return Prefix(layers=keys_and_values(cache), logits=logits), found[0]
