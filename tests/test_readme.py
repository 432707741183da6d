"""The two READMEs stay level with each other, with the committed results and with the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ptune.cli.main import COMMANDS
from ptune.cli.train import build_parser

ROOT = Path(__file__).parent.parent
READMES = ["README.md", "README.zh.md"]


@pytest.mark.parametrize("name", READMES)
def test_quoted_demo_figures_are_the_committed_ones(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    result = json.loads((ROOT / "benchmarks/results/demo.json").read_text(encoding="utf-8"))["result"]
    minutes, seconds = divmod(round(result["seconds"]), 60)
    assert any(form in text for form in (f"{minutes}:{seconds:02d}", f"{minutes} 分 {seconds} 秒"))
    assert f"{result['exact_match_after']:.0%}" in text
    assert f"{result['valid_json_after']:.0%}" in text
    assert f"{result['answered_rows']}" in text


@pytest.mark.parametrize("name", READMES)
def test_commands_and_flags_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    commands = set(re.findall(r"^ptune (\w+)", text, flags=re.MULTILINE))
    assert commands
    assert commands <= set(COMMANDS)
    known = {*build_parser().flags(), "--learning-rate", "--num-train-epochs", "--compare"}
    assert set(re.findall(r"--[a-z][a-z-]+", text)) <= known


@pytest.mark.parametrize("name", READMES)
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    assert targets
    for target in targets:
        assert (ROOT / target).is_file(), target


def test_both_have_the_same_sections_and_code() -> None:
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in READMES)
    for pattern in (r"^#+ ", r"^```\w*", r"^\| "):
        counts = [len(re.findall(pattern, text, flags=re.MULTILINE)) for text in (english, chinese)]
        assert counts[0] == counts[1], pattern
