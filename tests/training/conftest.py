"""A task that a prompt can learn, as a file and as rows, and the small model's cache in a temporary place."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import logging as transformers_logging

LETTERS = "abcdefgh"


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    monkeypatch.setenv("PTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "ptune-cache"))
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    yield
    transformers_logging.set_verbosity(level)


def rows(count: int, seed: int) -> list[dict[str, str]]:
    """Questions of several lengths whose answers begin alike: the prompt can learn the beginning."""
    source = random.Random(seed)
    made = []
    for number in range(count):
        question = " ".join(source.choice(LETTERS) * source.randint(1, 3) for _ in range(source.randint(1, 5)))
        made.append({"instruction": f"{question} {number}", "output": "yes it is" + "!" * source.randint(0, 4)})
    return made


@pytest.fixture(scope="session")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("task") / "train.json"
    path.write_text(json.dumps(rows(40, seed=1)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def held_out_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine rows: two processes' last batches of two have to be filled up."""
    path = tmp_path_factory.mktemp("task") / "held-out.json"
    path.write_text(json.dumps(rows(9, seed=2)), encoding="utf-8")
    return path
