"""What docs/gateway.md says was measured is what the result file holds."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_quoted_figures_are_the_measured_ones():
    result = json.loads((ROOT / "benchmarks/results/gateway.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs/gateway.md").read_text(encoding="utf-8")
    for way, name in (
        ("tokens", "two vLLM servers, prompts as tokens"),
        ("killed", "the same, one server killed with SIGKILL when a quarter was answered"),
        ("embeddings", "one vLLM server, prompts as embeddings"),
    ):
        found = [result[way][task] for task in ("tickets", "questions", "alone")]
        assert f"| {name} | " + " | ".join(f"{one['equal']} of {one['asked']}" for one in found) + " |" in text
    assert f"{result['killed']['asked_again']} were asked again" in text
    assert f"{result['gateway']['resident_mib']:.0f} MiB" in text
    assert f"{result['embeddings']['gateway_resident_mib']:.0f} MiB" in text
