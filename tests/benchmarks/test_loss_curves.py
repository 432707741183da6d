"""The comparison over seeds, on the small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import loss_curves
from plots import plot_loss_curves


@pytest.mark.slow
def test_rates_are_chosen_on_other_rows_and_every_seed_is_run(model_dir: Path, data_file: Path, tmp_path: Path):
    output, picture = tmp_path / "result.json", tmp_path / "curves.png"
    words = {
        "model": model_dir, "rows": 20, "held-out": 8, "batch": 10, "epochs": 2, "rate-epochs": 1, "max-length": 64,
        "n": 3, "seeds": 2, "work": tmp_path / "work", "output": output, "plot": picture,
    }  # fmt: skip
    loss_curves.run([*(f"--{name}={value}" for name, value in words.items()), "--data", str(data_file)])
    result = json.loads(output.read_text())
    assert result["status"] == "ok"
    (one,) = result["data"]
    assert one["same_rows_in_the_same_order"]
    for name, rates in one["rates_tried"].items():
        assert len(rates) == len(loss_curves.FACTORS)
        assert rates[f"{one['rates'][name]:g}"] == min(rates.values())
        summary = one["methods"][name]
        assert summary["seeds"] == [42, 43]
        assert [len(curve) for curve in summary["losses"]] == [4, 4]
    compared, tried = (
        {row["instruction"] for row in json.loads((tmp_path / "work" / data_file.stem / name).read_text())}
        for name in ("compared.json", "tried.json")
    )
    assert not compared & tried
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_parts_of_a_curve():
    curve = [float(at) for at in range(30)]
    assert loss_curves._mean(curve, 0, 1 / 3) == 4.5
    assert loss_curves._mean(curve, 0.9, 1.0) == 28
    assert loss_curves._mean([7.0], 0.9, 1.0) == 7


def test_picture(tmp_path: Path):
    def method(shift: float) -> dict[str, Any]:
        return {"losses": [[3 - at / 10 + shift for at in range(20)]] * 2}

    one = {
        "data": "rows",
        "rates": dict.fromkeys(loss_curves.NAMES, 0.01),
        "methods": {name: method(at / 5) for at, name in enumerate(loss_curves.NAMES)},
    }
    path = plot_loss_curves({"data": [one, one]}, tmp_path / "curves.png")
    assert path.read_bytes().startswith(b"\x89PNG")
