"""`docs/architectures.md` tells of every model type there is, as the sweep found it when the table was last made."""

from __future__ import annotations

import json
import os
from collections import Counter

import pytest
import transformers

import architecture_sweep
from decoders.small import IMPOSSIBLE, MODEL_TYPES

WAY = "run benchmarks/architecture_sweep.py"


@pytest.mark.skipif(
    bool(os.environ.get("PTUNE_OTHER_VERSIONS")), reason="the table is of the versions in constraints.txt"
)
def test_the_table_tells_of_every_type_of_the_installed_transformers() -> None:
    result = json.loads(architecture_sweep.RESULT.read_text(encoding="utf-8"))
    assert result["versions"]["transformers"] == transformers.__version__, WAY
    assert {row["type"] for row in result["models"]} | set(result["impossible"]) == set(MODEL_TYPES), WAY
    assert result["impossible"] == IMPOSSIBLE, WAY
    assert architecture_sweep.DOCS.read_text(encoding="utf-8") == architecture_sweep.document(result), WAY


def test_nothing_is_wrong_and_nothing_ends_in_a_traceback() -> None:
    rows = json.loads(architecture_sweep.RESULT.read_text(encoding="utf-8"))["models"]
    outcomes = Counter(row["outcome"] for row in rows)
    assert set(outcomes) == {"right", "refused"}
    for row in rows:
        assert row["outcome"] == architecture_sweep.outcome_of(row["checks"])
