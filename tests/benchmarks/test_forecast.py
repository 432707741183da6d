"""The forecast's own measurement, on the small model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import forecast


@pytest.mark.slow
def test_a_run_stands_beside_its_forecast(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """In processes of its own: one that ran other tests may train in memory it has left, and peak at nothing above."""
    forecast.run(
        [
            "--models", str(model_dir), "--shapes", "2x160", "--dtypes", "float32",
            "--methods", "mlp", "prefix", "lora", "--threads", "1", f"--output={tmp_path / 'result.json'}",
        ]
    )  # fmt: skip
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "ok"
    (case,) = result["cases"]
    for name in ("mlp", "prefix", "lora"):
        (one,) = case["contenders"][name]["rounds"]
        assert one["tokens"] == forecast.STEPS * 2 * 160  # every row has exactly the forecast length
        assert one["forecast"]["trainable_parameters"] == one["trainable_parameters"]
        assert one["forecast_gib"] == one["forecast"]["memory"]["total"] > 0
        assert one["error_percent"] == pytest.approx(100 * (one["forecast_gib"] / one["peak_gib"] - 1))
    assert "3 runs: memory off by" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "least"), [("random:bloom-123m", 120e6), ("random:gpt2-124m", 120e6)])
@pytest.mark.slow
def test_the_random_models_are_as_big_as_their_names(name: str, least: float, tmp_path: Path):
    from ptune.loading.load import load_config
    from ptune.planning.forecast import Forecaster

    folder = forecast.model_folder(name, tmp_path)
    assert least < Forecaster(load_config(folder)).base_parameters < 1.05 * least + 5e6
