"""The prompt encoders by name, and the one place that builds them."""

from __future__ import annotations

from ptune.encoders.base import PromptEncoder
from ptune.encoders.deep import DeepEncoder
from ptune.encoders.embedding import EmbeddingEncoder
from ptune.encoders.lstm import LSTMEncoder
from ptune.encoders.mlp import MLPEncoder
from ptune.encoders.prefix import PrefixEncoder
from ptune.encoders.prefix_mlp import PrefixMLPEncoder
from ptune.encoders.residual import ResidualEncoder
from ptune.errors import unknown

ENCODERS: dict[str, type[PromptEncoder]] = {
    "embedding": EmbeddingEncoder,
    "mlp": MLPEncoder,
    "lstm": LSTMEncoder,
    "residual": ResidualEncoder,
}
"""Those that give virtual-token embeddings."""
DEEP_ENCODERS: dict[str, type[DeepEncoder]] = {"prefix": PrefixEncoder, "prefix-mlp": PrefixMLPEncoder}
"""Those that give keys and values of every layer."""


def build_encoder(
    kind: str,
    *,
    num_virtual_tokens: int,
    token_dim: int,
    hidden_size: int | None = None,
    num_layers: int = 2,
    dropout: float = 0.0,
) -> PromptEncoder:
    """A new prompt encoder with PyTorch's default initialisation.

    Args:
        kind: One of `ENCODERS`.
        num_virtual_tokens: `P`.
        token_dim: `D`.
        hidden_size: Width of hidden layers; `D` when None, as in PEFT. Not used by `embedding`.
        num_layers: LSTM layers, or hidden layers of the MLP. Not used by `embedding` and `residual`.
        dropout: Dropout inside the encoder. Not used by `embedding`.

    Raises:
        ConfigError: `kind` is unknown; the nearest known name is suggested.
    """
    width = token_dim if hidden_size is None else hidden_size
    match kind:
        case "embedding":
            return EmbeddingEncoder(num_virtual_tokens=num_virtual_tokens, token_dim=token_dim)
        case "residual":
            return ResidualEncoder(
                num_virtual_tokens=num_virtual_tokens, token_dim=token_dim, hidden_size=width, dropout=dropout
            )
        case "mlp" | "lstm":
            network = MLPEncoder if kind == "mlp" else LSTMEncoder
            return network(
                num_virtual_tokens=num_virtual_tokens,
                token_dim=token_dim,
                hidden_size=width,
                num_layers=num_layers,
                dropout=dropout,
            )
    raise unknown("prompt encoder", kind, ENCODERS)


def build_deep_encoder(
    kind: str,
    *,
    num_virtual_tokens: int,
    token_dim: int,
    layers: int,
    heads: int,
    hidden_size: int | None = None,
    num_frozen_tokens: int = 0,
) -> DeepEncoder:
    """A new encoder of keys and values with PyTorch's default initialisation.

    Args:
        kind: One of `DEEP_ENCODERS`.
        num_virtual_tokens: `P`.
        token_dim: `H E`, the size of a layer's keys of one token.
        layers: `L`.
        heads: `H`, key/value heads.
        hidden_size: Width of the hidden layer; `H E` when None, as in PEFT. Not used by `prefix`.
        num_frozen_tokens: The first virtual tokens, which do not train. Not used by `prefix-mlp`.

    Raises:
        ConfigError: `kind` is unknown; the nearest known name is suggested. Or no virtual token is left to train.
    """
    sizes = {"num_virtual_tokens": num_virtual_tokens, "token_dim": token_dim, "layers": layers, "heads": heads}
    match kind:
        case "prefix":
            return PrefixEncoder(**sizes, num_frozen_tokens=num_frozen_tokens)
        case "prefix-mlp":
            return PrefixMLPEncoder(**sizes, hidden_size=token_dim if hidden_size is None else hidden_size)
    raise unknown("prompt encoder", kind, DEEP_ENCODERS)
