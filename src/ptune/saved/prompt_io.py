"""Between a prompt encoder on a frozen model and a prompt folder: what saving notes, what loading checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys
from transformers import PreTrainedModel

from ptune.config import PromptTuningConfig
from ptune.deep_config import CartridgeConfig, DeepPromptConfig, PrefixTuningConfig, PromptConfig
from ptune.encoders import PromptEncoder
from ptune.errors import PromptError, one_line, shown
from ptune.frozen.fingerprint import fingerprint, unquantized_fingerprint
from ptune.frozen.parameters import device_of
from ptune.frozen.parts import token_dim
from ptune.frozen.quantized import is_quantized
from ptune.prefix.deep_prompts import KeyValueShape, key_value_shape
from ptune.prompt.build import empty_encoder, encoder_kind
from ptune.saved.format import SavedPrompt, read_prompt, write_prompt
from ptune.saved.opened_folder import OpenedFolder

_VERSIONS = ("ptune", "torch", "transformers")
_FINGERPRINTS = (("base_fingerprint", fingerprint), ("base_unquantized_fingerprint", unquantized_fingerprint))
"""What names a model: all of it, or without what quantization changes."""
_HEAD = "head."
"""What the names of a head's tensors begin with in an encoder."""
_LAYERED = ("mlp", "lstm")
"""The encoders whose size is a number of layers too."""
_OF_THE_FORMAT = ("format_version", "config_class", "config", "sha256")
_OF_USE = ("template", "template_fingerprint", "tokenizer_fingerprint")
"""What a prompt folder notes that holds however the prompt is trained on: how a text must be written for it."""


NewHead = Callable[[list[str] | None], nn.ModuleDict | None]
"""Makes the head that a model's prompts begin with, with further modules by name."""


@dataclass(frozen=True)
class Notes:
    """What a prompt's folder said when it was loaded, for the folder that it is saved in next."""

    vectors: torch.Tensor
    """What the encoder gave then."""
    details: Mapping[str, Any]

    def of(self, vectors: torch.Tensor) -> dict[str, Any]:
        """What still holds of a prompt whose encoder gives `vectors`: after training how to use it, but no metrics."""
        same = torch.equal(self.vectors, vectors.cpu())
        kept = [name for name in self.details if same or name in _OF_USE]
        return {name: self.details[name] for name in kept if name not in _OF_THE_FORMAT}


def notes_of(opened: OpenedFolder, encoder: PromptEncoder) -> Notes | None:
    """The notes of a prompt folder whose encoder has just been loaded; None in a folder that PEFT wrote."""
    return Notes(encoder.baked().cpu(), opened.details) if opened.by_ptune else None


def save_prompt(
    base: PreTrainedModel,
    encoder: PromptEncoder,
    config: PromptConfig,
    folder: Path,
    metadata: Mapping[str, Any],
    *,
    notes: Notes | None = None,
) -> Path:
    """Write a prompt folder for an encoder that belongs to `base`; what `metadata` says goes before `notes`."""
    vectors = encoder.baked()
    details = {
        **({} if notes is None else notes.of(vectors)),
        "base_model": config.base_model_name_or_path,
        "base_class": type(base).__name__,
        # Of a quantized model only the part that has all of them can be named.
        "base_fingerprint": None if is_quantized(base) else fingerprint(base),
        "base_unquantized_fingerprint": unquantized_fingerprint(base),
        "base_quantized": is_quantized(base),
        "encoder": encoder_kind(config),
        "trainable_parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "versions": {name: version(name) for name in _VERSIONS},
        **metadata,
    }
    if not isinstance(config, DeepPromptConfig):
        text = base.config.get_text_config()
        config = replace(
            config,
            num_layers=getattr(text, "num_hidden_layers", None),
            num_attention_heads=getattr(text, "num_attention_heads", None),
        )
    state = encoder.state_dict()
    head = {name.removeprefix(_HEAD): value for name, value in state.items() if name.startswith(_HEAD)}
    own = {name: value for name, value in state.items() if not name.startswith(_HEAD)}
    return write_prompt(folder, SavedPrompt(config=config, vectors=vectors, encoder=own, head=head, details=details))


def load_prompt(
    base: PreTrainedModel,
    opened: OpenedFolder,
    *,
    trainable: bool,
    force: bool,
    new_head: NewHead | None = None,
) -> tuple[PromptEncoder, PromptConfig]:
    """A prompt encoder from a folder, checked against the model it is to stand in front of.

    Args:
        base: The frozen model.
        opened: The prompt folder, or a PEFT adapter's.
        trainable: The encoder itself, to train on; otherwise its baked vectors alone, which give the same prompt.
        force: Accept a model whose fingerprint differs.
        new_head: Makes the head that the prompt's replaces, from the names of its modules; None for a model whose
            prompts have none.

    Raises:
        PromptError: The folder is missing or damaged, or belongs to another model.
        ModelError: It holds a deep prompt, and the model keeps no keys and values of one shape.
    """
    folder, saved = opened.path, read_prompt(opened)
    dim = token_dim(base)
    _check_size(base, folder, saved)
    whole = saved.details.get("base_fingerprint") is not None and not is_quantized(base)
    name, own_of = _FINGERPRINTS[0 if whole else 1]
    noted = saved.details.get(name)
    if noted is not None and not force and noted != (own := own_of(base)):
        raise PromptError(
            f"{folder} was made for another model: {saved.config.base_model_name_or_path} with fingerprint {noted}, "
            f"not {own}.",
            hint="Use that model, or --force (force=True) to try the prompt on this one.",
        )
    head = _filled_head(folder, saved, new_head)
    if head is not None:
        saved = replace(saved, config=replace(saved.config, modules_to_save=list(head)))
    if not trainable or saved.encoder is None:
        config = plain_config(saved, trainable=trainable)
        encoder = _filled(folder, config, dim, plain_tensors(config, saved.vectors))
        config = config if trainable else replace(config, inference_mode=True)
    else:
        encoder = _filled(folder, saved.config, dim, saved.encoder)
        config = replace(saved.config, inference_mode=False)
    encoder.put_head(head)
    return _placed(encoder, base, trainable), config


def _check_size(base: PreTrainedModel, folder: Path, saved: SavedPrompt) -> None:
    """Raise `PromptError` where a prompt has sizes of another model."""
    hint = f"It was made for {saved.config.base_model_name_or_path}."
    if isinstance(saved.config, DeepPromptConfig):
        config, own = saved.config, key_value_shape(base)
        assert config.num_layers and config.num_attention_heads and config.token_dim  # noqa: PT018  # read_prompt looked
        found = KeyValueShape(
            config.num_layers, config.num_attention_heads, config.token_dim // config.num_attention_heads
        )
        if found != own:
            raise PromptError(f"{folder} holds keys and values of {found}; this model has {own}.", hint=hint)
    elif saved.vectors.shape[1] != (dim := token_dim(base)):
        raise PromptError(
            f"{folder} holds a prompt for embeddings of size {saved.vectors.shape[1]}; this model's have {dim}.",
            hint=hint,
        )


def plain_config(saved: SavedPrompt, *, trainable: bool = True) -> PromptConfig:
    """The configuration of a table that holds what a prompt's encoder gave.

    Args:
        saved: The prompt.
        trainable: Whether it is to train: rows that were frozen stay so.
    """
    config = saved.config
    common: dict[str, Any] = {
        "num_virtual_tokens": config.num_virtual_tokens,
        "base_model_name_or_path": config.base_model_name_or_path,
        "revision": config.revision,
        "num_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "task_type": config.task_type,
        "modules_to_save": config.modules_to_save,
        "pool_virtual_tokens": config.pool_virtual_tokens,
    }
    if isinstance(config, CartridgeConfig) and trainable:
        return CartridgeConfig(**common, token_dim=config.token_dim, num_frozen_tokens=config.num_frozen_tokens)
    if isinstance(config, DeepPromptConfig):
        return PrefixTuningConfig(**common, token_dim=config.token_dim)
    return PromptTuningConfig(**common, token_dim=saved.vectors.shape[1], tokens_in_text=config.tokens_in_text)


def plain_tensors(config: PromptConfig, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of the encoder of such a table."""
    frozen = config.num_frozen_tokens if isinstance(config, CartridgeConfig) else 0
    table = {"embedding.weight": vectors[frozen:].clone()}
    return {**table, "frozen": vectors[:frozen].clone()} if frozen else table


def _filled_head(folder: Path, saved: SavedPrompt, new_head: NewHead | None) -> nn.ModuleDict | None:
    """The head of a folder, in the place of the model's own.

    PEFT trains less of some heads (of ModernBERT's and DeBERTa's the last layer); the rest begins as the model's own.

    Raises:
        PromptError: It has none where the model needs one, or it does not fit the model's.
    """
    head = None if new_head is None else new_head(saved.config.modules_to_save)
    if head is None and not saved.head:
        return None
    own = {} if head is None else head.state_dict()
    modules = {name.partition(".")[0] for name in (*saved.head, *(saved.config.modules_to_save or ()))}
    given = dict(saved.head)
    if saved.head:
        given = {name: value for name, value in own.items() if name.partition(".")[0] not in modules} | given
    expected = {name: tuple(value.shape) for name, value in own.items()}
    found = {name: tuple(value.shape) for name, value in given.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            here, there = (shown(one.get(name)) if name in one else "none" for one in (found, expected))
            raise PromptError(
                f"{folder}: its head does not fit the model's: {shown(name)} has the shape {here}, and {there} there.",
                hint="Load the model for the prompt's task and with as many labels (num_labels).",
            )
    assert head is not None  # it has the names of the saved one
    head.load_state_dict(given)
    return head


def _filled(folder: Path, config: PromptConfig, dim: int, tensors: Mapping[str, torch.Tensor]) -> PromptEncoder:
    """The encoder that a configuration describes, with the tensors of a folder.

    It takes no memory of its own: a configuration may ask for any size.
    """
    layers = getattr(config, "encoder_num_layers", 0) if encoder_kind(config) in _LAYERED else 0
    if layers > len(tensors):
        raise PromptError(
            f"{folder}: {len(tensors)} tensors are too few for the {shown(layers)} layers of its encoder.",
            hint="Download or copy the folder again.",
        )
    try:
        with torch.device("meta"):
            encoder = empty_encoder(config, dim)
        encoder.load_state_dict(dict(tensors), assign=True)
    except (RuntimeError, OverflowError, ValueError, TypeError) as error:
        # PyTorch puts its own stack behind some messages.
        reason = one_line(error).partition(" Exception raised from ")[0][:400]
        raise PromptError(
            f"{folder}: the encoder's tensors do not fit its configuration: {reason}.",
            hint="Download or copy the folder again.",
        ) from error
    return encoder.to(torch.float32)


def _placed(encoder: PromptEncoder, base: PreTrainedModel, trainable: bool) -> PromptEncoder:
    return encoder.to(device_of(base)).requires_grad_(trainable)


def load_state(prompts: nn.ModuleDict, state: Mapping[str, Any], *, strict: bool, assign: bool) -> _IncompatibleKeys:
    """Load the prompt encoders' tensors from a state of `prompts.*` names; arguments as for `load_state_dict`.

    Raises:
        PromptError: The state holds anything else, and `strict` is set.
    """
    own = {key.removeprefix("prompts."): value for key, value in state.items() if key.startswith("prompts.")}
    foreign = [key for key in state if not key.startswith("prompts.")]
    if strict and foreign:
        raise PromptError(f"the state holds {foreign[0]!r}, which is not part of a prompt encoder.")
    result = prompts.load_state_dict(own, strict=strict, assign=assign)
    return _IncompatibleKeys(
        [f"prompts.{key}" for key in result.missing_keys],
        [f"prompts.{key}" for key in result.unexpected_keys] + foreign,
    )
