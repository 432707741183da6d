"""`docs/scripts.md`: its blocks run, one after the other, and leave what they say."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from ptune import PTunedModel

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "scripts.md").read_text(encoding="utf-8")
MODEL = "Qwen/Qwen2.5-0.5B"
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def test_the_page_runs_from_top_to_bottom(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trl", minversion="1.10")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert MODEL in BLOCKS[0]
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block.replace(MODEL, str(tiny_model_dir)), "docs/scripts.md", "exec"), names)
    assert str(tiny_model_dir) in capsys.readouterr().out
    folders = ("my-prompt", "final", "sft-prompt", "pirate", "lawyer")
    vectors = [PTunedModel.from_pretrained(folder).encode() for folder in folders]
    assert not any(torch.equal(one, other) for one, other in pairwise(vectors))
    assert names["answers"].shape[0] == 3


def test_every_name_in_its_table_is_there() -> None:
    rows = re.findall(r"^\| (`.*?) \|", TEXT, flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)(?:\(\)|=\[…\])?`", row)}
    assert len(named) > 12
    assert all(hasattr(PTunedModel, name) for name in named - {"adapter_names"})
