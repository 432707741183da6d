"""A saved prompt: a folder that ptune trains on from and that PEFT loads as an adapter.

| file | what |
| --- | --- |
| `adapter_config.json`, `adapter_model.safetensors` | the baked `(P, D)` vectors, as PEFT 0.21 writes them |
| `encoder.safetensors` | the prompt encoder's tensors, to train on |
| `ptune.json` | configuration, base model and its fingerprint, template, versions, metrics, checksums of the tensors |
| `README.md` | a model card |

Each file is written under a temporary name and renamed, `ptune.json` last: a folder whose checksums do not hold was
not written to the end. Nothing in a folder is ever unpickled or run. A residual encoder is `PROMPT_TUNING` to PEFT,
which knows no residual; its baked vectors are the same.

Shapes: `P` virtual tokens, `D` token dimension.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from ptune.checkpoint.card import model_card
from ptune.checkpoint.files import make_folder, sha256, write_atomic, write_json
from ptune.config import PromptEncoderConfig, PromptEncoderReparameterizationType, PromptTuningConfig
from ptune.errors import ConfigError, PromptError

FORMAT_VERSION = 1
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ENCODER_WEIGHTS, PTUNE_CONFIG, CARD = "encoder.safetensors", "ptune.json", "README.md"
PEFT_KEY = "prompt_embeddings"
MAX_JSON_BYTES = 4 * 2**20
MAX_WEIGHT_BYTES = 8 * 2**30

_PEFT_ENCODERS = (PromptEncoderReparameterizationType.MLP, PromptEncoderReparameterizationType.LSTM)


@dataclass(frozen=True, kw_only=True)
class SavedPrompt:
    """What a prompt folder holds."""

    config: PromptEncoderConfig | PromptTuningConfig
    vectors: torch.Tensor
    """`(P, D)` float32, the encoder's output."""
    encoder: Mapping[str, torch.Tensor] | None
    """The encoder's tensors; None in a folder that PEFT wrote."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """The rest of `ptune.json`: base model, fingerprint, template, metrics, …"""


def write_prompt(folder: Path, prompt: SavedPrompt) -> Path:
    """Write a prompt folder; other files in the folder are left alone.

    Raises:
        OutputError: The folder cannot be written.
    """
    make_folder(folder)
    assert prompt.encoder is not None
    contents = {
        ADAPTER_WEIGHTS: save_safetensors({PEFT_KEY: _plain(prompt.vectors)}, metadata={"format": "pt"}),
        ENCODER_WEIGHTS: save_safetensors(
            {key: _plain(value) for key, value in prompt.encoder.items()}, {"format": "pt"}
        ),
    }
    for name, content in contents.items():
        write_atomic(folder / name, content)
    write_json(folder / ADAPTER_CONFIG, peft_config(prompt.config))
    whole = {
        "format_version": FORMAT_VERSION,
        "config_class": type(prompt.config).__name__,
        "config": prompt.config.to_dict(),
        **prompt.details,
        "sha256": {name: sha256(content) for name, content in contents.items()},
    }
    write_atomic(folder / CARD, model_card(whole).encode())
    write_json(folder / PTUNE_CONFIG, whole)
    return folder


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(device="cpu", dtype=torch.float32).clone().contiguous()


def peft_config(config: PromptEncoderConfig | PromptTuningConfig) -> dict[str, Any]:
    """The `adapter_config.json` with which PEFT loads the baked vectors."""
    common = {
        "auto_mapping": None,
        "base_model_name_or_path": config.base_model_name_or_path,
        "inference_mode": True,
        "modules_to_save": None,
        # PEFT asks for both and uses neither here; a state-space model has no heads.
        "num_attention_heads": config.num_attention_heads or 1,
        "num_layers": config.num_layers or 1,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": config.num_virtual_tokens,
        "revision": config.revision,
        "task_type": "CAUSAL_LM",
        "token_dim": config.token_dim,
    }
    if isinstance(config, PromptEncoderConfig) and config.encoder_reparameterization_type in _PEFT_ENCODERS:
        kind = PromptEncoderReparameterizationType(config.encoder_reparameterization_type)
        return {
            **common,
            "peft_type": "P_TUNING",
            "encoder_reparameterization_type": kind.value,
            "encoder_hidden_size": config.encoder_hidden_size,
            "encoder_num_layers": config.encoder_num_layers,
            "encoder_dropout": config.encoder_dropout,
        }
    return {**common, "peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM"}


def read_details(folder: Path) -> dict[str, Any]:
    """`ptune.json` of a prompt folder, or what a PEFT adapter's configuration says, without touching any tensor.

    Raises:
        PromptError: There is no such folder, or the file is damaged.
    """
    if not folder.is_dir():
        raise PromptError(
            f"there is no prompt folder {folder}.", hint="Give the folder that `ptune train --output` wrote."
        )
    if (folder / PTUNE_CONFIG).is_file():
        details = _read_json(folder / PTUNE_CONFIG)
        version = details.get("format_version")
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise PromptError(
                f"{folder / PTUNE_CONFIG} has format version {version!r}; this ptune reads up to {FORMAT_VERSION}.",
                hint="Upgrade ptune.",
            )
        if not isinstance(details.get("config"), dict):
            raise PromptError(f"{folder} is damaged: its configuration is of no known class.")
        return details
    if not (folder / ADAPTER_CONFIG).is_file():
        raise PromptError(
            f"{folder} is not a prompt folder: it has neither {PTUNE_CONFIG} nor {ADAPTER_CONFIG}.",
            hint="Give the folder that `ptune train --output` wrote.",
        )
    adapter = _read_json(folder / ADAPTER_CONFIG)
    classes = {"P_TUNING": "PromptEncoderConfig", "PROMPT_TUNING": "PromptTuningConfig"}
    if adapter.get("peft_type") not in classes:
        raise PromptError(f"{folder} holds a PEFT adapter of type {adapter.get('peft_type')!r}, not a soft prompt.")
    return {"config_class": classes[str(adapter["peft_type"])], "config": adapter}


def read_prompt(folder: Path) -> SavedPrompt:
    """Read a prompt folder, or a PEFT prompt-tuning or P-tuning adapter.

    Raises:
        PromptError: Missing, damaged, or not finite; the message names the file.
    """
    details = read_details(folder)
    config = _read_config(folder, details)
    sums = details.get("sha256", {})
    if not isinstance(sums, dict):
        raise PromptError(f"{folder / PTUNE_CONFIG} is damaged: sha256 is not a table.")
    weights = _read_tensors(folder / ADAPTER_WEIGHTS, sums.get(ADAPTER_WEIGHTS))
    vectors = weights.get(PEFT_KEY)
    if vectors is None or vectors.ndim != 2 or vectors.shape[0] != config.num_virtual_tokens:
        found = "no tensor" if vectors is None else f"shape {tuple(vectors.shape)}"
        raise PromptError(
            f"{folder / ADAPTER_WEIGHTS}: {PEFT_KEY} has {found}, expected ({config.num_virtual_tokens}, token_dim)."
        )
    encoder = None
    if "format_version" in details:
        encoder = _read_tensors(folder / ENCODER_WEIGHTS, sums.get(ENCODER_WEIGHTS))
    return SavedPrompt(config=config, vectors=vectors.float(), encoder=encoder, details=details)


def _read_config(folder: Path, details: Mapping[str, Any]) -> PromptEncoderConfig | PromptTuningConfig:
    kinds: dict[str, type[PromptEncoderConfig] | type[PromptTuningConfig]] = {
        "PromptEncoderConfig": PromptEncoderConfig,
        "PromptTuningConfig": PromptTuningConfig,
    }
    kind = kinds.get(str(details.get("config_class")))
    if kind is None:
        raise PromptError(f"{folder} is damaged: its configuration is of no known class.")
    known = {item.name for item in fields(kind)}
    kept = {key: value for key, value in details["config"].items() if key in known and value is not None}
    if "format_version" not in details:
        # PEFT's own file: what concerns its loading is not ours.
        kept = {key: value for key, value in kept.items() if key not in {"auto_mapping", "tokenizer_kwargs"}}
        kept.update(inference_mode=False, **_plain_start(kind))
    try:
        config: PromptEncoderConfig | PromptTuningConfig = kind(**kept)
    except (ConfigError, TypeError) as error:
        raise PromptError(f"{folder} is damaged: its configuration does not fit ({error}).") from error
    return config


def _plain_start(kind: type) -> dict[str, Any]:
    """An adapter's vectors are there already; how they were once initialised needs no tokenizer."""
    if kind is PromptTuningConfig:
        return {"prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None}
    return {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise PromptError(f"{path} has {path.stat().st_size:,} bytes, more than any prompt's {MAX_JSON_BYTES:,}.")
        value = json.loads(path.read_bytes())
    except PromptError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise PromptError(f"cannot read {path}: {type(error).__name__}: {error}.") from error
    if not isinstance(value, dict):
        raise PromptError(f"{path} holds a {type(value).__name__}, expected an object.")
    return value


def _read_tensors(path: Path, expected_sha256: Any) -> dict[str, torch.Tensor]:
    try:
        if path.stat().st_size > MAX_WEIGHT_BYTES:
            raise PromptError(f"{path} has {path.stat().st_size:,} bytes, more than any prompt encoder.")
        content = path.read_bytes()
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error.strerror}.", hint="The prompt folder is incomplete.") from error
    if expected_sha256 is not None and sha256(content) != expected_sha256:
        raise PromptError(
            f"{path} does not match its checksum in {PTUNE_CONFIG}.", hint="It was changed or cut; get it anew."
        )
    try:
        tensors: dict[str, torch.Tensor] = load_safetensors(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise PromptError(f"{path} is not a whole safetensors file: {error}.") from error
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise PromptError(f"{path}: {key} holds values that are not finite.")
    return tensors
