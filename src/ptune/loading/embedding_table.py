"""The input embeddings of a model, read by themselves: from its safetensors file, without the rest of the model.

Where the weights are in another format the whole model is loaded. A virtual token lives where the embedding layer's
output does, so that a layer that scales its output (Gemma's) scales the table too.

Shapes: `V` vocabulary, `D` token dimension, `C` rows of a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from ptune.config import TaskType
from ptune.data.blocks import listed_blocks, tokens_in_text
from ptune.data.template import get_template
from ptune.data.tokenize import encode_prompt
from ptune.errors import ConfigError, ModelError
from ptune.loading.load import load_config, load_model, load_tokenizer, pretrained_source
from ptune.loading.skeleton import skeleton
from ptune.loading.weight_files import stored_key, weight_file, weight_files

_PIECE_ROWS = 8192


@dataclass(frozen=True)
class EmbeddingTable:
    """A table `(V, D)` that is read in pieces."""

    tokens: int
    dim: int
    rows: Callable[[int, int], torch.Tensor]
    """(first, last + 1) → `(C, D)`."""

    def pieces(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, `(C, D)` in float32), one piece after another."""
        for first in range(0, self.tokens, _PIECE_ROWS):
            yield first, self.rows(first, min(first + _PIECE_ROWS, self.tokens)).float()


def load_embedding_table(
    name: str,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
    task: TaskType = TaskType.CAUSAL_LM,
) -> EmbeddingTable:
    """The input embeddings of a model.

    Args:
        name: As `load_model` takes it.
        trust_remote_code: True runs code from the model's repository.
        revision: Branch, tag or commit on the hub.
        local_files_only: Take what lies on this machine, and download nothing.
        task: What the model is for.

    Raises:
        ModelError: The model is not there, or is not for the task.
        OutputError: A GGUF file's converted copy cannot be written.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
    config = load_config(name, local_files_only=local_files_only, task=task, **options)
    base = skeleton(config, task=task)
    layer: Any = base.get_input_embeddings()
    scale = embedding_scale(layer)
    names = [key for key, weight in base.named_parameters(remove_duplicate=False) if weight is layer.weight]
    origin = pretrained_source(name)
    found = None if scale is None else _stored(origin, names, revision, local=local_files_only)
    if found is None or scale is None:
        if local_files_only and not Path(origin).is_dir():
            raise ModelError(f"the weights of {name} are not on this machine.", hint="Name it with --model.")
        return _of_loaded(load_model(name, device="cpu", task=task, **options))
    path, key = found
    tokens, dim = layer.weight.shape

    def rows(first: int, last: int) -> torch.Tensor:
        with safe_open(path, framework="pt") as stored:
            part: torch.Tensor = stored.get_slice(key)[first:last]
        return part.float() * scale

    with safe_open(path, framework="pt") as stored:
        shape = tuple(stored.get_slice(key).get_shape())
    if shape[1:] != (dim,):
        raise ModelError(f"the embedding of {name} has shape {shape}, not {(tokens, dim)}.")
    return EmbeddingTable(min(tokens, shape[0]), dim, rows)


def embed_text(model: str, template: str, text: str) -> torch.Tensor:
    """`(T, D)`: a text as a template writes it, in the model's embeddings; for engines that take embeddings.

    Args:
        model: The model's name, as `load_model` takes it; only its tokenizer and its embedding table are read.
        template: `tutorial`, `chat`, or a text with `{instruction}` and `{output}`.
        text: The instruction.

    Raises:
        ModelError: There is no such model.
        ConfigError: The template cannot be used.
    """
    tokenizer = load_tokenizer(model)
    asked = get_template(template, tokenizer)
    if tokens_in_text(asked.blocks):
        raise ConfigError(
            f"the template has virtual tokens inside the text ({listed_blocks(asked.blocks)}), which are no embeddings "
            "of the model.",
            hint="Answer with ptune: Answerer, ptune generate.",
        )
    ids = encode_prompt(asked.prompt(text), tokenizer)
    table = load_embedding_table(model)
    return torch.cat([table.rows(token, token + 1) for token in ids])


def embedding_scale(layer: nn.Module) -> float | None:
    """What an embedding layer multiplies its rows with; None where that cannot be known from its attributes."""
    if type(layer) is nn.Embedding:
        return 1.0
    found = getattr(layer, "scalar_embed_scale", getattr(layer, "embed_scale", None))
    return float(found) if isinstance(found, (int, float)) else None


def _stored(origin: str, names: list[str], revision: str | None, *, local: bool) -> tuple[str, str] | None:
    """(file, key) of the table among a model's safetensors; None where it has none."""
    files = weight_files(origin, revision, local=local)
    key = None if files is None else stored_key(list(files), names)
    if files is None or key is None:
        return None
    shard = weight_file(origin, files[key], revision, local=local)
    return None if shard is None else (shard, key)


def _of_loaded(model: Any) -> EmbeddingTable:
    """The table of a model that is in memory."""
    layer = model.get_input_embeddings()
    tokens, dim = layer.weight.shape

    def rows(first: int, last: int) -> torch.Tensor:
        with torch.no_grad():
            part: torch.Tensor = layer(torch.arange(first, last, device=layer.weight.device)[None])[0]
        return part

    return EmbeddingTable(tokens, dim, rows)
