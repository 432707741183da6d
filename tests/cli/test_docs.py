"""`docs/cli.md` is what the commands say of themselves, and no help names what users do not know."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "make_cli.py"


def written_anew() -> tuple[str, str]:
    """The page as the help is now, and as it was written."""
    spec = importlib.util.spec_from_file_location("make_cli", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.page(), module.PAGE.read_text(encoding="utf-8")


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse writes help a little differently in each Python")
@pytest.mark.skipif(
    bool(os.environ.get("PTUNE_OTHER_VERSIONS")),
    reason="TrainingArguments' flags are of the versions in constraints.txt",
)
def test_the_page_is_up_to_date() -> None:
    now, written = written_anew()
    assert now == written, "run .venv/bin/python docs/make_cli.py"


def test_every_default_is_told_once_and_no_class_is_named() -> None:
    now, _ = written_anew()
    flat = re.sub(r"\s+", " ", now)
    for entry in re.split(r" (?=--[a-z])", flat):
        assert entry.count("(default:") <= 1, entry
    assert not re.findall(r"\w+Error\b|TrainingArguments|TrainRecipe\(|\(default: \(", flat.split("```", 1)[1])
