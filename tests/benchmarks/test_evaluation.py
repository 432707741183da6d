"""The evaluation benchmark: both libraries measure the same loss, and the result has what the docs read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evaluation_speed
from harness import Benchmark

SMALL = {"answer_batch": 4, "new_tokens": 3}


def test_all_measure_the_same_loss(settings: dict[str, Any]):
    small = {**settings, **SMALL, "answered_rows": 6}
    answers = {name: evaluation_speed.evaluate(name, small) for name in evaluation_speed.CONTENDERS}
    for one in answers.values():
        assert one["loss"] == pytest.approx(answers["peft"]["loss"], rel=1e-5)
        assert one["answer_tokens"] == answers["peft"]["answer_tokens"]
        assert one["answers"] == 18
        assert all(one[metric] > 0 for metric in evaluation_speed.BENCHMARK.metrics)
    json.dumps(answers)


def test_the_script_writes_a_result(
    words: list[str],
    tmp_path: Path,
    in_this_process: Callable[[Benchmark], None],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(evaluation_speed, "ANSWERS", SMALL)
    in_this_process(evaluation_speed.BENCHMARK)
    evaluation_speed.run([*words, "--rows=8", "--answered-rows=6"])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "ok"
    (case,) = result["cases"]
    assert [case["settings"][name] for name in ("rows", "answered_rows")] == [8, 6]
    assert list(case["contenders"]) == ["peft", "peft-sorted", "ptune"]
    assert case["contenders"]["ptune"]["ratios"]["peft"]["loss_cpu_seconds"]["median"] > 0
