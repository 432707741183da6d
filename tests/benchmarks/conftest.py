"""A tiny model, a few short rows, and benchmarks whose processes run inside the test."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from transformers import logging as transformers_logging

import harness
from architectures import build

ROWS = [{"instruction": f"say {'ab' * (i % 5)} {i}", "output": "yes" + "!" * (i % 7)} for i in range(60)]


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    monkeypatch.setenv("PTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "ptune-cache"))
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    yield
    transformers_logging.set_verbosity(level)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Files of the form that SST-2, TREC and E2E come in."""
    folder = tmp_path / "data"
    for name in ("sst2", "trec", "e2e_nlg"):
        (folder / name).mkdir(parents=True)
    moods = "".join(f"{number % 2} a film of kind {number}\n" for number in range(12))
    for part in ("train", "dev", "test"):
        (folder / "sst2" / f"stsa.binary.{part}").write_text(moods)
    questions = "".join(f"{number % 6} Where is number {number} ?\n" for number in range(920))
    for part in ("train", "test"):
        (folder / "trec" / f"TREC.{part}.all").write_text(questions)
    places = "mr,ref\n" + "".join(f'"name[{number // 2}]",A place called {number}.\n' for number in range(12))
    for part in ("devset", "testset_w_refs"):
        (folder / "e2e_nlg" / f"{part}.csv").write_text(places)
    return folder


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """The small Llama with room for a hundred virtual tokens."""
    folder = tmp_path_factory.mktemp("roomy-llama")
    build("llama", max_position_embeddings=512).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def settings(model_dir: Path, data_file: Path) -> dict[str, Any]:
    """What a worker is told: eight rows in batches of four behind three virtual tokens."""
    return {
        "model": str(model_dir),
        "data": str(data_file),
        "device": "cpu",
        "dtype": "float32",
        "rows": 8,
        "warm_up_rows": 2,
        "batch": 4,
        "accumulation": 1,
        "max_length": 64,
        "seed": 0,
        "threads": 1,
        "encoder": "mlp",
        "n": 3,
    }


@pytest.fixture
def words(model_dir: Path, data_file: Path, tmp_path: Path) -> list[str]:
    """Flags that make any of the training scripts small."""
    flags = {"model": model_dir, "data": data_file, "max-length": 64, "threads": 1, "rounds": 1}
    return [*(f"--{name}={value}" for name, value in flags.items()), f"--output={tmp_path / 'result.json'}"]


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[harness.Benchmark], None]:
    """Let a benchmark's processes be calls: same settings, same answers as JSON, no start of Python."""

    def settle(benchmark: harness.Benchmark) -> None:
        def ask(_script: Path, contender: str, settings: dict[str, Any], _timeout: float) -> dict[str, Any]:
            told = json.loads(json.dumps(settings))
            return {"status": "ok", **json.loads(json.dumps(benchmark.work(contender, told)))}

        monkeypatch.setattr(harness, "_ask", ask)

    return settle
