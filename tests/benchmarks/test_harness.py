"""The harness: processes in turn, medians and ratios of rounds, failures told, one file and one table."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import harness
from harness import Benchmark, Case

SCRIPT = """
import json, os, sys, time
from pathlib import Path

name = sys.argv[sys.argv.index("--contender") + 1]
settings = json.loads(sys.argv[sys.argv.index("--settings") + 1])
with Path(settings["log"]).open("a") as log:
    log.write(name + "\\n")
if name == "slow":
    time.sleep(30)
if name == "broken":
    raise ValueError("no such thing in " + __file__)
if name == "killed":
    os.kill(os.getpid(), 9)
print("noise of a library")
print(json.dumps({"cpu_seconds": settings[name], "threads": os.environ["OMP_NUM_THREADS"], "process": os.getpid()}))
"""


@pytest.fixture
def benchmark(tmp_path: Path) -> Benchmark:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    return Benchmark(
        name="trial",
        what="Which one?",
        script=script,
        work=lambda contender, settings: {"cpu_seconds": settings[contender]},
        metrics=("cpu_seconds",),
        references=("old",),
    )


def case(tmp_path: Path, *contenders: str, **more: Any) -> Case:
    settings = {"log": str(tmp_path / "log"), "old": 6.0, "new": 2.0, "threads": 3}
    return Case(label="a case", settings=settings, contenders=contenders, **more)


def answers(**values: list[float | None]) -> dict[str, list[dict[str, Any]]]:
    """Rounds of contenders; None is a round that failed."""
    return {
        name: [{"status": "ok", "cpu_seconds": one} if one is not None else {"status": "killed"} for one in given]
        for name, given in values.items()
    }


def silent() -> Console:
    return Console(file=io.StringIO(), width=300)


def test_contenders_run_in_turn_in_processes_of_their_own(tmp_path: Path, benchmark: Benchmark):
    say = silent()
    given = harness.run_contenders(benchmark, case(tmp_path, "old", "new"), 2, say)
    assert (tmp_path / "log").read_text().split() == ["old", "new", "old", "new"]
    assert len({one["process"] for rounds in given.values() for one in rounds}) == 4
    assert {one["threads"] for rounds in given.values() for one in rounds} == {"3"}
    assert say.file.getvalue().splitlines()[-1] == "round 2/2 new a case: 2 s CPU"


def test_a_case_may_want_fewer_rounds(tmp_path: Path, benchmark: Benchmark):
    harness.run_contenders(benchmark, case(tmp_path, "old", rounds=1), 5, silent())
    assert (tmp_path / "log").read_text().split() == ["old"]


def test_a_failure_is_told_and_not_repeated(tmp_path: Path, benchmark: Benchmark):
    given = harness.run_contenders(benchmark, case(tmp_path, "broken", "killed", "old"), 2, silent())
    assert [one["status"] for one in given["broken"]] == [f"ValueError: no such thing in {benchmark.script}"]
    assert [one["status"] for one in given["killed"]] == ["killed by signal 9"]
    assert [one["status"] for one in given["old"]] == ["ok", "ok"]


def test_a_process_is_stopped_when_its_time_is_over(tmp_path: Path, benchmark: Benchmark):
    given = harness.run_contenders(benchmark, case(tmp_path, "slow"), 1, silent(), timeout=0.5)
    assert given["slow"] == [{"status": "stopped after 0 s"}]


def test_ratios_are_made_inside_rounds():
    given = answers(old=[10.0, 100.0, 12.0], new=[5.0, 10.0, 4.0])
    summary = harness.summarize(given, ("cpu_seconds",), ("old",))
    assert summary["new"]["cpu_seconds"] == {"median": 5.0, "min": 4.0, "max": 10.0}
    # 2, 10 and 3; the medians alone would give 12 / 5.
    assert summary["new"]["ratios"]["old"]["cpu_seconds"] == {"median": 3.0, "min": 2.0, "max": 10.0}
    assert summary["old"]["ratios"] == {}
    assert summary["new"]["rounds"] == given["new"]


def test_a_round_that_failed_is_in_no_ratio():
    summary = harness.summarize(answers(old=[10.0, 8.0], new=[5.0, None]), ("cpu_seconds",), ("old",))
    assert summary["new"]["status"] == "killed"
    assert summary["new"]["ratios"]["old"]["cpu_seconds"] == {"median": 2.0, "min": 2.0, "max": 2.0}
    nothing = harness.summarize(answers(old=[None], new=[5.0]), ("cpu_seconds",), ("old",))
    assert nothing["new"]["ratios"] == {"old": {}}
    assert "cpu_seconds" not in nothing["old"]


def run_main(benchmark: Benchmark, tmp_path: Path, *contenders: str, words: tuple[str, ...] = ()) -> dict[str, Any]:
    argv = ["--rounds", "2", "--output", str(tmp_path / "out" / "trial.json"), *words]
    parser = harness.command_line(benchmark, rounds=5)
    result = harness.main(benchmark, parser, lambda _: [case(tmp_path, *contenders)], argv)
    assert result is not None
    return result


def test_the_result_file_says_what_was_measured_on_what(
    tmp_path: Path, benchmark: Benchmark, capsys: pytest.CaptureFixture[str]
):
    result = run_main(benchmark, tmp_path, "old", "new")
    assert json.loads((tmp_path / "out" / "trial.json").read_text()) == result
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "trial.json"]
    assert result["status"] == "ok"
    assert result["command"].startswith("python benchmarks/script.py --rounds 2")
    assert result["machine"]["cores"] >= 1
    assert result["machine"]["memory_gib"] > 0
    assert {"ptune", "torch", "transformers", "peft"} <= set(result["versions"])
    only = result["cases"][0]
    assert only["settings"]["old"] == 6.0
    assert only["contenders"]["new"]["ratios"]["old"]["cpu_seconds"]["median"] == pytest.approx(3.0)
    printed = capsys.readouterr()
    assert "round 1/2 old a case: 6 s CPU" in printed.err
    row = next(line for line in printed.out.splitlines() if " new " in line)
    assert "2 s CPU (2 to 2)" in row
    assert "3.00" in row
    assert "\x1b" not in printed.out


def test_the_status_names_who_failed(tmp_path: Path, benchmark: Benchmark, capsys: pytest.CaptureFixture[str]):
    result = run_main(benchmark, tmp_path, "old", "broken")
    assert result["status"].startswith("broken a case: ValueError: no such thing")
    assert "ValueError" in capsys.readouterr().out


def test_json_instead_of_a_table(tmp_path: Path, benchmark: Benchmark, capsys: pytest.CaptureFixture[str]):
    result = run_main(benchmark, tmp_path, "old", words=("--json",))
    assert json.loads(capsys.readouterr().out) == result


def test_a_contenders_process_prints_its_answer(benchmark: Benchmark, capsys: pytest.CaptureFixture[str]):
    argv = ["--contender", "new", "--settings", '{"new": 2.5}']
    assert harness.main(benchmark, harness.command_line(benchmark, rounds=1), lambda _: [], argv) is None
    assert json.loads(capsys.readouterr().out) == {"cpu_seconds": 2.5}


def test_no_rounds_are_refused(benchmark: Benchmark, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        harness.main(benchmark, harness.command_line(benchmark, rounds=1), lambda _: [], ["--rounds", "0"])
    assert "--rounds must be at least 1, not 0" in capsys.readouterr().err


def test_measuring_tells_work_from_waiting_and_sees_memory_that_was_given_back():
    with harness.measuring() as waited:
        time.sleep(0.2)
    with harness.measuring() as worked:
        block = torch.ones(64 * 2**20)
        del block
    assert waited["wall_seconds"] >= 0.2 > waited["cpu_seconds"]
    assert waited["peak_gib"] < 0.1
    assert 0.24 <= worked["peak_gib"] < 0.4
    with harness.measuring(loaded_gib=harness.held_gib() + 0.125) as above:
        torch.ones(64 * 2**20)
    assert 0.115 <= above["peak_gib"] < 0.275


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("cpu_seconds", 3.14159, "3.14 s CPU"),
        ("wall_seconds", 250.4, "250 s"),
        ("peak_gib", 0.5, "0.5 GiB"),
        ("tokens", 7, "7"),
    ],
)
def test_values_are_shown_with_their_unit(metric: str, value: float, text: str):
    assert harness.shown(metric, value) == text
