"""One small search that many tests look at, and `ptune tune` with all it needs."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import logging as transformers_logging

from commands import Ran, run

LETTERS = "abcdefgh"


@pytest.fixture(scope="session")
def ptune_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ptune-cache")


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, ptune_cache: Path) -> Iterator[None]:
    for name, value in (
        ("PTUNE_CACHE", str(ptune_cache)),
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("TQDM_DISABLE", "1"),
        ("HF_HUB_OFFLINE", "1"),
    ):
        monkeypatch.setenv(name, value)
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    yield
    transformers_logging.set_verbosity(level)


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions whose answers begin alike: a prompt can learn the beginning."""
    source = random.Random(1)
    rows = [
        {"instruction": f"{source.choice(LETTERS) * source.randint(1, 4)} {i}", "output": "yes" + "!" * (i % 4)}
        for i in range(40)
    ]
    path = tmp_path_factory.mktemp("data") / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def task(tiny_model_dir: Path, data_file: Path) -> list[object]:
    """The flags of a short search, but for its length and its folder."""
    return [
        "--model", tiny_model_dir, "--data", data_file, "--eval-rows", 8, "--num-virtual-tokens", 2, 4,
        "--max-steps", 8, "--use-cpu", "--encoder-dropout", 0.2,
    ]  # fmt: skip


Tune = Callable[..., Ran]


@pytest.fixture
def tune_into(task: list[object]) -> Tune:
    """`ptune tune` on the small task into a folder."""

    def command(folder: Path, *more: object) -> Ran:
        return run("tune", *task, "--output", folder, *more)

    return command


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory, task: list[object], ptune_cache: Path) -> Path:
    """The folder of a search of ten trials. Read only."""
    folder = tmp_path_factory.mktemp("searches") / "ten"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTUNE_CACHE", str(ptune_cache))
        patch.setenv("HF_HUB_OFFLINE", "1")
        done = run("tune", *task, "--trials", 10, "--output", folder)
    assert done.code == 0, done.err
    (folder / "said.json").write_text(json.dumps([done.out, done.err]), encoding="utf-8")
    return folder


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def outcome(folder: Path) -> list[dict[str, Any]]:
    """Every trial of a search, without the time it took."""
    return [{name: value for name, value in one.items() if name != "seconds"} for one in results(folder)["trials"]]
