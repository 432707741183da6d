"""The tensors and the configuration of a model whose vocabulary has virtual tokens.

Shapes: `n` virtual tokens of all prompts, `V` rows of the model's table, `D` token dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from ptune.errors import ConfigError, ModelError
from ptune.frozen.parts import embedding_table, output_head
from ptune.loading.embedding_table import embedding_scale
from ptune.loading.weight_files import stored_key
from ptune.saved.as_model.silent_rows import SILENT_BIAS, SilentRow
from ptune.saved.as_model.source import ModelSource
from ptune.saved.as_model.tensors import CODES, Streamed

_ANSWER = "Answer with ptune: ptune generate, ptune chat."


def is_tied(base: PreTrainedModel) -> bool:
    """Whether input and output embeddings are one table."""
    head: Any = output_head(base)
    return head is not None and bool(head.weight is embedding_table(base))


def check_table(base: PreTrainedModel) -> None:
    """Raise `ModelError` where a row of the model's table cannot be a virtual token."""
    head: Any = output_head(base)
    layer: Any = base.get_input_embeddings()
    if embedding_scale(layer) is None:
        raise ModelError(
            f"what {type(layer).__name__}, the embedding layer of {base.name_or_path}, makes of a row is not known.",
            hint=_ANSWER,
        )
    if head is None or head.weight.shape[0] != layer.weight.shape[0]:
        raise ModelError(f"the LM head of {base.name_or_path} has not one row for each token.", hint=_ANSWER)


def tensors_with_prompts(
    source: ModelSource, base: PreTrainedModel, vectors: torch.Tensor, first: int, silent: SilentRow
) -> dict[str, Streamed]:
    """The new model's tensors, by their names.

    Args:
        source: The model's files.
        base: The model; `check_table` has passed it.
        vectors: `(n, D)`, of all prompts in turn.
        first: The token id of the first of them, at most `V`.
        silent: Their output row.

    Raises:
        ModelError: The embeddings are stored in a dtype that is not one of `CODES`.
        ConfigError: A number of a prompt is beyond the dtype.
    """
    head: Any = output_head(base)
    layer: Any = base.get_input_embeddings()
    tensors = {key: source.tensor(key).cast(source.dtype) for key in source.files}
    table_key, head_key = _key(source, base, layer.weight), _key(source, base, head.weight)
    table, outputs = tensors[table_key], tensors[head_key]
    dtype = _dtype(table, base)
    if is_tied(base):
        # One of the two may be stored, or both: from now on each has its own name.
        head_key = _own_name(base, head)
        table_key = _own_name(base, layer) if table_key == head_key else table_key
    scale = torch.tensor(embedding_scale(layer), dtype=dtype).float()
    rows = (vectors / scale).to(dtype)
    if not bool(torch.isfinite(rows).all()):
        raise ConfigError(f"a number of a prompt is beyond {dtype}.", hint="Take --dtype bfloat16 or float32.")
    tensors[table_key] = table.with_rows(first, rows)
    tensors[head_key] = outputs.with_rows(first, silent.row.to(_dtype(outputs, base))[None].repeat(len(rows), 1))
    if head.bias is not None:
        key = _key(source, base, head.bias)
        silence = torch.full((len(rows),), SILENT_BIAS, dtype=_dtype(tensors[key], base))
        tensors[key] = tensors[key].with_rows(first, silence)
    return tensors


def config_with_prompts(source: ModelSource, base: PreTrainedModel, end: int) -> dict[str, Any]:
    """`config.json` of the new model.

    Args:
        source: The model's files.
        base: The model.
        end: The largest token id of a virtual token, and one.
    """
    rows = embedding_table(base).shape[0]
    config = {**source.raw, "vocab_size": max(rows, end), "tie_word_embeddings": False}
    if source.dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = str(source.dtype).removeprefix("torch.")
    return config


def _dtype(tensor: Streamed, base: PreTrainedModel) -> torch.dtype:
    for dtype, code in CODES.items():
        if code == tensor.code:
            return dtype
    raise ModelError(f"the embeddings of {base.name_or_path} are stored as {tensor.code}.", hint=_ANSWER)


def _key(source: ModelSource, base: PreTrainedModel, weight: torch.Tensor) -> str:
    """The stored key of one of the model's parameters."""
    names = [name for name, one in base.named_parameters(remove_duplicate=False) if one is weight]
    found = stored_key(list(source.files), names)
    if found is None:
        raise ModelError(f"the files of {base.name_or_path} hold no {names[0]}.", hint=_ANSWER)
    return found


def _own_name(base: PreTrainedModel, module: torch.nn.Module) -> str:
    name: str = next(name for name, one in base.named_modules() if one is module)
    return f"{name}.weight"
