"""Answers stand in their context where the data say, or are put right where there is one place for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ptune.choices import QA
from ptune.data.tasks.task_example import TaskExamples
from ptune.data.tasks.task_records import load_task_examples
from ptune.errors import DataError

CONTEXT = "The cat sat on the mat. The dog did not."


def load(folder: Path, *rows: dict[str, Any], **options: Any) -> TaskExamples:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": "Who?", "context": CONTEXT, **row}) + "\n" for row in rows))
    return load_task_examples(path, QA, **options)


@pytest.mark.parametrize(
    "columns",
    [
        {"answers": {"text": ["cat"], "answer_start": [4]}},
        {"answers": [{"text": "cat", "answer_start": 4}]},
        {"answers": ["cat"], "answer_start": [4]},
        {"answer": "cat", "answer_start": 4},
        {"answer_text": "cat", "start": "4"},
    ],
)
def test_layouts(tmp_path: Path, columns: dict[str, Any]):
    examples = load(tmp_path, {"id": "x1", **columns})
    (one,) = examples
    assert (one.answers, one.impossible, one.key) == ((("cat", 4),), False, "x1")
    assert CONTEXT[4:7] == "cat"
    assert examples.report.moved_answers == 0


def test_the_nested_file(tmp_path: Path):
    path = tmp_path / "squad.json"
    questions = [
        {"id": "a", "question": "Who sat?", "answers": [{"text": "cat", "answer_start": 4}] * 3},
        {"id": "b", "question": "Who flew?", "answers": [], "is_impossible": True, "plausible_answers": [{}]},
    ]
    path.write_text(
        json.dumps({"version": "v2", "data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": questions}]}]})
    )
    examples = load_task_examples(path, QA)
    assert [(one.key, one.question, one.answers, one.impossible) for one in examples] == [
        ("a", "Who sat?", (("cat", 4),), False),
        ("b", "Who flew?", (), True),
    ]
    assert "question 2" in examples[1].source
    assert examples.report.further_answers == 0


def test_unanswerable_and_unlabelled(tmp_path: Path):
    rows: list[dict[str, Any]] = [
        {"answers": {"text": [], "answer_start": []}},
        {"answers": None, "question": "Whom?"},
        {"answers": {"text": ["cat", "The cat"], "answer_start": [4, 0]}},
        {"answers": {"text": ["x"], "answer_start": [0]}, "context": " "},
    ]
    examples = load(tmp_path, *rows)
    assert [(one.answers, one.impossible) for one in examples] == [((), True), ((("cat", 4), ("The cat", 0)), False)]
    report = examples.report
    assert (report.unlabelled, report.empty_texts, report.further_answers) == (1, 1, 1)
    free = load(tmp_path, *rows[:2], require_labels=False)
    assert [one.labelled(QA) for one in free] == [True, False]


def test_moved_answers_are_put_right_and_counted(tmp_path: Path):
    examples = load(
        tmp_path,
        {"answers": {"text": ["dog"], "answer_start": [20]}},
        {"answers": {"text": ["cat"]}, "question": "What?"},
        {"answers": {"text": ["mat"], "answer_start": [-7]}, "question": "Where?"},
    )
    assert [one.answers for one in examples] == [(("dog", 28),), (("cat", 4),), (("mat", 19),)]
    assert all(CONTEXT[start : start + len(text)] == text for one in examples for text, start in one.answers)
    assert examples.report.moved_answers == 3
    assert any(line.startswith("3 answers do not stand") for line in examples.report.lines())


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (
            {"answers": {"text": ["The"], "answer_start": [5]}},
            r"rows.jsonl:1: the answer 'The' does not stand at answer_start 5 \('at ' does\), and it stands at several",
        ),
        (
            {"answers": {"text": ["bird"], "answer_start": [5]}},
            "the context has it nowhere. Give the character at which it begins",
        ),
        ({"answers": {"text": ["The"]}}, "the answer 'The' has no answer_start"),
        ({"answers": {"text": ["cat"], "answer_start": ["four"]}}, r"answer_start is text \('four'\)"),
        ({"answers": {"text": ["cat"], "answer_start": [4.5]}}, r"answer_start is a number \(4.5\)"),
        ({"answers": {"text": ["cat", "dog"], "answer_start": [4]}}, "2 answers and 1 starts"),
        ({"answers": 7}, r"'answers' is a number \(7\). Write it as SQuAD does"),
        ({"answers": {"text": [7], "answer_start": [1]}}, r"an answer is a number \(7\), not text"),
        ({"answers": [" "]}, r"an answer is text \(' '\), not text"),
        (
            {"answers": {"text": ["cat"], "answer_start": [4]}, "is_impossible": True},
            r"'is_impossible' \(impossible\) is true, and there is an answer \('cat'\)",
        ),
    ],
)
def test_answers_that_cannot_be_used(tmp_path: Path, row: dict[str, Any], complaint: str):
    with pytest.raises(DataError, match=complaint):
        load(tmp_path, row)
