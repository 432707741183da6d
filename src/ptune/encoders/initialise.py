"""Where a prompt starts: random vectors, sampled vocabulary, or the token embeddings of a text.

Soft prompts train faster from vectors the model already knows (Lester et al. 2021, section 3.2), and from vectors of
the size the model expects. PEFT's MLP and LSTM start at an output deviation of about 0.1 where a model's embeddings
have 0.02 or so; here the last layer is scaled so that the prompt starts at the embeddings' own deviation.

Shapes: `P` virtual tokens, `D` token dimension, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ptune.encoders.base import PromptEncoder
from ptune.errors import ConfigError

_SAMPLE_ROWS = 4096
"""Vocabulary rows looked at to measure the embeddings' scale."""


def initial_vectors(
    embed: nn.Module,
    *,
    num_virtual_tokens: int,
    vocab_size: int,
    token_ids: Sequence[int] | None = None,
    special_ids: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """The `(P, D)` float32 embeddings of a text's tokens, or of tokens sampled from the vocabulary.

    Args:
        embed: The model's input embedding, ids to vectors, its own scaling included.
        num_virtual_tokens: `P`. A longer text is cut, a shorter one repeated.
        vocab_size: `V`, from which to sample.
        token_ids: The text's tokens; None samples `P` different ordinary tokens instead.
        special_ids: Tokens never to sample.
        generator: Source of randomness for sampling.

    Raises:
        ConfigError: The text has no tokens, or the vocabulary has too few.
    """
    if token_ids is None:
        special = set(special_ids)
        order = torch.randperm(vocab_size, generator=generator).tolist()
        chosen = [token for token in order if token not in special][:num_virtual_tokens]
        if len(chosen) < num_virtual_tokens:
            raise ConfigError(
                f"num_virtual_tokens={num_virtual_tokens}, but the vocabulary has {len(chosen)} ordinary tokens.",
                hint="Use fewer virtual tokens, or init=TEXT or RANDOM.",
            )
    else:
        if not token_ids:
            raise ConfigError("the initial text gives no tokens.", hint="Give a text with at least one word.")
        repeats = -(-num_virtual_tokens // len(token_ids))
        chosen = (list(token_ids) * repeats)[:num_virtual_tokens]
    ids = torch.tensor(chosen, device=_device_of(embed))
    with torch.no_grad():
        vectors: torch.Tensor = embed(ids[None])[0]
    return vectors.detach().float().cpu()


def embedding_std(embed: nn.Module, *, vocab_size: int) -> float:
    """Standard deviation of the model's token embeddings, over at most 4,096 evenly spaced rows."""
    step = max(1, vocab_size // _SAMPLE_ROWS)
    ids = torch.arange(0, vocab_size, step, device=_device_of(embed))
    with torch.no_grad():
        return float(embed(ids[None]).float().std())


def _device_of(embed: nn.Module) -> torch.device:
    """Where ids go in; the CPU for a layer that is offloaded, which takes them to where it runs."""
    device = next(embed.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


def initialise(encoder: PromptEncoder, *, vectors: torch.Tensor | None, std: float) -> None:
    """Set an encoder's starting point in place.

    With `vectors`, they become the table: `embedding` and `residual` then give exactly them; an MLP or LSTM reads
    them, scaled to the unit deviation its default table has. Without, an `embedding` or `residual` table is drawn
    with deviation `std`, and an MLP or LSTM keeps PyTorch's default. In both cases the last layer of an MLP or LSTM
    is scaled so that the output's deviation is `std`.

    Args:
        encoder: A freshly built encoder.
        vectors: `(P, D)`, or None for a random start.
        std: Deviation of the model's token embeddings.
    """
    table = encoder.embedding.weight
    with torch.no_grad():
        if encoder.keeps_vectors:
            table.copy_(torch.randn(table.shape) * std if vectors is None else vectors)
            return
        if vectors is not None:
            table.copy_(vectors / vectors.std().clamp_min(1e-8))
        output = encoder.output_layer()
        if output is None or table.is_meta:
            return
        was_training = encoder.training
        encoder.eval()
        ratio = std / float(encoder().std().clamp_min(1e-8))
        encoder.train(was_training)
        output.weight.mul_(ratio)
        output.bias.mul_(ratio)
