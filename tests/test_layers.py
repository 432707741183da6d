"""The layers of the package, as pyproject.toml draws them, hold; and a breach would be noticed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def lint_imports(sources: Path) -> subprocess.CompletedProcess[str]:
    """Check the `ptune` package inside `sources` against the contracts in pyproject.toml."""
    command = [
        Path(sys.executable).with_name("lint-imports"),
        "--config",
        ROOT / "pyproject.toml",
        "--no-cache",
        "--no-logo",
    ]
    environment = {**os.environ, "PYTHONPATH": str(sources)}
    return subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True, check=False)


def test_layers_hold():
    result = lint_imports(ROOT / "src")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 kept, 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("file", "statement", "complaint"),
    [
        ("encoders/breach.py", "import ptune.model", "ptune.encoders.breach -> ptune.model"),
        ("encoders/breach.py", "def late():\n    import ptune.model", "ptune.encoders.breach -> ptune.model"),
        ("data/breach.py", "import ptune.encoders", "ptune.data.breach -> ptune.encoders"),
        ("errors.py", "import torch", "ptune.errors -> torch"),
        ("model/breach.py", "import peft", "ptune.model.breach -> peft"),
        ("breach/__init__.py", "", "- ptune.breach"),
    ],
    ids=["upward", "upward-when-called", "sideways", "library-in-foundations", "peft", "folder-without-layer"],
)
def test_breach_is_noticed(tmp_path: Path, file: str, statement: str, complaint: str):
    shutil.copytree(ROOT / "src" / "ptune", tmp_path / "ptune", ignore=shutil.ignore_patterns("__pycache__"))
    breach = tmp_path / "ptune" / file
    breach.parent.mkdir(exist_ok=True)
    with breach.open("a", encoding="utf-8") as stream:
        stream.write(f"\n{statement}\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert complaint in result.stdout
