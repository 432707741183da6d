"""`docs/bad-input.md` tells of every case there is, as it came back when the table was last made."""

from __future__ import annotations

import json

import bad_inputs
from robustness.cases import CASES

WAY = "run benchmarks/bad_inputs.py"


def test_the_table_tells_of_every_case():
    rows = json.loads(bad_inputs.RESULT.read_text(encoding="utf-8"))["cases"]
    assert [(row["group"], row["input"]) for row in rows] == [(case.group, case.name) for case in CASES], WAY
    assert bad_inputs.DOCS.read_text(encoding="utf-8") == bad_inputs.table(rows), WAY
    for row, case in zip(rows, CASES, strict=True):
        assert row["exit_code"] == case.code, row
        assert row["changed"] == []
        for part in case.says:
            assert part in row["line"], row
