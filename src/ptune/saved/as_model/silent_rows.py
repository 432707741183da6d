"""Output rows for virtual tokens, which no answer may hold.

A token of the vocabulary is an output too. Where input and output embeddings are one table, a virtual token's vector
would be its output row, and takes up to all of the probability: hence the tables are parted, and the virtual tokens
all get one output row of another kind. An LM head with a bias makes it exact: a row of zeros, and a bias that no
logit reaches. Without one, the row points away from where the model's final hidden states lie: they have a large mean
(Ethayarajh 2019, "How Contextual are Contextualized Word Representations?"), so that minus a multiple of it gives a low
logit at every position. How large a multiple is best is measured, on short texts of several kinds, bare and behind the
prompts, and on random tokens; a row of zeros is among what is tried, so that the outcome is never worse than that.

Shapes: `T` tokens, `P` virtual tokens, `V` vocabulary, `D` token dimension, `H` input size of the LM head, `K` rows
that are tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptune.errors import ModelError
from ptune.frozen.parameters import device_of
from ptune.frozen.parts import output_head

SILENT_BIAS = -1e4
"""Within float16's range, and beyond any logit's."""
_STRENGTHS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Multiples of the mean top logit that are tried as the logit, below zero, at the mean state."""
_PROMPTS = 8
"""Prompts that are looked behind."""
_RANDOM_TOKENS = 64
_SAME = 0.02
"""The largest difference of logits, relative to the largest one, between token ids and their embeddings."""
_TEXTS = (
    "The parcel was sent on Monday, but it never arrived. Could you tell me where it is?",
    "Question: What is the capital of Portugal?\nAnswer: Lisbon.\n\nQuestion: And how many people live there?\nAnswer:",
    '{"name": "lamp", "price": 19.99, "tags": ["light", "desk"], "stock": null}',
    "def area(width, height):\n    return width * height\n\nprint(area(3, 4))\n",
    "1. Wash the rice.\n2. Boil it for 12 minutes.\n3. Let it stand, covered.\n",
    "Once upon a time there was an old house at the end of the lane, and nobody had the key to it.",
    "Das Wetter bleibt schön, am Abend ziehen Wolken auf. Il fera plus frais demain.",
    "今天天气很好，我们去公园散步。",
    "I love this film! It is slow at first, though the ending more than makes up for it. 9/10",
)


@dataclass(frozen=True)
class SilentRow:
    """The output row of every virtual token."""

    row: torch.Tensor
    """`(H,)` float32."""
    how: str
    """`bias`, `opposite` or `zeros`."""
    largest_share: float | None
    """The most of the probability that all virtual tokens had together where it was measured; None: not measured."""
    positions: int
    """Where it was measured."""


def unmeasured_row(base: PreTrainedModel) -> SilentRow:
    """The row that needs no run of the model: zeros."""
    head: Any = output_head(base)
    return SilentRow(torch.zeros(head.weight.shape[1]), "zeros" if head.bias is None else "bias", None, 0)


def silent_row(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[torch.Tensor], tokens: int
) -> SilentRow:
    """The row that leaves the virtual tokens the least of the probability, measured.

    Args:
        base: The frozen model.
        tokenizer: Its own.
        prompts: `(P, D)` of each prompt.
        tokens: All virtual tokens.

    Raises:
        ModelError: The model makes more of token ids than their embeddings.
    """
    head: Any = output_head(base)
    rows = list(_rows(base, tokenizer, prompts))
    hidden: list[torch.Tensor] = []
    with torch.inference_mode(), _watched(head, hidden):
        _check_embeddings_are_all(base, tokenizer)
        hidden.clear()
        top = [float(base(inputs_embeds=row).logits.float().amax(-1).mean()) for row in rows]
    states = torch.cat(hidden).float()
    if head.bias is not None:
        return SilentRow(torch.zeros(states.shape[1]), "bias", 0.0, len(states))
    mean = states.mean(0)
    away = -mean / mean.square().sum()
    tried = torch.stack([strength * sum(top) / len(top) * away for strength in _STRENGTHS])
    worst = torch.full((len(tried),), -torch.inf)
    with torch.inference_mode(), _widened(head, tried):
        for row in rows:
            logits = base(inputs_embeds=row).logits[0].float().cpu()
            others = torch.logsumexp(logits[:, : -len(tried)], dim=-1, keepdim=True)
            worst = torch.maximum(worst, (logits[:, -len(tried) :] - others).amax(0))
    best = int(worst.argmin())
    odds = tokens * float(worst[best].exp())
    return SilentRow(tried[best].cpu(), "opposite" if best else "zeros", odds / (1 + odds), len(states))


def _rows(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[torch.Tensor]
) -> Iterator[torch.Tensor]:
    """`(1, T, D)` of each text, bare and behind the prompts in turn, and of random tokens."""
    layer, place = base.get_input_embeddings(), device_of(base)
    dtype = layer.weight.dtype
    texts = [layer(torch.tensor([_ids(tokenizer, text)], device=place)) for text in _TEXTS]
    yield from texts
    for at, vectors in enumerate(prompts[:_PROMPTS]):
        for text in (texts[at % len(texts)], texts[(at + 1) % len(texts)]):
            yield torch.cat([vectors.to(place, dtype)[None], text], dim=1)
    drawn = torch.randint(len(tokenizer), (1, _RANDOM_TOKENS), generator=torch.Generator().manual_seed(0))
    yield layer(drawn.to(place))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return ids


def _check_embeddings_are_all(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ModelError` where the logits of token ids are not those of their embeddings."""
    ids = torch.tensor([_ids(tokenizer, _TEXTS[0])], device=device_of(base))
    from_ids = base(input_ids=ids).logits.float()
    try:
        given = base(inputs_embeds=base.get_input_embeddings()(ids)).logits.float()
        same = bool((from_ids - given).abs().max() <= _SAME * from_ids.abs().max())
    except (ValueError, TypeError, RuntimeError):
        same = False
    if not same:
        raise ModelError(
            f"{base.name_or_path} ({type(base).__name__}) makes more of token ids than their embeddings, so a row of "
            "its table cannot be a virtual token.",
            hint="Answer with ptune: ptune generate, ptune chat.",
        )


@contextmanager
def _watched(head: torch.nn.Module, hidden: list[torch.Tensor]) -> Iterator[None]:
    """Keep the `(T, H)` states that the LM head is given."""
    hook = head.register_forward_pre_hook(lambda _, given: hidden.append(given[0].reshape(-1, given[0].shape[-1])))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _widened(head: torch.nn.Module, rows: torch.Tensor) -> Iterator[None]:
    """Let the LM head give the logits of `(K, H)` rows behind its own, for the rest of the model to scale as those."""

    def wider(_: torch.nn.Module, given: tuple[torch.Tensor, ...], logits: torch.Tensor) -> torch.Tensor:
        return torch.cat([logits, F.linear(given[0], rows.to(given[0]))], dim=-1)

    hook = head.register_forward_hook(wider)
    try:
        yield
    finally:
        hook.remove()
