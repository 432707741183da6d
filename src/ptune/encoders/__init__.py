"""Prompt encoders: modules that produce virtual-token embeddings or keys and values, and ways to initialise them."""

from ptune.encoders.base import PromptEncoder
from ptune.encoders.deep import DeepEncoder
from ptune.encoders.embedding import EmbeddingEncoder
from ptune.encoders.initialise import initialise
from ptune.encoders.lstm import LSTMEncoder
from ptune.encoders.mlp import MLPEncoder
from ptune.encoders.prefix import PrefixEncoder
from ptune.encoders.prefix_mlp import PrefixMLPEncoder
from ptune.encoders.registry import DEEP_ENCODERS, ENCODERS, build_deep_encoder, build_encoder
from ptune.encoders.residual import ResidualEncoder

__all__ = [
    "DEEP_ENCODERS",
    "ENCODERS",
    "DeepEncoder",
    "EmbeddingEncoder",
    "LSTMEncoder",
    "MLPEncoder",
    "PrefixEncoder",
    "PrefixMLPEncoder",
    "PromptEncoder",
    "ResidualEncoder",
    "build_deep_encoder",
    "build_encoder",
    "initialise",
]
