"""A soft prompt as keys and values: encode `P` vectors once, hand the result to every row.

In a causal model the virtual tokens attend only to themselves, so their keys and values are the same for every row
of a batch. `encode_prefix` runs the frozen model once over the `P` positions at batch size 1; `RowPrefix` expands
the result to the rows without copying, or gathers a different prompt for each row. Autograd sums the rows' gradients
into the one prefix by itself.

Shapes: `B` rows, `P` virtual tokens (the longest prompt where prompts differ), `D` token dimension, `H` key/value
heads, `E` head dimension, `V` vocabulary, `L` layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from ptune.frozen.cache_argument import as_cache
from ptune.frozen.filler_ids import fed
from ptune.frozen.transfer import sent
from ptune.prefix.growing_cache import GrowingLayer


@dataclass(frozen=True)
class Prefix:
    """One prompt, run through the frozen model."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    """Keys and values of each of the `L` layers, `(1, H, P, E)`."""
    logits: torch.Tensor
    """`(1, V)`: what the model predicts for the first text token."""
    predicts: bool = True
    """False where the keys and values are all there is, and `logits` mean nothing."""

    @property
    def length(self) -> int:
        """`P`."""
        return self.layers[0][0].shape[-2]


def encode_prefix(base: PreTrainedModel, vectors: torch.Tensor, *, filler_id: int | None = None) -> Prefix:
    """Run the frozen model over one prompt, with gradients where the vectors have them.

    Args:
        base: The frozen model.
        vectors: `(P, D)`, in the dtype of the model's embeddings.
        filler_id: The token id that virtual tokens go by; see `Capability`.
    """
    layers, logits = _encoded(base, vectors.unsqueeze(0), filler_id)
    return Prefix(layers=layers, logits=logits)


def encode_prefixes(base: PreTrainedModel, vectors: torch.Tensor, *, filler_id: int | None = None) -> list[Prefix]:
    """Run the frozen model over several prompts of one length at once; each gets memory of its own.

    Args:
        base: The frozen model.
        vectors: `(M, P, D)`, those of `M` prompts.
        filler_id: As for `encode_prefix`.
    """
    layers, logits = _encoded(base, vectors, filler_id)
    return [
        Prefix(
            layers=tuple((keys[at : at + 1].clone(), values[at : at + 1].clone()) for keys, values in layers),
            logits=logits[at : at + 1].clone(),
        )
        for at in range(len(vectors))
    ]


def _encoded(
    base: PreTrainedModel, vectors: torch.Tensor, filler_id: int | None
) -> tuple[tuple[tuple[torch.Tensor, torch.Tensor], ...], torch.Tensor]:
    """Keys and values of each layer, `(M, H, P, E)`, and what is predicted behind `(M, P, D)` vectors, `(M, V)`."""
    # A cache built without the configuration keeps every position, in sliding-window layers too.
    cache = DynamicCache()
    ids = None if filler_id is None else torch.full(vectors.shape[:2], filler_id, device=vectors.device)
    # Some models scale what they are given in place: a copy, for the vectors may be a parameter.
    model, inputs = fed(base, vectors.clone(), ids)
    output = model(**inputs, **as_cache(model, cache), use_cache=True, logits_to_keep=1)
    return keys_and_values(cache), output.logits[:, -1]


def keys_and_values(cache: DynamicCache) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """What each layer of a filled cache holds."""
    layers = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        layers.append((layer.keys, layer.values))
    return tuple(layers)


def filled_cache(layers: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> DynamicCache:
    """A new cache that starts with these keys and values, sharing their memory."""
    cache = DynamicCache()
    for keys, values in layers:
        layer = DynamicLayer()  # type: ignore[no-untyped-call]  # transformers' own
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


@dataclass(frozen=True)
class RowPrefix:
    """The prefix of each row of a batch; rows may have different prompts, or none."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    """Keys and values of each layer, `(B, H, P, E)`; shorter prompts are padded on the left."""
    mask: torch.Tensor | None
    """`(B, P)`, 1 at virtual tokens and 0 at padding; None when all are virtual tokens."""
    lengths: torch.Tensor
    """`(B,)`, virtual tokens of each row."""
    logits: torch.Tensor
    """`(B, V)`, the prediction for each row's first text token; without meaning where `predicting` is 0."""
    predicting: tuple[bool, ...]
    """For each row whether its prefix predicts the first text token."""

    @property
    def width(self) -> int:
        """`P`."""
        return self.layers[0][0].shape[-2]

    def cache(self) -> DynamicCache:
        """A new cache that starts with this prefix, sharing its memory."""
        return filled_cache(self.layers)

    def fill(self, cache: DynamicCache, repeats: int = 1, *, longest: int | None = None) -> DynamicCache:
        """Put the prefix into an empty cache, for generation; gives the cache back.

        Layers that keep every position share the prefix's memory until text comes, and have room for it then.

        Args:
            cache: Empty.
            repeats: How often each row stands in the batch (beams).
            longest: Positions there will be at most, virtual ones included; None where that is not known.
        """
        for index, (keys, values) in enumerate(self.layers):
            keys, values = _repeated(keys, repeats), _repeated(values, repeats)
            if index == len(cache.layers):
                cache.layers.append(GrowingLayer(keys, values, longest=longest))
            elif type(cache.layers[index]) is DynamicLayer and not cache.offloading:
                cache.layers[index] = GrowingLayer(keys, values, longest=longest)
            else:
                cache.update(keys, values, index)
        return cache

    def attention_mask(self, text_mask: torch.Tensor | None, rows: int, text_length: int) -> torch.Tensor | None:
        """`(rows, P + T)` from the text's mask; None when nothing is padded."""
        if self.mask is None and text_mask is None:
            return None
        device = self.lengths.device
        head = torch.ones(rows, self.width, dtype=torch.long, device=device) if self.mask is None else self.mask
        if head.shape[0] != rows:
            head = head.repeat_interleave(rows // head.shape[0], dim=0)
        tail = torch.ones(rows, text_length, dtype=torch.long, device=device) if text_mask is None else text_mask
        return torch.cat([head, tail.to(dtype=torch.long)], dim=1)


def _repeated(rows: torch.Tensor, repeats: int) -> torch.Tensor:
    """Each row `repeats` times; without copying where all are one row expanded."""
    if repeats == 1:
        return rows
    if rows.stride(0) == 0:
        return rows[:1].expand(rows.shape[0] * repeats, -1, -1, -1)
    return rows.repeat_interleave(repeats, dim=0)


def same_prefix(prefix: Prefix, rows: int) -> RowPrefix:
    """One prompt for all rows: expanded, not copied."""
    layers = tuple((k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in prefix.layers)
    device = prefix.logits.device
    lengths = torch.full((rows,), prefix.length, dtype=torch.long, device=device)
    return RowPrefix(
        layers=layers,
        mask=None,
        lengths=lengths,
        logits=prefix.logits.expand(rows, -1),
        predicting=(prefix.predicts,) * rows,
    )


def mixed_prefix(prefixes: Sequence[Prefix], choice: Sequence[int | None]) -> RowPrefix:
    """A prompt per row.

    Args:
        prefixes: The different prompts of the batch, at least one.
        choice: For each of the `B` rows the index of its prompt, or None for no prompt.
    """
    width = max(prefix.length for prefix in prefixes)
    device = prefixes[0].logits.device
    sizes = [0 if item is None else prefixes[item].length for item in choice]
    index, lengths = sent(torch.tensor([[0 if item is None else item for item in choice], sizes]), device)

    def gather(layer: int, part: int) -> torch.Tensor:
        padded = [F.pad(p.layers[layer][part], (0, 0, width - p.length, 0)) for p in prefixes]
        joined = torch.cat(padded)  # on the layer's own device, where a model is spread over several
        return joined.index_select(0, index.to(joined.device))

    layers = tuple((gather(layer, 0), gather(layer, 1)) for layer in range(len(prefixes[0].layers)))
    logits = torch.cat([prefix.logits for prefix in prefixes]).index_select(0, index)
    return RowPrefix(
        layers=layers,
        mask=(torch.arange(width, device=device) >= width - lengths[:, None]).long() if min(sizes) < width else None,
        lengths=lengths,
        logits=logits,
        predicting=tuple(item is not None and prefixes[item].predicts for item in choice),
    )
