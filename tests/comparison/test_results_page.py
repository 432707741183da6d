"""`docs/compare.md` tells what the committed results hold."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
LANGUAGES = {"alpaca_en": "English", "alpaca_zh": "Chinese"}
CURVES = {"prompt-tuning": "prompt tuning", "mlp": "P-tuning (MLP)", "lstm": "P-tuning (LSTM)"}


def result(name: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8")))


def size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count > 1e6 else f"{count / 1e3:.0f} kB"


@pytest.mark.parametrize("name", ["alpaca_en", "alpaca_zh"])
def test_methods_compared(name: str) -> None:
    found = result(f"compare_{name}")
    _, _, part = TEXT.partition(f"\n{LANGUAGES[name]}:\n")
    assert f"| the model alone | | | | | | {found['base']['held_out_loss']:.3f} | |" in part
    assert found["same_rows_in_the_same_order"]
    assert len(found["methods"]) == 7
    for one in found["methods"]:
        share = 100 * one["trainable_parameters"] / one["all_parameters"]
        means = [one[key]["mean"] for key in ("loaded_gib", "peak_gib", "step_cpu_seconds")]
        cells = [
            one["title"],
            f"{one['trainable_parameters']:,} ({share:.4f}%)",
            *(f"{mean:.2f}" for mean in means),
            f"{one['learning_rate']:g}",
            f"{one['held_out_loss']['mean']:.3f}",
            size(one["bytes_on_disk"]),
        ]
        row = f"| {' | '.join(cells)} |"
        assert row in part, row


def curve_rows(one: dict[str, Any]) -> Iterator[str]:
    for name, title in CURVES.items():
        method = one["methods"][name]
        cells = []
        for key in ("loss_first_third", "loss_last_tenth", "held_out_loss"):
            values = method[key]
            cells.append(f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        yield f"| | {title} | {one['rates'][name]:g} | {' | '.join(cells)} |"


def test_loss_curves() -> None:
    found = result("loss_curves")
    assert found["status"] == "ok"
    for one in found["data"]:
        assert f"| {LANGUAGES[one['data']]} | the model alone | | | | {one['model_alone']:.3f} |" in TEXT
        for row in curve_rows(one):
            assert row in TEXT, row
