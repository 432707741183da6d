"""What a prompt folder says cannot speak to the terminal, crash its reader, or lead `ptune inspect` to other files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from commands import run

CLEAR = "\x1b[2J\x1b]0;owned\x07\u202e\x9b1A"


def _changed(prompt_dir: Path, folder: Path, config: dict[str, Any] | None = None, **values: Any) -> Path:
    copy = Path(shutil.copytree(prompt_dir, folder))
    details = json.loads((copy / "ptune.json").read_text(encoding="utf-8"))
    details |= values
    details["config"] |= config or {}
    (copy / "ptune.json").write_text(json.dumps(details), encoding="utf-8")
    return copy


def test_inspect_escapes_what_a_terminal_would_obey(prompt_dir: Path, tmp_path: Path):
    nasty = {"data": CLEAR, "metrics": {CLEAR: CLEAR, "sure": True, "[bold]": [CLEAR]}, "versions": {CLEAR: 1}}
    folder = _changed(prompt_dir, tmp_path / "p", {"base_model_name_or_path": CLEAR}, **nasty)
    ran = run("inspect", folder)
    assert ran.code == 0, ran.err
    assert all(line.isprintable() for line in ran.out.splitlines())
    assert "\\x1b[2J" in ran.out
    assert "[bold]" in ran.out
    assert "True" in ran.out


def test_inspect_cuts_long_values(prompt_dir: Path, tmp_path: Path):
    ran = run("inspect", _changed(prompt_dir, tmp_path / "p", data="x" * 10**6, metrics={"y" * 10**6: "z" * 10**6}))
    assert ran.code == 0, ran.err
    assert len(ran.out) < 20_000


def test_inspect_prints_json_that_any_terminal_and_pipe_takes(prompt_dir: Path, tmp_path: Path):
    folder = _changed(prompt_dir, tmp_path / "p", data=f"\ud800{CLEAR}")
    ran = run("inspect", folder, "--json", "--no-nearest")
    assert ran.out.isascii()
    assert json.loads(ran.out)["trained_on"] == f"\ud800{CLEAR}"


def test_a_metric_cannot_pass_for_a_fact(prompt_dir: Path, tmp_path: Path):
    false = {"base_model": "the/other", "written_by": "the devil", "vector_norms": 1, "train_loss": 0.5}
    facts = json.loads(run("inspect", _changed(prompt_dir, tmp_path / "p", metrics=false), "--json").out)
    assert facts["base_model"] != "the/other"
    assert facts["written_by"] == "ptune"
    assert isinstance(facts["vector_norms"], dict)
    assert facts["train_loss"] == 0.5


def test_inspect_does_not_follow_a_base_model_upwards(prompt_dir: Path, tmp_path: Path, tiny_model_dir: Path):
    shutil.copytree(tiny_model_dir, tmp_path / "secret-model")
    folder = _changed(prompt_dir, tmp_path / "p", {"base_model_name_or_path": f"{tmp_path}/p/../secret-model"})
    facts = json.loads(run("inspect", folder, "--json").out)
    assert facts["nearest"] is None
    assert "a path that is not followed" in facts["nearest_missing"]
    assert json.loads(run("inspect", folder, "--json", "--model", tmp_path / "secret-model").out)["nearest"]


def test_values_in_one_another_end_somewhere(prompt_dir: Path, tmp_path: Path):
    deep: Any = 1
    for _ in range(100):
        deep = {"a": deep}
    ran = run("inspect", _changed(prompt_dir, tmp_path / "p", metrics=deep))
    assert ran.code == 2
    assert "nested deeper than 32 levels" in ran.err
