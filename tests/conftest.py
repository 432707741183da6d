"""Settings and fixtures for every test: nothing is fetched, nothing is drawn on a screen."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Read by the libraries when they are imported, so set before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Processors differ in what they multiply; what the tests expect does not.
os.environ["PTUNE_AUTO_DTYPE"] = "float32"

_SENTENCES = (
    "Human: Where is my order? Assistant: It left the store today.",
    "Human: I was charged twice for the kettle. Assistant: The second payment goes back to you.",
    "The lamp is broken, and nobody answers the phone.",
    "A soft prompt stands before the text; the model stays frozen.",
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small models are quickest on one thread, and sums come out the same on every machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def _modules_are_not_collected() -> None:
    """Leave what is alive already, imported modules above all, out of garbage collection.

    transformers and accelerate collect garbage several times in each run, 0.3 seconds and more for the modules alone.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 128 tokens for the models of `architectures`, with `<pad>`, `<eos>`, `<bos>`, `<unk>`.

    It cuts every ASCII text and gives it back; what lies outside ASCII becomes `<unk>`. It adds no special tokens of
    its own, and has no chat template. Shared by the whole session: copy it before changing it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    ascii_bytes = sorted({piece for code in (9, 10, *range(32, 127)) for piece in _byte_pieces(chr(code))})
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=128, special_tokens=special, initial_alphabet=ascii_bytes, show_progress=False
    )
    core.train_from_iterator(_SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


def _byte_pieces(text: str) -> list[str]:
    """How the byte-level alphabet writes `text`."""
    from tokenizers import pre_tokenizers

    words = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    return [piece for word, _ in words for piece in word]


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder with the small random Llama and the small tokenizer, as `save_pretrained` writes them. Read only."""
    from architectures import build

    folder = tmp_path_factory.mktemp("tiny-llama")
    build("llama").save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def task_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a small random model for each task. Read only."""
    from ptune.choices import CLASSIFY, SEQ2SEQ
    from ptune.data.tasks.task_kinds import DATA_TASKS
    from small_tasks import base_folder

    place = tmp_path_factory.mktemp("bases")
    bert = base_folder(place / "bert", CLASSIFY)
    return {task: base_folder(place / "t5", task) if task == SEQ2SEQ else bert for task in DATA_TASKS}


@pytest.fixture(scope="session")
def task_folders(tmp_path_factory: pytest.TempPathFactory, task_bases: dict[str, Path]) -> dict[str, Path]:
    """A prompt folder for each task. Read only."""
    from small_tasks import prompt_folder

    place = tmp_path_factory.mktemp("task-prompts")
    return {task: prompt_folder(place / task, base, task) for task, base in task_bases.items()}
