"""`ptune train --resume` and `--init-from` at the command line; kill -9 in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commands import SOURCES, Ran, run, train_words

Train = Callable[..., Ran]
SETTINGS = {"encoder": "lstm", "encoder_dropout": 0.2, "gradient_accumulation_steps": 2, "num_virtual_tokens": 4}


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def encoder(folder: Path) -> bytes:
    return (folder / "encoder.safetensors").read_bytes()


def test_resume_needs_nothing_but_the_folder(train: Train, tmp_path: Path):
    settings = {**SETTINGS, "max_steps": 6, "save_steps": 2, "learning_rate": 0.004, "lr_scheduler_type": "linear"}
    folder = tmp_path / "out"
    assert train(**settings, save_total_limit=9, logging_steps=1, output=tmp_path / "whole").code == 0
    assert train(**settings, save_total_limit=9, logging_steps=1).code == 0
    for step in (4, 6):
        (folder / f"checkpoint-{step}" / "training_state.safetensors").write_bytes(b"cut")
    ran = run("train", "--resume", folder)
    assert ran.code == 0, ran.err
    said = ran.err.splitlines()
    assert [line.split(" is not whole")[0] for line in said if "not whole" in line][:2] == [
        "checkpoint-6",
        "checkpoint-4",
    ]
    assert f"going on from {folder / 'checkpoint-2'}" in said
    assert encoder(folder) == encoder(tmp_path / "whole")
    assert losses(folder) == losses(tmp_path / "whole")
    assert json.loads((folder / "ptune.json").read_text())["training_arguments"]["lr_scheduler_type"] == "linear"
    again = run("train", "--resume", "--output", folder, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["steps"] == 6
    assert encoder(folder) == encoder(tmp_path / "whole")


def test_a_changed_schedule_is_named(train: Train, tmp_path: Path):
    assert train(max_steps=2, save_steps=2).code == 0
    ran = run("train", "--resume", tmp_path / "out", "--max-steps", "3")
    assert ran.code == 0, ran.err
    assert "going on with max_steps=3, where it was begun with 2" in ran.err


BAD: dict[str, tuple[list[str], str]] = {
    "nowhere": (["--resume"], "nothing says which run to resume. Name its folder: ptune train --resume OUTPUT."),
    "no checkpoint": (["--resume", "{tmp}"], "there is no checkpoint in {tmp} to resume from."),
    "not there": (["--resume", "{tmp}/checkpoint-7"], "there is no checkpoint {tmp}/checkpoint-7."),
    "other rate": (["--resume", "{tmp}/out", "--learning-rate", "1"], "with learning_rate=0.06, not 1.0."),
    "other encoder": (["--resume", "{tmp}/out", "--encoder", "lstm"], "with encoder=embedding, not lstm."),
    "fewer rows": (["--resume", "{tmp}/out", "--limit", "10"], "on other rows"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_resumed_is_one_line(bad: str, train: Train, tmp_path: Path):
    words, message = BAD[bad]
    assert train().code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ran = run("train", *(word.format(tmp=tmp_path) for word in words))
    assert ran.code == 2
    last = ran.err.strip().splitlines()[-1]
    assert last.startswith("ptune train: error: ")
    assert message.format(tmp=tmp_path) in last
    assert "Traceback" not in ran.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_init_from_takes_the_encoder_of_the_folder(train: Train, tmp_path: Path):
    assert train(**SETTINGS).code == 0
    ran = train(init_from=tmp_path / "out", output=tmp_path / "more", max_steps=1, learning_rate=0)
    assert ran.code == 0, ran.err
    assert encoder(tmp_path / "more") == encoder(tmp_path / "out")
    other = train(init_from=tmp_path / "out", encoder="residual", output=tmp_path / "other", max_steps=1)
    assert other.code == 0, other.err
    assert json.loads((tmp_path / "other" / "ptune.json").read_text())["encoder"] == "residual"
    narrow = {"encoder": "mlp", "encoder_hidden_size": 2}
    refused = train(init_from=tmp_path / "out", **narrow, output=tmp_path / "third")
    assert refused.code == 2
    assert "last layer reads 2 numbers cannot start from 4 given vectors" in refused.err
    assert not (tmp_path / "third").exists()


def start(words: list[object], cache: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1", "PTUNE_CACHE": str(cache)}
    command = [sys.executable, "-m", "ptune", *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 200
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.001)
    assert process.poll() is None, process.stderr and process.stderr.read()


def test_kill_9_and_sigterm_lose_nothing(
    tmp_path: Path, tiny_model_dir: Path, data_file: Path, ptune_cache: Path, train: Train
):
    settings = {**SETTINGS, "max_steps": 60, "save_steps": 3, "logging_steps": 4}
    folder, whole = tmp_path / "out", tmp_path / "whole"
    assert train(output=whole, **settings).code == 0
    process = start(train_words(tiny_model_dir, data_file, folder, **settings), ptune_cache)
    wait_for(lambda: (folder / "checkpoint-6").exists() and any(folder.glob(".checkpoint-*")), process)
    process.kill()
    process.wait()
    process = start(["train", "--resume", folder], ptune_cache)
    wait_for((folder / "checkpoint-15").exists, process)
    process.send_signal(signal.SIGTERM)
    _, words = process.communicate(timeout=200)
    assert process.returncode == 143, words
    assert words.strip().splitlines()[-1].startswith("ptune train: stopped after step ")
    assert f"Go on with: ptune train --resume --output {folder}" in words
    assert run("train", "--resume", folder).code == 0
    assert encoder(folder) == encoder(whole)
    assert losses(folder) == losses(whole)
