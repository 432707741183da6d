"""GGUF files, converted once to what a model can be trained from, and kept.

A GGUF file holds weights in quantized blocks: a model run from them can be neither trained through nor saved, so every
weight is unpacked to plain numbers. That takes many seconds, loading the result takes one. Converted copies lie below
the cache folder:

    $PTUNE_CACHE, or $XDG_CACHE_HOME/ptune, or ~/.cache/ptune
        gguf/NAME-HASH/tokenizer       tokenizer.json, chat template, …
        gguf/NAME-HASH/float32         config.json, model.safetensors (or bfloat16, float16)

`HASH` covers the file's bytes, the version of transformers and the version of this module. A copy is written to a
temporary name under a lock and renamed, so that a folder that is there is whole, and two processes convert once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Digits
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.gguf.reader import read_gguf_metadata

from ptune.errors import ModelError, OutputError, first_line
from ptune.internals import set_backend

# Raised when this module writes other copies than before, so that old ones are left alone.
CONVERSION = 1
LOAD_FAULTS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
    UnpicklingError,
    struct.error,
)
"""What transformers raises when a file, a configuration or an identifier cannot be used."""

_MAGIC = b"GGUF"
_SPLIT_NAME = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_log = logging.getLogger(__name__)


def cache_root() -> Path:
    """The folder for copies: `$PTUNE_CACHE`, `$XDG_CACHE_HOME/ptune`, or `~/.cache/ptune`. It may not exist yet."""
    own = os.environ.get("PTUNE_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path("~/.cache")).expanduser() / "ptune"


def converted_model(path: Path, dtype: torch.dtype) -> Path:
    """A folder with the unpacked weights of a GGUF file, made when it is not in the cache.

    A copy in float32 serves every dtype.

    Raises:
        ModelError: The file is missing, split, damaged, or of an architecture that transformers does not unpack.
        OutputError: The cache folder cannot be written.
    """
    check_gguf(path)
    entry = _entry(path)
    if (entry / "float32").is_dir():
        return entry / "float32"
    return _kept(entry / str(dtype).removeprefix("torch."), path, lambda: _read_model(path, dtype))


def converted_tokenizer(path: Path) -> Path:
    """A folder with the tokenizer of a GGUF file, chat template included. Errors as `converted_model`."""
    check_gguf(path)
    return _kept(_entry(path) / "tokenizer", path, lambda: _read_tokenizer(path))


def check_gguf(path: Path) -> None:
    """Raise `ModelError` unless `path` is one whole GGUF file."""
    if not path.is_file():
        raise ModelError(f"there is no file {path}.", hint="Check the path.")
    if _SPLIT_NAME.search(path.name):
        raise ModelError(
            f"{path} is one part of a split model.", hint="Join the parts with `llama-gguf-split --merge`."
        )
    with path.open("rb") as stream:
        start = stream.read(len(_MAGIC))
    if start != _MAGIC:
        raise ModelError(f"{path} is not a GGUF file: it starts with {start!r}.", hint="Download it again.")


def _entry(path: Path) -> Path:
    """The cache folder of one GGUF file."""
    with path.open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    versions = f"{importlib.metadata.version('transformers')} {CONVERSION}"
    key = hashlib.sha256(f"{content} {versions}".encode()).hexdigest()[:16]
    return cache_root() / "gguf" / f"{path.stem}-{key}"


def _kept(folder: Path, path: Path, read: Callable[[], Any]) -> Path:
    """`folder`, filled with what `read` returns unless it is there."""
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.is_dir():
                _fill(folder, path, read)
    except (OSError, SafetensorError) as fault:
        raise OutputError(
            f"cannot keep a converted copy of {path} in {folder.parent}: {first_line(fault)}.",
            hint="Set PTUNE_CACHE to a folder with room that can be written.",
        ) from fault
    return folder


def _fill(folder: Path, path: Path, read: Callable[[], Any]) -> None:
    """Write what `read` returns to `folder`, under the lock."""
    _log.info("converting the %s of %s (once; kept in %s)", folder.name, path.name, folder)
    try:
        content = read()
    except ImportError as fault:
        raise ModelError(
            f"reading {path} needs a package: {first_line(fault)}", hint="Run `pip install gguf`."
        ) from fault
    except LOAD_FAULTS as fault:
        raise ModelError(
            f"cannot read {path}: {first_line(fault).rstrip(' .')}.",
            hint="Is the file whole, and its architecture known?",
        ) from fault
    # The lock is held, so a folder of this name was left by a process that died.
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        content.save_pretrained(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read_model(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a GGUF file, unpacked."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
    )
    return model


def _read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file, with two things put right that transformers leaves out or adds.

    - SmolLM's cuts texts at every digit before anything else, which shows where blanks stand before a digit.
    - A byte-level tokenizer comes back with GPT-2's `<|endoftext|>`, whether the file has that token or not. Where it
      has not (Llama 3), the token would stand one row beyond the model's embedding.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    metadata, _ = read_gguf_metadata(str(path))
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    # The reader gives the length of an array in place of its content.
    core["added_tokens"] = [token for token in core["added_tokens"] if token["id"] < metadata["tokenizer.ggml.tokens"]]
    backend = Tokenizer.from_str(json.dumps(core))
    if metadata.get("tokenizer.ggml.pre") == "smollm":
        backend.pre_tokenizer = PreTokenizers([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    set_backend(tokenizer, backend)
    kept: PreTrainedTokenizerBase = tokenizer
    return kept
