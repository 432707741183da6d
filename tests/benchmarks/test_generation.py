"""The generation benchmark: both libraries give the same answer, and the result has what the docs read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import generation_speed
from harness import Benchmark

SMALL = {"rows": 40, "batch": 2, "text_tokens": 20, "new_tokens": 4, "repeats": 2}


def test_both_libraries_answer_alike_and_the_bare_model_does_not(settings: dict[str, Any]):
    answers = {name: generation_speed.answer(name, {**settings, **SMALL}) for name in generation_speed.CONTENDERS}
    assert answers["ptune"]["first_tokens"] == answers["peft"]["first_tokens"] != answers["base"]["first_tokens"]
    for one in answers.values():
        assert len(one["first_tokens"]) == 2
        assert all(one[metric] > 0 for metric in generation_speed.BENCHMARK.metrics)
        assert one["decode_tokens_per_second"] == pytest.approx(8 / one["decode_wall_seconds"])
    json.dumps(answers)


def test_the_script_writes_a_result(
    words: list[str],
    tmp_path: Path,
    in_this_process: Callable[[Benchmark], None],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(generation_speed, "LENGTHS", {"text_tokens": 20, "new_tokens": 3, "repeats": 1, "batch": 2})
    in_this_process(generation_speed.BENCHMARK)
    generation_speed.run([*words, "--rows=40"])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "ok"
    assert [case["label"] for case in result["cases"]] == ["mlp n=10", "mlp n=50", "mlp n=100"]
    for case in result["cases"]:
        assert list(case["contenders"]) == ["base", "peft", "ptune"]
        ours, theirs = case["contenders"]["ptune"], case["contenders"]["base"]
        by_hand = theirs["rounds"][0]["decode_cpu_seconds"] / ours["rounds"][0]["decode_cpu_seconds"]
        assert ours["ratios"]["base"]["decode_cpu_seconds"]["median"] == pytest.approx(by_hand)
