"""The documentation builds strictly, and every Python block of it is code."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "README.zh.md"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="the extra docs is not installed")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.stem for path in (tmp_path / "site").glob("*.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= pages
    text = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    assert all(name in text for name in ("Answerer", "get_peft_model", "PTuneTrainer", "load_examples"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_python_blocks_are_python_and_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        ast.parse(block)
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        file = page if not target else (page.parent / target).resolve()
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            heads = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}
            assert anchor in slugs, f"{page.name}: {target}#{anchor}"


def test_the_versions_page_tells_what_is_declared() -> None:
    """The exact versions, the least ones, and that `pyproject.toml` asks for no less than what was tried."""
    text = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    exact, least = (_pins(f"constraints{name}.txt") for name in ("", "-oldest"))
    rows = re.findall(r"^\| (\w+)(?: \([^|]*)? \| ([\d.]+) \| ([\d.]+) \|$", text, flags=re.MULTILINE)
    assert len(rows) == 15
    for name, now, oldest in rows:
        assert (exact[name.lower()], least[name.lower()]) == (now, oldest), name
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    for requirement in declared:
        found = re.fullmatch(r"([\w-]+)>=([\d.]+)(,<\d+)?", requirement)
        assert found is not None, requirement
        name, floor, cap = found.groups()
        assert least[name.lower().replace("-", "_")].startswith(floor), requirement
        assert (cap is not None) is (name in ("torch", "transformers")), requirement


def _pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pins = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.lower().replace("-", "_"): version for name, version in pins}
