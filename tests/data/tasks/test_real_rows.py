"""Real data sets, where they are at hand: nothing of them is in the repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ptune.choices import CLASSIFY, FILL
from ptune.data.tasks.encode import encode_task
from ptune.data.tasks.label_set import labels_of
from ptune.data.tasks.task_records import load_task_examples
from ptune.errors import DataError

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="shared/data is not here")


@pytest.mark.parametrize(
    ("name", "labels", "rows"),
    [
        ("BoolQ", ("false", "true"), 3270),
        ("CB", ("contradiction", "entailment", "neutral"), 56),
        ("RTE", ("entailment", "not_entailment"), 277),
        ("WiC", ("false", "true"), 638),
    ],
)
def test_few_shot_superglue(bert: Any, name: str, labels: tuple[str, ...], rows: int):
    path = DATA / "fewglue_32dev" / name / "val.jsonl"
    examples = load_task_examples(path, CLASSIFY, drop_duplicates=False)
    given = [json.loads(line) for line in path.read_text().splitlines()]
    assert labels_of(examples) == labels
    assert len(examples) == len(given) == rows
    assert all(one.second for one in examples)
    written = [row["label"] if isinstance(row["label"], str) else str(row["label"]).lower() for row in given]
    assert [one.label for one in examples] == written
    some = examples[:50]
    made = encode_task(some, bert, CLASSIFY, labels=labels, max_length=64)
    assert len(made.dataset) == len(some)
    words = dict(zip(labels, ("good", "bad", "great"), strict=False))
    made = encode_task(some, bert, FILL, labels=labels, max_length=64, verbalizer=words)
    assert len(made.dataset) == len(some)
    assert all(row.count(bert.mask_token_id) == 1 for row in made.dataset["input_ids"])


def test_multiple_choice_is_refused():
    with pytest.raises(DataError, match="multiple choice"):
        load_task_examples(DATA / "fewglue_32dev" / "COPA" / "val.jsonl", CLASSIFY)


@pytest.mark.parametrize(
    ("name", "labels", "rows"),
    [("sst2/stsa.binary.dev", ("0", "1"), 872), ("trec/TREC.test.all", ("0", "1", "2", "3", "4", "5"), 500)],
)
def test_sst2_and_trec(tmp_path: Path, name: str, labels: tuple[str, ...], rows: int):
    path = tmp_path / "rows.jsonl"
    lines = (DATA / name).read_bytes().decode("latin-1").split("\n")
    given = [(line[2:], line[0]) for line in lines if line]
    path.write_text("".join(json.dumps({"label": int(label), "sentence": text}) + "\n" for text, label in given))
    examples = load_task_examples(path, CLASSIFY, drop_duplicates=False)
    assert [(one.text, one.label) for one in examples] == given
    assert labels_of(examples) == labels
    assert len(examples) == rows
