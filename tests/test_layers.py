"""The layers of the package, as pyproject.toml draws them, hold; and a breach would be noticed."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
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


needs_linter = pytest.mark.skipif(
    not Path(sys.executable).with_name("lint-imports").exists(), reason="import-linter is not installed"
)


@needs_linter
def test_layers_hold():
    result = lint_imports(ROOT / "src")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 kept, 0 broken" in result.stdout


@needs_linter
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


def test_the_contributing_guide_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.(?:py|md))?)`", text))
    assert len(named) > 40
    places = (ROOT / "src" / "ptune", ROOT / "src", ROOT)
    assert not [name for name in named if not any((place / name).exists() for place in places)]
    rooms = {
        path.name for path in (ROOT / "src" / "ptune").iterdir() if path.is_dir() and (path / "__init__.py").exists()
    }
    picture = next(part for part in text.split("```") if "PTunedModel: prompts" in part)
    assert rooms <= set(re.findall(r"(?<![a-z])[a-z]+(?![a-z])", picture))


def test_no_two_files_have_one_name():
    """But those of `cli`, which are called after the commands."""
    names = Counter(
        path.name for path in (ROOT / "src").rglob("*.py") if path.name != "__init__.py" and path.parent.name != "cli"
    )
    assert not [name for name, count in names.items() if count > 1]


def test_no_file_and_no_function_is_long():
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                said = node.body[0] if ast.get_docstring(node) else None
                documentation = 0 if said is None else (said.end_lineno or 0) - said.lineno + 1
                length = (node.end_lineno or 0) - node.lineno + 1 - documentation
                assert length <= 60, f"{path}:{node.lineno} {node.name} has {length} lines"
