"""`benchmarks/precision.py` on small data: both precisions train, from the same start, and are told apart."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from rich.console import Console

import precision


def test_both_precisions_train_on_every_task(data: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    options = argparse.Namespace(
        model=str(tiny_model_dir), data=str(data), tasks="sst2,trec", length=4, seeds=2, steps=2, held_out=4,
        threads=1, work=str(tmp_path / "work"), output=tmp_path / "result.json", architectures="llama,gpt2", batches=2,
    )  # fmt: skip
    result = precision.measure(options, Console(quiet=True))
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert [one["task"] for one in result["compared"]] == ["sst2", "trec"]
    for one in result["compared"]:
        exact, rounded = (one["held_out_loss"][dtype] for dtype in precision.PRECISIONS)
        assert len(exact) == len(rounded) == 2
        assert 0 < max(abs(a - b) for a, b in zip(exact, rounded, strict=True)) < 0.1
        assert one["difference_of_means"] == pytest.approx((sum(rounded) - sum(exact)) / 2)
        assert one["spread_of_seeds"]["float32"] == max(exact) - min(exact)
    assert [one["model"] for one in result["gradients"]] == ["llama", "gpt2"]
    for one in result["gradients"]:
        assert all(0.001 < error < 0.1 for errors in one["errors"].values() for error in errors)
        ratio, low, high = one["packed_over_peft"]
        assert low < ratio < high
        assert 0.5 < ratio < 2
