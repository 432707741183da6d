"""`docs/data.md`: its examples are read, its layouts are the ones there are, its flags exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ptune.cli import train
from ptune.data.conversations import ROLES
from ptune.data.layouts import LAYOUTS
from ptune.data.opened import COMPRESSIONS, MOST_TIMES, MOST_UNPACKED
from ptune.data.records import load_examples
from ptune.data.sources import READERS

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
FILES = dict(
    re.findall(r"^`(\w+\.\w+)`[^\n]*\n(?:[^\n`]*\n)?\n?```\w*\n(.*?)```", TEXT, flags=re.MULTILINE | re.DOTALL)
)
ANSWERS = {
    "alpaca.json": ["Hello!", "le chat"],
    "adverts.jsonl": ["Wide trousers that sit well all day."],
    "reviews.csv": ["bad", "good"],
    "splits.json": ["6"],
    "squad.json": ["by day"],
    "talk.jsonl": ["5", "Red."],
    "marked.jsonl": ["Lisbon"],
    "report.jsonl": ["6", "red"],
    "notes.jsonl": ["The pump runs for ten minutes.\n\nThen it rests for an hour.", "Clean the filter once a month."],
}


def test_every_example_is_looked_at():
    assert FILES.keys() == ANSWERS.keys()


@pytest.mark.parametrize("name", ANSWERS)
def test_the_examples_are_read(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8")
    assert [one.output for one in load_examples(path)] == ANSWERS[name]


def test_the_report_is_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("report.jsonl").write_text(FILES["report.jsonl"], encoding="utf-8")
    (said,) = re.findall(r"^```\n(read .*?)\n```", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert load_examples("report.jsonl").report.lines() == said.splitlines()


def test_every_layout_kind_and_role_is_named():
    for layout in LAYOUTS:
        assert re.search(rf"^\| ([\w/, ]*, )?{re.escape(layout.name)}(,[^|]*)? \|", TEXT, flags=re.MULTILINE), (
            layout.name
        )
        assert all(f"`{field}`" in TEXT for field in layout.fields), layout.name
    for name in (*READERS, *COMPRESSIONS, *ROLES):
        assert f"`{name}`" in TEXT, name
    assert f"more than {MOST_UNPACKED // 2**20} MiB and more than {MOST_TIMES} times" in TEXT


def test_the_flags_exist():
    known = {*train.build_parser().flags(), "--seed"}
    assert set(re.findall(r"--[a-z][a-z-]+", TEXT)) <= known
