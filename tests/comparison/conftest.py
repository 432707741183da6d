"""One small comparison that many tests look at, and `ptune compare` with all it needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Ran, run

WORDS = ("red", "green", "blue", "black", "white", "grey")
METHODS = ("full", "mlp", "lora", "peft-mlp")


@pytest.fixture(scope="session")
def ptune_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ptune-cache")


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, ptune_cache: Path) -> None:
    for name, value in (
        ("PTUNE_CACHE", str(ptune_cache)),
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("TQDM_DISABLE", "1"),
        ("HF_HUB_OFFLINE", "1"),
    ):
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"instruction": f"{word} {other}", "input": "", "output": f"{other[0]} {word}"}
        for word in WORDS
        for other in WORDS
        if word < other or word[0] == "r"
    ]
    path = tmp_path_factory.mktemp("data") / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


Compare = Callable[..., Ran]


@pytest.fixture(scope="session")
def compare_words(tiny_model_dir: Path, data_file: Path) -> list[object]:
    return [
        "--model", tiny_model_dir, "--data", data_file, "--eval-rows", 4, "--num-virtual-tokens", 4,
        "--max-steps", 3, "--per-device-train-batch-size", 4, "--learning-rates", "mlp=1e-2",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory, compare_words: list[object], ptune_cache: Path) -> Path:
    """The folder of a comparison of four methods. Read only."""
    folder = tmp_path_factory.mktemp("comparisons") / "four"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTUNE_CACHE", str(ptune_cache))
        patch.setenv("HF_HUB_OFFLINE", "1")
        done = run("compare", *compare_words, "--methods", ",".join(METHODS), "--output", folder)
    assert done.code == 0, done.err
    (folder / "stdout.txt").write_text(done.out, encoding="utf-8")
    return folder


@pytest.fixture
def compare(compare_words: list[object], tmp_path: Path) -> Compare:
    """`ptune compare` into a fresh folder, unless another is named."""

    def command(*more: object, output: Path | None = None) -> Ran:
        return run("compare", *compare_words, "--output", output or tmp_path / "out", *more)

    return command
