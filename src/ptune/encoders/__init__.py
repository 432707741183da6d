"""Prompt encoders: modules that produce the `(P, D)` virtual-token embeddings, and ways to initialise them."""

from ptune.encoders.base import PromptEncoder
from ptune.encoders.embedding import EmbeddingEncoder
from ptune.encoders.initialise import initialise
from ptune.encoders.lstm import LSTMEncoder
from ptune.encoders.mlp import MLPEncoder
from ptune.encoders.registry import ENCODERS, build_encoder
from ptune.encoders.residual import ResidualEncoder

__all__ = [
    "ENCODERS",
    "EmbeddingEncoder",
    "LSTMEncoder",
    "MLPEncoder",
    "PromptEncoder",
    "ResidualEncoder",
    "build_encoder",
    "initialise",
]
