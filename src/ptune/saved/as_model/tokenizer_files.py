"""The tokenizer's files, in the words of transformers 4 where those of 5 are others.

transformers 5 notes a tokenizer that is all in `tokenizer.json` as `TokenizersBackend`, and special tokens without a
role as a list `extra_special_tokens`. Both are unknown to 4, which other programs still stand on (llama.cpp's
conversion asks for 4.57), and 5 reads the older words as well: `PreTrainedTokenizerFast`, `additional_special_tokens`.
Whether what was written cuts text as before is tried; where it does not, the files stay as transformers wrote them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ptune.errors import PTuneError
from ptune.loading.load import load_tokenizer
from ptune.saved.as_model.chat import SELECTOR, TEXTS
from ptune.saved.files import json_bytes, write_flushed

_CONFIG = "tokenizer_config.json"
_CLASS, _EXTRA = "tokenizer_class", "extra_special_tokens"


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer that has the prompts' tokens into the model's folder."""
    tokenizer.save_pretrained(folder)
    path = folder / _CONFIG
    written = path.read_bytes()
    settings = json.loads(written)
    older = _older(settings)
    if older == settings:
        return
    write_flushed(path, json_bytes(older))
    if not _reads_as(folder, tokenizer):
        write_flushed(path, written)


def _older(settings: dict[str, Any]) -> dict[str, Any]:
    found = dict(settings)
    if found.get(_CLASS) == "TokenizersBackend":
        found[_CLASS] = "PreTrainedTokenizerFast"
    if isinstance(found.get(_EXTRA), list):
        found["additional_special_tokens"] = found.pop(_EXTRA)
    return found


def _reads_as(folder: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the folder has a tokenizer that cuts text as this one, virtual tokens too, and has its special tokens."""
    try:
        found = load_tokenizer(str(folder))
    except (PTuneError, ValueError, TypeError, AttributeError, KeyError):
        return False
    virtual = next(word for word in tokenizer.get_added_vocab() if word.startswith(f"<|{SELECTOR}"))
    texts = [before + text for before in ("", virtual) for text in TEXTS]
    same = all(found(text)["input_ids"] == tokenizer(text)["input_ids"] for text in texts)
    return same and set(found.all_special_ids) == set(tokenizer.all_special_ids)
