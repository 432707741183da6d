"""Tokenizers of several kinds, and texts with what they hold."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers import logging as transformers_logging

from ptune.compression.compress import CompressResult
from small_runs import model_folder, run, text_file
from text_of_things import CHINESE, things


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    monkeypatch.setenv("PTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "ptune-cache"))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    yield
    transformers_logging.set_verbosity(level)


def _finished(core: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Of bytes: a Chinese character is several tokens."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<eos>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([things(20)], trainer)
    return _finished(core)


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerFast:
    """Of pieces of words, as SentencePiece has them: decoded, a text loses the space before its first word."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    special = ["<pad>", "<eos>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    core.train_from_iterator([things(20), CHINESE, "\n()\"'?!:;%"], trainer)
    return _finished(core)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A small random Llama with room for a text. Read only."""
    return model_folder(tmp_path_factory.mktemp("model"), tiny_tokenizer, max_position_embeddings=512)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_file(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, model_dir: Path, text: Path) -> CompressResult:
    """A run that was left alone. Read only."""
    return run(text, model_dir, tmp_path_factory.mktemp("whole") / "out")
