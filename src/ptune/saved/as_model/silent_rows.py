"""Output rows for virtual tokens, which no answer may hold.

A token of the vocabulary is an output too. Where input and output embeddings are one table, a virtual token's vector
would be its output row, and takes up to all of the probability: hence the tables are parted, and all virtual tokens get
one output row of another kind. An LM head with a bias makes it exact: a bias that no logit reaches. Without one:

- The mean of all rows has, at every position, the mean of all logits, so that by Jensen's inequality its probability is
  at most 1/V there: whatever the text, and without running the model.
- The mean of the quietest tokens' rows has the mean of their logits: at most the mean of probabilities that are tiny
  wherever they were looked at. A vocabulary holds many tokens that training hardly met.
- Beyond it, on the line from the one to the other, it is quieter still, until it is not: how far to go is measured, on
  short texts of several kinds, bare and behind the prompts, and on random tokens.

A multiple of the mean final hidden state, turned round, was tried and is worse: on real text some states of SmolLM2 lie
on the other side.

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
_QUIETEST = 100
_FURTHEST = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
"""How far from the mean of all rows (0) to that of the quietest (1) and beyond is tried."""
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
    """`bias`, `quietest` or `mean`."""
    largest_share: float | None
    """The most of the probability that all virtual tokens had together where it was measured; None: not measured."""
    positions: int
    """Where it was measured."""


def unmeasured_row(base: PreTrainedModel) -> SilentRow:
    """The row that needs no run of the model: the mean of all rows."""
    head: Any = output_head(base)
    return SilentRow(_mean(head.weight), "mean" if head.bias is None else "bias", None, 0)


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
    with torch.inference_mode():
        _check_embeddings_are_all(base, tokenizer)
        if head.bias is not None:
            return SilentRow(_mean(head.weight), "bias", 0.0, 0)
        rows = list(_rows(base, tokenizer, prompts))
        loudest = torch.stack([_log_shares(base, row).amax(0) for row in rows]).amax(0)
        quiet = loudest.argsort()[: max(1, min(_QUIETEST, len(loudest) // 10))]
        mean, quietest = _mean(head.weight), _mean(head.weight[quiet.to(head.weight.device)])
        tried = torch.stack([mean + far * (quietest - mean) for far in _FURTHEST])
        with _widened(head, tried):
            logs = torch.cat([_log_odds(base, row, len(tried)) for row in rows])
    worst = logs.amax(0)
    best = int(worst.argmin())
    odds = tokens * float(worst[best].exp())
    return SilentRow(tried[best].cpu(), "quietest" if best else "mean", odds / (1 + odds), len(logs))


def _mean(weights: torch.Tensor) -> torch.Tensor:
    """The mean of the rows, in float32, on the CPU."""
    return weights.detach().mean(0, dtype=torch.float32).cpu()


def _log_shares(base: PreTrainedModel, row: torch.Tensor) -> torch.Tensor:
    """`(T, V)` logarithms of the probabilities behind each token of `(1, T, D)`."""
    logits: torch.Tensor = base(inputs_embeds=row).logits[0]
    return logits.float().log_softmax(-1).cpu()


def _log_odds(base: PreTrainedModel, row: torch.Tensor, count: int) -> torch.Tensor:
    """`(T, K)`: of each of the last `count` outputs, against all others but those."""
    logits: torch.Tensor = base(inputs_embeds=row).logits[0].float()
    return (logits[:, -count:] - logits[:, :-count].logsumexp(-1, keepdim=True)).cpu()


def _rows(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[torch.Tensor]
) -> Iterator[torch.Tensor]:
    """`(1, T, D)` of each text, bare and behind the prompts in turn, and of random tokens."""
    layer: Any = base.get_input_embeddings()
    place, dtype = device_of(base), layer.weight.dtype
    encoded = [ids for ids in (_ids(tokenizer, text) for text in _TEXTS) if ids]  # a vocabulary may lack a script
    texts = [layer(torch.tensor([ids], device=place)) for ids in encoded]
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
def _widened(head: torch.nn.Module, rows: torch.Tensor) -> Iterator[None]:
    """Let the LM head give the logits of `(K, H)` rows behind its own, for the rest of the model to scale as those."""

    def wider(_: torch.nn.Module, given: tuple[torch.Tensor, ...], logits: torch.Tensor) -> torch.Tensor:
        return torch.cat([logits, F.linear(given[0], rows.to(given[0]))], dim=-1)

    hook = head.register_forward_hook(wider)
    try:
        yield
    finally:
        hook.remove()
