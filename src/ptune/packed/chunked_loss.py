"""Losses behind a frozen LM head in chunks: no more than a few rows of logits exist at a time.

The head is frozen, so its gradient goes to the hidden states alone and is known as soon as a chunk's logits are: it is
computed in the forward, the chunk's logits are turned into their own gradient in place and let go, and the backward has
nothing left to do but scale. This is the idea of Liger's fused linear cross-entropy (Hsu et al. 2024), without a
gradient for the weights. Two losses are made of it: cross-entropy with one right token, and the divergence from a
teacher's likeliest tokens.

Shapes: `S` supervised positions, `D` hidden size, `V` vocabulary, `C` positions of a chunk, `K` tokens of the teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ptune.data.soft_labels import SoftLabels
from ptune.packed.head import FrozenHead

CHUNK_BYTES = 24 * 2**20
"""Size of a chunk's logits in float32. Smaller chunks read the head's weights more often; larger take new pages."""
_FEWEST, _FEWEST_ELSEWHERE = 16, 512
"""The least positions of a chunk on the CPU, and on an accelerator, which a small product leaves idle."""
_NOTHING = 1e-6
"""A teacher's probability of all other tokens that is 0 but for rounding."""

IntoGradient = Callable[[torch.Tensor, slice], torch.Tensor]
"""(logits `(C, V)` of the positions, which they are) → their summed loss; turns the logits into its gradient."""


def positions_at_once(vocab_size: int, device_type: str) -> int:
    """`C`."""
    fewest = _FEWEST if device_type == "cpu" else _FEWEST_ELSEWHERE
    return max(CHUNK_BYTES // (4 * vocab_size), fewest)


def summed_cross_entropy(head: FrozenHead, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The cross-entropy summed over positions, in nats; float32, or float64 where the model is.

    Args:
        head: The LM head.
        hidden: `(S, D)`.
        targets: `(S,)` token ids.
    """
    return _summed(hidden, head, lambda logits, at: _cross_entropy(logits, targets[at]))


def summed_divergence(head: FrozenHead, hidden: torch.Tensor, teacher: SoftLabels) -> torch.Tensor:
    """KL(teacher ‖ model) summed over positions, in nats, over the teacher's `K` tokens and all others together.

    Args:
        head: The LM head.
        hidden: `(S, D)`.
        teacher: `(S, K)`.
    """
    return _summed(hidden, head, lambda logits, at: _divergence(logits, teacher.ids[at], teacher.log_probs[at]))


def _summed(hidden: torch.Tensor, head: FrozenHead, into_gradient: IntoGradient) -> torch.Tensor:
    total: torch.Tensor = _ChunkedLoss.apply(hidden, head, into_gradient)  # type: ignore[no-untyped-call]
    return total


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: FrozenHead, into_gradient: IntoGradient) -> torch.Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        chunk = positions_at_once(head.vocab_size, hidden.device.type)
        for start in range(0, hidden.shape[0], chunk):
            at = slice(start, start + chunk)
            logits, backward = head.with_backward(hidden[at])
            scores = logits.to(wide)
            total += into_gradient(scores, at)
            if gradient is not None:
                gradient[at] = backward(logits.copy_(scores))
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype), None, None


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Turn logits `(C, V)` into the gradient of their summed cross-entropy, in place; gives that sum."""
    at = targets.unsqueeze(1)
    logits -= logits.amax(dim=1, keepdim=True)
    chosen = logits.gather(1, at)
    total = logits.exp_().sum(dim=1, keepdim=True)
    logits /= total
    logits.scatter_add_(1, at, torch.full_like(chosen, -1))
    return (total.log() - chosen).sum()


def _divergence(logits: torch.Tensor, ids: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """The same for the divergence from a teacher's `(C, K)` tokens and their log-probabilities.

    With `q` the model's probabilities, `p` the teacher's and `r` all other tokens: the gradient is `q - p` at the
    teacher's tokens and `q - p_r q / q_r` elsewhere.
    """
    log_probs = log_probs.to(logits.dtype)
    logits -= logits.amax(dim=1, keepdim=True)
    chosen = logits.gather(1, ids)
    logits.exp_().scatter_(1, ids, 0)
    others = logits.sum(dim=1, keepdim=True).clamp_min_(torch.finfo(logits.dtype).tiny)
    weights = chosen.exp()
    total = others + weights.sum(dim=1, keepdim=True)
    probs = log_probs.exp()
    left = 1 - probs.sum(dim=1, keepdim=True)
    left = torch.where(left > _NOTHING, left, 0)
    logits *= 1 / total - left / others
    logits.scatter_(1, ids, weights / total - probs)
    at_others = torch.where(left > 0, left * (left.clamp_min(_NOTHING).log() - others.log() + total.log()), 0)
    return (probs * (log_probs - chosen + total.log())).sum() + at_others.sum()
