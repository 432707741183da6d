"""The figures of docs/compress.md are those of the result file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "compress.md").read_text(encoding="utf-8")
RESULT = json.loads((ROOT / "benchmarks" / "results" / "compress.json").read_text(encoding="utf-8"))
NOTHING, TEXT, COMPRESSED = "nothing in front", "the whole text", "the compressed prompt"
LINES: dict[str, Callable[[dict[str, Any]], str]] = {
    "tokens of prompt": lambda one: f"{one['tokens']:,}",
    "keys and values, MiB": lambda one: f"{one['bytes'] / 2**20:.1f}",
    "divergence from the text, nats a token": lambda one: f"{one['divergence']:.3f}",
    "the same likeliest token": lambda one: f"{one['token_agreement']:.1%}",
    "the same answer": lambda one: f"{one['answer_agreement']:.0%}",
    "exact match": lambda one: f"{one['scores']['exact_match']:.0%}",
    "token F1": lambda one: f"{one['scores']['f1']:.1%}",
    "loss of the right answer, nats a token": lambda one: f"{one['loss']:.2f}",
    "first token, prompt computed, ms": lambda one: f"{1000 * one['timing']['first_token_cold']:,.0f}",
    "first token, prompt kept, ms": lambda one: f"{1000 * one['timing']['first_token']:.0f}",
    "tokens a second": lambda one: f"{one['timing']['tokens_per_second']:.1f}",
}


def table(which: str) -> list[str]:
    """The rows of a text's table."""
    runs = [run for run in RESULT["runs"] if run["name"].startswith(which)]
    first = runs[0]["columns"]
    columns = [first[NOTHING], first[TEXT], *(run["columns"][COMPRESSED] for run in runs)]
    return [f"| {name} | {' | '.join(map(shown, columns))} |" for name, shown in LINES.items()]


@pytest.mark.parametrize("which", ["job", "manual"])
def test_the_page_quotes_the_result(which: str) -> None:
    for line in table(which):
        assert line in PAGE


def test_the_targets_of_the_job() -> None:
    """What was asked of this compression: at the better length nine of ten tokens as with the whole text in front."""
    runs = [run["columns"] for run in RESULT["runs"] if run["name"].startswith("job-prefix")]
    assert max(run[COMPRESSED]["token_agreement"] for run in runs) >= 0.9
    for run in runs:
        assert run[TEXT]["token_agreement"] == 1
        assert run[COMPRESSED]["divergence"] < run[NOTHING]["divergence"] / 2


def test_what_the_manual_keeps() -> None:
    """Of what the whole text is worth to the loss of right answers."""
    for run in RESULT["runs"]:
        if run["name"].startswith("manual"):
            alone, whole, own = (run["columns"][name]["loss"] for name in (NOTHING, TEXT, COMPRESSED))
            length = run["settings"]["num_virtual_tokens"]
            assert (
                f"{length:,} {'virtual tokens ' if length == 64 else ''}keep {(alone - own) / (alone - whole):.0%}"
                in PAGE
            )
