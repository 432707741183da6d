"""The frozen model and its tokenizer: load by name, freeze, and check that they fit together.

A name is a hub id, a folder, a `.gguf` file, or `builtin:smollm2-135m`. Whatever is wrong with it ends in one
`ModelError` that says what was found and what to do. Code from a repository runs only with `trust_remote_code=True`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ptune.config import TaskType
from ptune.errors import ConfigError, ModelError, PTuneError, first_line, nearest
from ptune.frozen.product import is_plain
from ptune.frozen.quantized import check_quantized, quantization_options
from ptune.internals import set_model_name
from ptune.loading.builtin import BUILTINS, PREFIX, builtin_path
from ptune.loading.for_task import auto_class, check_config, check_loaded, key_options, label_options
from ptune.loading.gguf import LOAD_FAULTS, converted_model, converted_tokenizer
from ptune.loading.place import check_attention, check_device_map, check_mapped, chosen_dtype, device_of_name
from ptune.reach import no_connection
from ptune.recipe import TrainRecipe

_log = logging.getLogger("ptune")
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "spiece*", "merges.txt", "*.model", "*.spm", "*.tiktoken", "tekken.json")


@dataclass(frozen=True)
class _Source:
    """What a model's name stands for: one of the two is set."""

    gguf: Path | None = None
    pretrained: str | None = None
    """A folder or a hub id, as `from_pretrained` takes it."""
    folder: Path | None = None
    """The folder, when `pretrained` is one."""


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    quantization: str | None = None,
    device: str | None = None,
    device_map: str | Mapping[str, str | int] | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    task: TaskType = TaskType.CAUSAL_LM,
    labels: Sequence[str] | int | None = None,
) -> PreTrainedModel:
    """Load a model, frozen and in eval mode: a causal language model, or one for another task.

    Args:
        name: Hub id, folder, `.gguf` file, or `builtin:smollm2-135m`. It becomes the model's `name_or_path`.
        dtype: float32, bfloat16 or float16; "auto" is bfloat16 where the device multiplies it (CUDA from Ampere on,
            CPUs with AVX512-BF16 or AMX), float32 elsewhere, or what the environment's `PTUNE_AUTO_DTYPE` says.
        quantization: int8, 8bit or 4bit packs the linear layers' weights as they are loaded; see
            `ptune.frozen.quantized`. What is not packed has `dtype`.
        device: As torch spells it; None is this process's CUDA device where there is one, else the CPU.
        device_map: Spreads the layers over several devices, the CPU and disk, as in transformers (`auto`, …); in place
            of `device`.
        attn_implementation: The attention of transformers' own layers (`eager`, `sdpa`, …). Packed rows have ptune's.
        trust_remote_code: True runs code from the model's repository.
        revision: Branch, tag or commit on the hub.
        task: What the model is for. The head of a classifier may be missing from its checkpoint; it is drawn then, from
            the same numbers always.
        labels: Of a classifier, in the order of its logits, or how many there are.

    Raises:
        ModelError: The model is not there, is damaged, is not for the task, or cannot be quantized.
        ConfigError: An unknown dtype, quantization, attention, device or part of the model; a device beside a device
            map.
        OutputError: A GGUF file's converted copy cannot be written.
    """
    if device is not None and device_map is not None:
        raise ConfigError(f"device={device!r} and device_map exclude each other.", hint="Leave one out.")
    check_device_map(device_map)
    check_attention(attn_implementation)
    place = device_of_name(device)
    number = chosen_dtype(dtype, place)
    packed = {} if quantization is None else quantization_options(quantization, number, place)
    source = _source(name)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
    options |= _cached_alone("model", source, revision)
    if source.gguf is not None:
        options = {}
    origin = pretrained_source(name, number)
    try:
        config = AutoConfig.from_pretrained(origin, **options)
        check_config(name, config, task, trust_remote_code=trust_remote_code)
        given = {"device_map": device_map, "attn_implementation": attn_implementation}
        options |= {"dtype": number, "output_loading_info": True, **packed}
        options |= {key: value for key, value in given.items() if value is not None}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of a head that is not in the checkpoint: it begins the same in every process
            options |= {**label_options(labels), **key_options(config, task)}
            found: Any = auto_class(task).from_pretrained(origin, **options)
        model: PreTrainedModel = found[0]
        check_loaded(name, model, found[1], task)
        check_mapped(device_map, model)
        if quantization is not None:
            check_quantized(model, quantization)
            for weight in model.parameters():
                # A single weight that is still mapped from its file keeps the whole file in memory.
                if is_plain(weight):
                    weight.data = weight.data.clone()
        elif device_map is None:
            model.to(place)  # type: ignore[arg-type]
    except PTuneError:
        raise
    except LOAD_FAULTS as fault:
        if attn_implementation is not None and isinstance(fault, ImportError):
            raise ConfigError(
                f"attn_implementation={attn_implementation!r} cannot be used: {first_line(fault).rstrip(' .')}.",
                hint="Leave it out, or install what it needs.",
            ) from fault
        raise _not_loaded("model", name, source, fault) from fault
    model.requires_grad_(False)
    model.eval()  # type: ignore[no-untyped-call]
    set_model_name(model, name)
    return model


def load_base(
    recipe: TrainRecipe,
    device: torch.device,
    tokenizer: PreTrainedTokenizerBase,
    *,
    on_cpu: bool = False,
    task: TaskType = TaskType.CAUSAL_LM,
    labels: Sequence[str] | None = None,
) -> PreTrainedModel:
    """The frozen model as a recipe asks for it, checked against its tokenizer; errors as for `load_model`.

    Args:
        recipe: Names it.
        device: Where it will run.
        tokenizer: The one that is used with it.
        on_cpu: Leave it on the CPU, in the dtype that the device takes.
        task: What the model is for.
        labels: Of a classifier.
    """
    base = load_model(
        recipe.model,
        dtype=str(chosen_dtype(recipe.dtype, device)).removeprefix("torch."),
        quantization=recipe.quantization,
        device="cpu" if on_cpu else str(device) if recipe.device_map is None else None,
        device_map=recipe.device_map,
        attn_implementation=recipe.attn_implementation,
        trust_remote_code=recipe.trust_remote_code,
        revision=recipe.revision,
        task=task,
        labels=labels,
    )
    check_tokenizer(base, tokenizer)
    return base


def pretrained_source(name: str, dtype: torch.dtype = torch.float32) -> str:
    """What `from_pretrained` takes for a model's name: a hub id, or a folder, made for a GGUF file when it must be.

    Args:
        name: As `load_model` takes it.
        dtype: Of the copy that is made of a GGUF file.

    Raises:
        ModelError: There is no such model.
        OutputError: A GGUF file's converted copy cannot be written.
    """
    source = _source(name)
    if source.gguf is not None:
        return str(converted_model(source.gguf, dtype))
    _check_folder(source.folder)
    return str(source.pretrained)


def load_config(
    name: str,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
    task: TaskType = TaskType.CAUSAL_LM,
) -> PretrainedConfig:
    """The configuration of a model; no weights are read, and only `config.json` is downloaded.

    Args:
        name: Hub id, folder (a `config.json` is all it needs), `.gguf` file, or `builtin:smollm2-135m`.
        trust_remote_code: True runs code from the model's repository.
        revision: Branch, tag or commit on the hub.
        local_files_only: Take what lies on this machine, and download nothing.
        task: What the model is for.

    Raises:
        ModelError: There is none, it is damaged, or its model is not for the task.
        OutputError: A GGUF file's converted copy cannot be written.
    """
    source, origin = _source(name), pretrained_source(name)
    options: dict[str, Any] = {
        "trust_remote_code": trust_remote_code,
        "revision": revision,
        "local_files_only": local_files_only,
    }
    if not local_files_only:
        options |= _cached_alone("configuration", source, revision)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(origin, **({} if source.gguf else options))
        check_config(name, config, task, trust_remote_code=trust_remote_code)
    except PTuneError:
        raise
    except LOAD_FAULTS as fault:
        raise _not_loaded("configuration", name, source, fault) from fault
    return config


def load_tokenizer(
    name: str, *, trust_remote_code: bool = False, revision: str | None = None, local_files_only: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model. Where it has no padding token, the end-of-text token is that too.

    Arguments as for `load_config`.

    Raises:
        ModelError: There is no tokenizer, it is damaged, or it has neither of the two tokens.
        OutputError: A GGUF file's converted copy cannot be written.
    """
    source = _source(name)
    options: dict[str, Any] = {
        "trust_remote_code": trust_remote_code,
        "revision": revision,
        "local_files_only": local_files_only,
    }
    if not local_files_only:
        options |= _cached_alone("tokenizer", source, revision)
    if source.gguf is not None:
        options = {}
        origin = str(converted_tokenizer(source.gguf))
    else:
        _check_tokenizer_files(source.folder)
        origin = str(source.pretrained)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(origin, **options)
    except LOAD_FAULTS as fault:
        raise _not_loaded("tokenizer", name, source, fault) from fault
    except Exception as fault:
        if type(fault) is not Exception:  # tokenizers, written in Rust, has no kind of its own
            raise
        raise _not_loaded("tokenizer", name, source, fault) from fault
    if len(tokenizer.get_vocab()) <= len(tokenizer.added_tokens_decoder):
        raise ModelError(
            f"the tokenizer of {name} has no vocabulary.", hint="Copy all tokenizer files of the model into it."
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                f"the tokenizer of {name} has neither a padding token nor an end-of-text token.",
                hint="Set eos_token in its tokenizer_config.json.",
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.name_or_path = name
    return tokenizer


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ModelError` when the tokenizer can give an id that the model has no embedding for."""
    embeddings: Any = model.get_input_embeddings()
    rows: int = embeddings.weight.shape[0]
    needed = max(tokenizer.get_vocab().values(), default=-1) + 1
    if needed > rows:
        raise ModelError(
            f"the tokenizer has {needed} tokens, but the model's embedding has {rows} rows.",
            hint="Use the model's own tokenizer; tokens that were added to it need a model trained with them.",
        )


def _source(name: str) -> _Source:
    """What `name` stands for. Nothing is read from a hub here."""
    if not name.strip():
        raise ModelError(
            f"the model's name is empty: {name!r}.", hint=f"Name a hub id, a folder, a file or a {PREFIX} model."
        )
    if name.startswith(PREFIX):
        return _Source(gguf=builtin_path(name))
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        return _Source(gguf=path)
    if path.is_dir():
        return _Source(pretrained=str(path), folder=path)
    if path.is_file():
        raise ModelError(f"{name} is a file.", hint="A model is a folder, a .gguf file, a hub id, or builtin:NAME.")
    if name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1:
        raise ModelError(f"there is no model folder {name!r}.", hint="Check the path.")
    return _Source(pretrained=name)


def _cached_alone(kind: str, source: _Source, revision: str | None) -> dict[str, Any]:
    """Options that take the copy in the hub's cache, where there is one and no connection; nothing otherwise.

    Raises:
        ModelError: There is no connection and no copy.
    """
    if source.gguf is not None or source.folder is not None:
        return {}
    name = str(source.pretrained)
    fault = no_connection(name, "config.json", revision=revision)
    if fault is None:
        return {}
    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        _log.warning("the hub cannot be reached (%s): %s is taken from the cache", first_line(fault), name)
        return {"local_files_only": True}
    raise _not_loaded(kind, name, source, fault)


def _check_folder(folder: Path | None) -> None:
    """Raise `ModelError` when a folder cannot be a model's."""
    if folder is None or (folder / "config.json").is_file():
        return
    packed = sorted(folder.glob("*.gguf"))
    if packed:
        raise ModelError(
            f"the folder {folder} holds GGUF files and no config.json.", hint=f"Name the file: {packed[0]}."
        )
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"the folder {folder} holds a prompt or an adapter, not a model.", hint="Name the model it was trained on."
        )
    raise ModelError(
        f"the folder {folder} holds no model: config.json is missing.", hint="Name a folder written by save_pretrained."
    )


def _check_tokenizer_files(folder: Path | None) -> None:
    """Raise `ModelError` when a folder has nothing that could be a tokenizer."""
    if folder is not None and not any(True for pattern in _TOKENIZER_FILES for _ in folder.glob(pattern)):
        raise ModelError(
            f"the folder {folder} holds no tokenizer: there is no tokenizer.json, vocabulary or tokenizer.model.",
            hint="Write one there with tokenizer.save_pretrained, or copy the tokenizer files of the model.",
        )


def _not_loaded(kind: str, name: str, source: _Source, fault: BaseException) -> ModelError:
    """The error for what transformers could not load, with the way out that fits the name."""
    cause = first_line(fault)
    if source.gguf is not None:
        return ModelError(
            f"cannot load the {kind} of {name}: {cause}", hint="Remove its converted copy from the cache and try again."
        )
    cause = cause.rstrip(" .")
    if "custom code" in cause:
        return ModelError(
            f"{name} needs code of its own to be loaded, which is not run.",
            hint="Read that code; if you trust it, pass --trust-remote-code (trust_remote_code=True).",
        )
    if isinstance(fault, UnpicklingError):
        return ModelError(
            f"the weights of {name} are a pickle that holds more than tensors, and is not opened.",
            hint="Save the model again as safetensors, where you trust it.",
        )
    if source.folder is not None:
        return ModelError(f"cannot load the {kind} in the folder {name}: {cause}.", hint="Is the folder complete?")
    guess = nearest(name.lower(), BUILTINS)
    builtin = f" Or did you mean {PREFIX}{guess}?" if guess else ""
    return ModelError(
        f"cannot load the {kind} {name!r} from the hub: {cause}.",
        hint=f"Check the id and the connection, or name a folder, a .gguf file or a {PREFIX} model.{builtin}",
    )
