"""Where a prompt starts: random vectors, sampled vocabulary, or the token embeddings of a text.

Soft prompts train faster from vectors the model already knows (Lester et al. 2021, section 3.2), and from vectors of
the size the model expects. PEFT's MLP and LSTM can only start at random, at an output deviation of about 0.1 where a
model's embeddings have 0.02 or so. Here the last layer is scaled so that the prompt starts at the embeddings' own
deviation, or solved so that it starts at given vectors.

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
_EXACT = 1e-4
"""Largest difference from the vectors to start from, in their deviations; float32 leaves about 1e-6."""


def token_vectors(embed: nn.Module, token_ids: Sequence[int]) -> torch.Tensor:
    """The float32 embeddings of tokens, `(tokens, D)`, on the CPU.

    Args:
        embed: The model's input embedding, ids to vectors, its own scaling included.
        token_ids: The tokens.

    Raises:
        ConfigError: There are none.
    """
    if not token_ids:
        raise ConfigError("the initial text gives no tokens.", hint="Give a text with at least one word.")
    ids = torch.tensor(list(token_ids), device=_device_of(embed))
    with torch.no_grad():
        vectors: torch.Tensor = embed(ids[None])[0]
    return vectors.detach().float().cpu()


def sampled_tokens(
    vocab_size: int, count: int, special_ids: Sequence[int] = (), generator: torch.Generator | None = None
) -> list[int]:
    """`count` different ordinary tokens of the vocabulary, at random.

    Raises:
        ConfigError: The vocabulary has too few.
    """
    special = set(special_ids)
    order = torch.randperm(vocab_size, generator=generator).tolist()
    chosen = [token for token in order if token not in special][:count]
    if len(chosen) < count:
        raise ConfigError(
            f"num_virtual_tokens={count}, but the vocabulary has {len(chosen)} ordinary tokens.",
            hint="Use fewer virtual tokens, or init=TEXT or RANDOM.",
        )
    return chosen


def repeated(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """`count` vectors: the first ones of too many, and too few over and over."""
    return vectors.repeat(-(-count // len(vectors)), 1)[:count]


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

    With `vectors`, the encoder gives exactly them before training: they are the table of `embedding` and `residual`,
    and the last layer of an MLP or LSTM is solved for them. Without, an `embedding` or `residual` table is drawn with
    deviation `std`, and the last layer of an MLP or LSTM is scaled so that the output's deviation is `std`.

    Args:
        encoder: A freshly built encoder.
        vectors: `(P, D)`, or None for a random start.
        std: Deviation of the model's token embeddings.

    Raises:
        ConfigError: The hidden layers are too narrow for the last layer to give `P` chosen vectors.
    """
    table, output = encoder.embedding.weight, encoder.output_layer()
    if table.is_meta:
        return
    with torch.no_grad():
        if output is None:
            table.copy_(torch.randn(table.shape) * std if vectors is None else vectors)
        elif vectors is None:
            ratio = std / float(encoder.baked().std().clamp_min(1e-8))
            output.weight.mul_(ratio)
            output.bias.mul_(ratio)
        else:
            solve_output(encoder, output, vectors)


def solve_output(encoder: PromptEncoder, output: nn.Linear, vectors: torch.Tensor) -> None:
    """Set the last layer so that the encoder gives `vectors`: the smallest weights that do, solved in float64.

    Hidden states of `P` different table rows are linearly independent where the layer reads more than `P` numbers, so
    there is an exact solution, and the encoder keeps the layers and the number of parameters it has.

    Args:
        encoder: The encoder.
        output: Its last layer.
        vectors: `(P, …)`, as many columns as the layer gives.

    Raises:
        ConfigError: The layer reads too few numbers for `P` chosen vectors.
    """
    seen: list[torch.Tensor] = []
    hook = output.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].double()))
    encoder.baked()
    hook.remove()
    mean = vectors.double().mean(0)
    output.weight.copy_((torch.linalg.pinv(seen[0]) @ (vectors.double() - mean)).T)
    output.bias.copy_(mean)
    error = float((encoder.baked() - vectors).abs().max() / vectors.std().clamp_min(1e-8))
    if not error < _EXACT:
        raise ConfigError(
            f"an encoder whose last layer reads {output.in_features} numbers cannot start from "
            f"{encoder.num_virtual_tokens} given vectors.",
            hint="Use a larger encoder_hidden_size, fewer virtual tokens, or a random start.",
        )
