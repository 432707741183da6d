"""A small data set, a prompt trained on it, and `ptune train` with all it needs; the cache is in a temporary place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Ran, run, train_words

WORDS = ("red", "green", "blue", "black", "white", "grey")


@pytest.fixture(scope="session")
def ptune_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ptune-cache")


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, ptune_cache: Path) -> None:
    """What commands set for the libraries is set before, and so put back afterwards."""
    monkeypatch.setenv("PTUNE_CACHE", str(ptune_cache))
    for name, value in (("TRANSFORMERS_VERBOSITY", "error"), ("TQDM_DISABLE", "1")):
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 Alpaca rows, none like another."""
    rows = [
        {"instruction": f"{word} {other}", "input": "", "output": other[0]}
        for word in WORDS
        for other in WORDS
        if word < other or word[0] == "r"
    ]
    path = tmp_path_factory.mktemp("data") / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def prompt_dir(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, data_file: Path, ptune_cache: Path
) -> Path:
    """A prompt trained for two steps on the small model. Read only."""
    folder = tmp_path_factory.mktemp("prompts") / "trained"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTUNE_CACHE", str(ptune_cache))
        done = run(
            "train", "--model", tiny_model_dir, "--data", data_file, "--output", folder,
            "--max-steps", 2, "--eval-rows", 4, "--num-virtual-tokens", 4,
        )  # fmt: skip
    assert done.code == 0, done.err
    return folder


Train = Callable[..., Ran]


@pytest.fixture
def train(tiny_model_dir: Path, data_file: Path, tmp_path: Path) -> Train:
    """`ptune train` on the small model and the small data; a named value replaces a flag's, None leaves it out."""

    def command(*more: object, **values: object) -> Ran:
        return run(*train_words(tiny_model_dir, data_file, tmp_path / "out", *more, **values))

    return command
