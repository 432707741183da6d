"""Cross-entropy behind a frozen LM head in chunks: no more than a few rows of logits exist at a time.

The head is frozen, so its gradient goes to the hidden states alone and is known as soon as a chunk's logits are: it is
computed in the forward, the chunk's logits are turned into their own gradient in place and let go, and the backward has
nothing left to do but scale. This is the idea of Liger's fused linear cross-entropy (Hsu et al. 2024), without a
gradient for the weights.

Shapes: `S` supervised positions, `D` hidden size, `V` vocabulary, `C` positions of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch

from ptune.packed.head import FrozenHead

CHUNK_BYTES = 24 * 2**20
"""Size of a chunk's logits in float32. Smaller chunks read the head's weights more often; larger take new pages."""
_FEWEST, _FEWEST_ELSEWHERE = 16, 512
"""The least positions of a chunk on the CPU, and on an accelerator, which a small product leaves idle."""


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
    total: torch.Tensor = _ChunkedCrossEntropy.apply(hidden, targets, head)  # type: ignore[no-untyped-call]
    return total


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, head: FrozenHead) -> torch.Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        chunk = positions_at_once(head.vocab_size, hidden.device.type)
        for start in range(0, hidden.shape[0], chunk):
            at = slice(start, start + chunk)
            logits, backward = head.with_backward(hidden[at])
            scores = logits.to(wide)
            total += _into_gradient(scores, targets[at])
            if gradient is not None:
                gradient[at] = backward(logits.copy_(scores))
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype), None, None


def _into_gradient(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Turn logits `(C, V)` into the gradient of their summed cross-entropy, in place; gives that sum."""
    at = targets.unsqueeze(1)
    logits -= logits.amax(dim=1, keepdim=True)
    chosen = logits.gather(1, at)
    total = logits.exp_().sum(dim=1, keepdim=True)
    logits /= total
    logits.scatter_add_(1, at, torch.full_like(chosen, -1))
    return (total.log() - chosen).sum()
