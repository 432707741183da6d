"""`docs/tune.md` tells what the committed result holds, and the defaults there are."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

from ptune import TuneSettings

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "tune.md").read_text(encoding="utf-8")


def test_the_table_is_the_committed_result() -> None:
    found = json.loads((ROOT / "benchmarks/results/tune_sst2.json").read_text(encoding="utf-8"))
    rows = [line for line in TEXT.splitlines() if re.match(r"\| \d", line)]
    assert len(rows) == len(found["trials"])
    for one in found["trials"]:
        row = (
            f"| {one['trial']} | {one['encoder']} | {one['num_virtual_tokens']} | {one['init']} | "
            f"{one['learning_rate']:g} | {one['held_out_loss']:.4f} | {one['steps']} | {one['state']} |"
        )
        assert row in rows
    assert rows[0].startswith(f"| {found['best']['trial']} |")
    assert f"The frozen model alone: {found['frozen_loss']:.4f}." in TEXT


def test_the_page_names_the_settings_and_their_defaults() -> None:
    for item in fields(TuneSettings):
        assert f"--{item.name.replace('_', '-')}" in TEXT, item.name
    settings = TuneSettings()
    assert f"| {', '.join(map(str, settings.num_virtual_tokens))} |" in TEXT
    assert f"`--trials {settings.trials}`" in TEXT
    assert f"`--pruner {settings.pruner}`" in TEXT
