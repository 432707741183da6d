"""What is kept of a run of the demo: its figures, and the time of an answer in each column."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import demo_figures
from architectures import build
from commands import run
from harness import ROOT
from ptune.cli import demo


def test_figures_times_and_picture(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
):
    model, output, picture = tmp_path / "model", tmp_path / "result.json", tmp_path / "picture.png"
    build("llama", max_position_embeddings=2048).save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    monkeypatch.setattr(demo, "MODEL", str(model))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)

    def run_demo(folder: Path) -> None:
        ran = run("demo", "--output", folder, "--max-steps", 2, "--rows", 3, "--json")
        assert ran.code == 0, ran.err
        (folder / demo_figures.JSON).write_text(ran.out)

    monkeypatch.setattr(demo_figures, "run_demo", run_demo)
    demo_figures.run(["--output", str(output), "--picture", str(picture)])
    whole = json.loads(output.read_text(encoding="utf-8"))
    assert set(whole["cpu_seconds_an_answer"]) == {"alone", "written", "prompt"}
    assert all(seconds > 0 for seconds in whole["cpu_seconds_an_answer"].values())
    assert whole["result"]["evaluation"]["items"] == 3
    assert "output" not in whole["result"]
    assert str(ROOT) not in json.dumps(whole)
    assert picture.read_bytes().startswith(b"\x89PNG")
