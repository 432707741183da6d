"""`benchmarks/learning.py` on small data: both sides train, what was measured is kept, the rates are gone through."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from rich.console import Console

import learning
from ptune.choices import LEARNING_RATES


def test_both_sides_are_measured_and_kept(
    data: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "RATES", (1e-2, 3e-2))
    monkeypatch.setattr(learning, "FACTORS", (1.0, 3.0))
    options = argparse.Namespace(
        model=str(tiny_model_dir), data=str(data), tasks="sst2,e2e", lengths="4", seeds=1, steps=2, held_out=4,
        robustness="sst2", threads=1, work=str(tmp_path / "work"), output=tmp_path / "result.json",
    )  # fmt: skip
    result = learning.measure(options, Console(quiet=True))
    assert [one["task"] for one in result["compared"]] == ["sst2", "e2e"]
    for one in result["compared"]:
        assert {name: len(losses) for name, losses in one["held_out_loss"].items()} == {
            "reference": 1, "ptune": 1, "ptune_half": 1,
        }  # fmt: skip
        assert one["held_out_loss"]["ptune"] != one["held_out_loss"]["reference"]
        assert str(one["reference_rate"]) in one["reference_rates_tried"]
        assert one["ptune_rate"] != LEARNING_RATES["embedding"]
    points = result["robustness"]["points"]
    assert [point["factor"] for point in points["ptune"]] == [1.0, 3.0]
    assert points["ptune"][1]["learning_rate"] == pytest.approx(3 * points["ptune"][0]["learning_rate"], rel=0.01)
    runs = json.loads((tmp_path / "work" / "runs.json").read_text())
    monkeypatch.setattr(learning, "train", None)
    assert learning.measure(options, Console(quiet=True))["compared"] == result["compared"]
    assert json.loads((tmp_path / "work" / "runs.json").read_text()) == runs
    learning.report(result, Console(quiet=True))
    assert learning.plot_robustness(result["robustness"], tmp_path / "x.png").stat().st_size > 1000
