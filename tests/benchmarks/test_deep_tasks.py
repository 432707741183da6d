"""`benchmarks/deep_tasks.py` on small data: each encoder at every rate, the best from every seed, all kept."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from rich.console import Console

import deep_tasks


def test_each_encoder_is_measured_at_its_best_rate(
    data: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deep_tasks, "FACTORS", (1.0, 3.0))
    options = argparse.Namespace(
        model=str(tiny_model_dir), data=str(data), tasks="sst2", seeds=2, steps=2, held_out=4, threads=1,
        work=str(tmp_path / "work"),
    )  # fmt: skip
    part = deep_tasks.measure(options, Console(quiet=True))
    (one,) = part["compared"]
    assert list(one["prefix"]["rates_tried"]) == ["0.06", "0.18"]
    assert one["prefix"]["trainable_parameters"] > one["embedding"]["trainable_parameters"]
    for encoder in deep_tasks.MIDDLE:
        its = one[encoder]
        assert len(its["rates_tried"]) == 2
        losses = {rate: tried["loss_chosen_by"] for rate, tried in its["rates_tried"].items()}
        assert f"{its['best_rate']:g}" == min(losses, key=losses.__getitem__)
        assert len(set(its["held_out_loss"])) == 2
        assert its["held_out_loss"][0] == its["rates_tried"][f"{its['best_rate']:g}"]["held_out_loss"]
    runs = json.loads((tmp_path / "work" / "runs.json").read_text())
    assert len(runs) == 6
    monkeypatch.setattr(deep_tasks, "train", None)
    assert deep_tasks.measure(options, Console(quiet=True))["compared"] == part["compared"]
    deep_tasks.report(part, Console(quiet=True))
