"""A saved prompt: a folder that ptune trains on from and that PEFT loads as an adapter.

| file | what |
| --- | --- |
| `adapter_config.json`, `adapter_model.safetensors` | the baked output of the encoder, as PEFT 0.21 writes it |
| `encoder.safetensors` | the prompt encoder's tensors, to train on |
| `ptune.json` | configuration, base model and its fingerprint, template, versions, metrics, checksums of the others |
| `README.md` | a model card |

They are written as one set (see `ptune.saved.files`): a folder holds the old prompt or the new one. Nothing in a
folder is ever unpickled or run, and nothing that a file says leads to another file.

What is baked is `(P, D)` vectors or, of a deep prompt, `(P, 2 L H E)` keys and values.

Format 2 has a checksum of `adapter_config.json` too. Format 1 is read as well; see `ptune.saved.opened_folder`.

Shapes: `P` virtual tokens, `D` token dimension, `L` layers, `H` key/value heads, `E` head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from ptune.config import TaskType
from ptune.deep_config import CONFIG_CLASSES, DeepPromptConfig, PromptConfig
from ptune.errors import ConfigError, PromptError, one_line, shown
from ptune.saved.card import model_card
from ptune.saved.files import MAX_JSON_BYTES, MAX_WEIGHT_BYTES, holds, json_bytes, read_bytes, sha256, write_set
from ptune.saved.opened_folder import FORMAT_VERSION, PTUNE_CONFIG, OpenedFolder, open_folder
from ptune.saved.peft import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PEFT_HEAD,
    PEFT_KEY,
    own_layers,
    peft_config,
    peft_obstacle,
)

ENCODER_WEIGHTS, CARD = "encoder.safetensors", "README.md"
BOTH_WAYS = "both ways"
"""What `ptune.json` notes under `attends` of an encoder."""
FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, ENCODER_WEIGHTS, PTUNE_CONFIG, CARD)
"""Every file of a prompt folder."""
MAX_TENSORS = 1024
"""An LSTM has eight a layer. Every layer that a configuration asks for must have its tensors, and so is bounded too."""
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_BOTH_PARTS = 2
"""What PEFT notes as the parts of an encoder-decoder."""
_PICKLES = ("adapter_model.bin", "pytorch_model.bin")


@dataclass(frozen=True, kw_only=True)
class SavedPrompt:
    """What a prompt folder holds."""

    config: PromptConfig
    vectors: torch.Tensor
    """`(P, D)` or `(P, 2 L H E)` float32, the encoder's output."""
    encoder: Mapping[str, torch.Tensor] | None
    """The encoder's tensors; None in a folder that PEFT wrote."""
    head: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """The tensors of the head that was trained with it, by their names in the frozen model; empty without one."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """The rest of `ptune.json`: base model, fingerprint, template, metrics, …"""

    @property
    def both_ways(self) -> bool:
        """Whether its model is an encoder, whose tokens attend both ways."""
        return self.details.get("attends") == BOTH_WAYS

    def state(self) -> dict[str, torch.Tensor]:
        """All tensors that train, as the encoder's `load_state_dict` takes them."""
        return {**(self.encoder or {}), **{f"head.{name}": value for name, value in self.head.items()}}

    @property
    def is_deep(self) -> bool:
        """Whether it is keys and values of every layer, in place of virtual-token embeddings."""
        return isinstance(self.config, DeepPromptConfig)


def write_prompt(folder: Path, prompt: SavedPrompt) -> Path:
    """Write a prompt folder; other files in the folder are left alone.

    Raises:
        OutputError: The folder cannot be written.
    """
    assert prompt.encoder is not None
    contents = {
        ADAPTER_CONFIG: json_bytes(peft_config(prompt.config, both_ways=prompt.both_ways)),
        ADAPTER_WEIGHTS: save_safetensors(adapter_tensors(prompt), metadata={"format": "pt"}),
        ENCODER_WEIGHTS: save_safetensors(
            {key: _plain(value) for key, value in prompt.encoder.items()}, {"format": "pt"}
        ),
    }
    details = {
        "format_version": FORMAT_VERSION,
        "config_class": type(prompt.config).__name__,
        "config": prompt.config.to_dict(),
        **prompt.details,
        "sha256": {name: sha256(content) for name, content in contents.items()},
    }
    obstacle = peft_obstacle(prompt.config, both_ways=prompt.both_ways)
    write_set(
        folder,
        {
            **contents,
            CARD: model_card(details, obstacle).encode("utf-8", "backslashreplace"),
            PTUNE_CONFIG: json_bytes(details),
        },
    )
    return folder


def adapter_tensors(prompt: SavedPrompt) -> dict[str, torch.Tensor]:
    """Vectors and head under the names that PEFT gives them."""
    head = {f"{PEFT_HEAD}{name}": _plain(value) for name, value in prompt.head.items()}
    return {PEFT_KEY: _plain(prompt.vectors), **head}


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(device="cpu", dtype=torch.float32).clone().contiguous()


def read_prompt(given: Path | OpenedFolder) -> SavedPrompt:
    """Read a prompt folder, or an adapter of PEFT's that is a soft prompt.

    Raises:
        PromptError: Missing, damaged, or not finite; the message names the file.
    """
    opened = open_folder(given)
    folder, details = opened.path, opened.details
    config = _read_config(folder, details)
    sums = details.get("sha256") or {}
    if ADAPTER_CONFIG in sums:
        _check_sum(folder, ADAPTER_CONFIG, read_bytes(folder, ADAPTER_CONFIG, limit=MAX_JSON_BYTES), sums)
    weights = read_tensors(folder, ADAPTER_WEIGHTS, sums)
    vectors = weights.get(PEFT_KEY)
    head = head_of(folder, weights, config)
    if vectors is not None and config.num_transformer_submodules == _BOTH_PARTS:
        vectors = _of_encoder_decoder(vectors, config)
        config = replace(config, num_transformer_submodules=1)
    if vectors is None or vectors.ndim != 2 or tuple(vectors.shape) != _shape(config, vectors):
        found = "no tensor" if vectors is None else f"shape {tuple(vectors.shape)}"
        dim = "token_dim" if config.token_dim is None else _shape(config, vectors)[1]
        raise PromptError(
            f"{folder / ADAPTER_WEIGHTS}: {PEFT_KEY} has {found}, expected "
            f"({shown(config.num_virtual_tokens)}, {shown(dim)}).",
            hint="Its files do not belong together; download or copy the folder again.",
        )
    vectors = vectors.float()
    if not vectors.numel() or not bool(torch.isfinite(vectors.norm(dim=1)).all()):
        what = "no numbers" if not vectors.numel() else "numbers so large that the length of a vector is not finite"
        raise PromptError(
            f"{folder / ADAPTER_WEIGHTS}: {PEFT_KEY} holds {what}.", hint="Download or copy the folder again."
        )
    encoder = None
    if "format_version" in details:
        encoder = read_tensors(folder, ENCODER_WEIGHTS, sums)
    return SavedPrompt(config=config, vectors=vectors, encoder=encoder, head=head, details=details)


def _of_encoder_decoder(vectors: torch.Tensor, config: PromptConfig) -> torch.Tensor:
    """What PEFT uses of the vectors that it keeps for an encoder-decoder."""
    if not isinstance(config, DeepPromptConfig):
        return vectors[: config.num_virtual_tokens].clone()  # it keeps as many for the decoder
    layers = config.num_layers or 1
    return own_layers(vectors, layers) if vectors.ndim == 2 and vectors.shape[1] % layers == 0 else vectors  # a matrix


def head_of(folder: Path, weights: Mapping[str, torch.Tensor], config: PromptConfig) -> dict[str, torch.Tensor]:
    """The tensors of the head among those of an adapter, by their names in the frozen model.

    Raises:
        PromptError: The adapter holds something else beside its vectors. PEFT saves the model's embeddings too where
            they were resized; the prompt would mean nothing without them.
    """
    more = {name: value for name, value in weights.items() if name != PEFT_KEY}
    causal = config.task_type in (None, TaskType.CAUSAL_LM)
    other = sorted(name for name in more if causal or not name.startswith(PEFT_HEAD))
    if other and PEFT_KEY in weights:
        raise PromptError(
            f"{folder / ADAPTER_WEIGHTS} holds {shown(other[0])} beside {PEFT_KEY}: a part of the model, which was "
            "changed.",
            hint="Save the changed model by itself, and the adapter with save_embedding_layers=False.",
        )
    return {name.removeprefix(PEFT_HEAD): value.float() for name, value in more.items()}


def _shape(config: PromptConfig, vectors: torch.Tensor | None) -> tuple[int, int]:
    """The shape that a configuration gives its vectors; PEFT need not note the dimension of embeddings."""
    if config.token_dim is None:
        return config.num_virtual_tokens, 0 if vectors is None else vectors.shape[1]
    layers = config.num_layers or 0
    return config.num_virtual_tokens, config.token_dim * (2 * layers if isinstance(config, DeepPromptConfig) else 1)


def read_config(folder: Path) -> PromptConfig:
    """The configuration in a prompt folder, or of a soft prompt that PEFT saved; no tensor is touched.

    Raises:
        PromptError: It is missing or damaged.
    """
    return _read_config(folder, open_folder(folder).details)


def _read_config(folder: Path, details: Mapping[str, Any]) -> PromptConfig:
    kinds = {one.__name__: one for one in CONFIG_CLASSES.values()}
    kind = kinds.get(str(details.get("config_class")))
    if kind is None:
        raise PromptError(
            f"{folder} is damaged: its configuration is of no known class, but {shown(details.get('config_class'))}.",
            hint="Download or copy the folder again.",
        )
    known = {item.name for item in fields(kind)}
    kept = {key: value for key, value in details["config"].items() if key in known and value is not None}
    try:
        config: PromptConfig = kind(**kept)
    except (ConfigError, TypeError) as error:
        raise PromptError(
            f"{folder} is damaged: its configuration does not fit ({one_line(error)}).",
            hint="Download or copy the folder again.",
        ) from error
    for name in ("num_layers", "num_attention_heads", "token_dim") if isinstance(config, DeepPromptConfig) else ():
        if not getattr(config, name):
            raise PromptError(
                f"{folder} is damaged: {name} is {getattr(config, name)!r}, not a whole number of at least 1.",
                hint="Download or copy the folder again.",
            )
    return config


def read_tensors(folder: Path, name: str, sums: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file of a folder.

    Args:
        folder: The folder.
        name: The file.
        sums: File name → SHA-256, where there is one to compare.

    Raises:
        PromptError: It is missing, damaged, or holds what is no finite floating-point number.
    """
    path = folder / name
    pickled = [other for other in _PICKLES if holds(folder, other)]
    if pickled and not holds(folder, name):
        raise PromptError(
            f"{folder / pickled[0]} is a pickle, which could run code; ptune opens safetensors alone.",
            hint="Save the adapter again with safe_serialization=True, where you trust it.",
        )
    content = read_bytes(folder, name, limit=MAX_WEIGHT_BYTES)
    _check_sum(folder, name, content, sums)
    try:
        tensors: dict[str, torch.Tensor] = load_safetensors(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise PromptError(
            f"{path} is not a whole safetensors file: {one_line(error)}.",
            hint="It was changed or cut; download or copy it again.",
        ) from error
    if len(tensors) > MAX_TENSORS:
        raise PromptError(
            f"{path} holds {len(tensors):,} tensors, more than the {MAX_TENSORS:,} that it may have.",
            hint="It was changed; download or copy it again.",
        )
    for key, value in tensors.items():
        if value.dtype not in _DTYPES:
            raise PromptError(
                f"{path}: {shown(key)} holds {value.dtype}, not floating-point numbers of 16, 32 or 64 bits.",
                hint="Save it again in float32.",
            )
        if not bool(torch.isfinite(value.float()).all()):
            raise PromptError(
                f"{path}: {shown(key)} holds values that are not finite.",
                hint="Train the prompt again, or download or copy it again.",
            )
    return tensors


def _check_sum(folder: Path, name: str, content: bytes, sums: Mapping[str, Any]) -> None:
    """Raise `PromptError` unless a file is what `ptune.json` says, where it says anything."""
    if name in sums and sha256(content) != sums[name]:
        raise PromptError(
            f"{folder / name} does not match its checksum in {PTUNE_CONFIG}.",
            hint="It was changed or cut; download or copy it again.",
        )
