"""The tokenizer's files say what transformers 4 knows too, and cut text as before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ptune.saved.as_model import tokenizer_files
from ptune.saved.as_model.chat import TEXTS, token_text
from ptune.saved.as_model.tokenizer_files import write_tokenizer


@pytest.fixture
def tokenizer(model_of: Callable[[str], Path]) -> PreTrainedTokenizerFast:
    """With a virtual token, and a special token that has no role."""
    found = AutoTokenizer.from_pretrained(model_of("llama"))
    found.add_tokens([token_text("p", 0)], special_tokens=True)
    found.add_special_tokens({"extra_special_tokens": ["<|tool|>"]})
    return found


def settings(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return found


def test_in_words_that_transformers_4_knows(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path / "theirs")
    theirs = settings(tmp_path / "theirs")
    assert (theirs["tokenizer_class"], theirs["extra_special_tokens"]) == ("TokenizersBackend", ["<|tool|>"])
    write_tokenizer(tokenizer, tmp_path)
    written = settings(tmp_path)
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["<|tool|>"]
    assert "extra_special_tokens" not in written
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.all_special_ids == tokenizer.all_special_ids
    for text in TEXTS:
        assert again(token_text("p", 0) + text)["input_ids"] == tokenizer(token_text("p", 0) + text)["input_ids"]


def test_what_would_cut_text_in_another_way_is_not_written(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tokenizer_files, "_older", lambda found: {**found, "extra_special_tokens": []})
    tokenizer.save_pretrained(tmp_path / "theirs")
    write_tokenizer(tokenizer, tmp_path)
    name = "tokenizer_config.json"
    assert (tmp_path / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
