"""The sweeps over prompt and batch, and their picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import harness
import plots
import scaling
from harness import Benchmark, command_line
from workload import add_flags


@pytest.mark.slow
def test_both_sweeps_are_measured_and_drawn(
    words: list[str], tmp_path: Path, in_this_process: Callable[[Benchmark], None]
):
    in_this_process(scaling.BENCHMARK)
    picture = tmp_path / "cost.png"
    scaling.run(
        [*words, "--rows=4", f"--plot={picture}", "--virtual-tokens", "1", "20", "--batch-tokens", "100", "300"]
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "ok"
    assert [case["label"] for case in result["cases"]] == ["n=1", "n=20", "100 tokens", "300 tokens"]
    steps = [entry["rounds"][0]["steps"] for case in result["cases"] for entry in case["contenders"].values()]
    assert steps == [1] * 8
    texts = [case["contenders"]["ptune-packed"]["rounds"][0]["tokens"] for case in result["cases"]]
    assert texts[0] == texts[1]
    assert texts[2] <= 100 < texts[3] <= 300
    assert picture.read_bytes().startswith(b"\x89PNG")
    points = plots._points(result, "tokens", "peak_gib", "peft")
    assert [size for size, _ in points] == texts[2:]
    assert [size for size, _ in plots._points(result, "n", "cpu_seconds", "ptune-packed")] == [1, 20]


def test_peft_is_spared_the_largest_batches():
    parser = command_line(scaling.BENCHMARK, rounds=1)
    add_flags(parser)
    parser.set_defaults(virtual_tokens=[400], batch_tokens=[4096, 16384])
    cases = {case.label: case.contenders for case in scaling.scaling_cases(parser.parse_args([]))}
    assert cases == {
        "n=400": ("peft", "ptune-packed"),
        "4096 tokens": ("peft", "ptune-packed"),
        "16384 tokens": ("ptune-packed",),
    }


@pytest.mark.slow
def test_a_script_starts_itself_for_each_contender(words: list[str], tmp_path: Path):
    command = [sys.executable, str(harness.ROOT / "benchmarks/scaling.py"), *words, "--virtual-tokens", "2"]
    command += ["--batch-tokens", "--rows", "4", "--plot", str(tmp_path / "cost.png")]
    environment = {**os.environ, "PYTHONPATH": str(harness.ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "round 1/1 peft n=2" in done.stderr
    assert "ptune-packed" in done.stdout
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "ok"
