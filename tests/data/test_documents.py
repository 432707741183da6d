"""Whole texts: every token is learned once, long ones are cut into rows, and no template is applied."""

from __future__ import annotations

from typing import Any

import pytest

from ptune.data.example import Example
from ptune.data.template import get_template
from ptune.data.tokenize import encode_rows, tokenize_examples
from ptune.errors import DataError

TEXTS = ["the quick brown fox " * 30, "给出三个保持健康的秘诀。", "short"]
DOCUMENTS = [
    Example(instruction="", output=text, document=True, source=f"f:{line}") for line, text in enumerate(TEXTS, 1)
]


@pytest.mark.parametrize("name", ["tutorial", "chat", "{instruction}|{output}"])
@pytest.mark.parametrize("max_length", [2, 7, 64, 10_000])
@pytest.mark.parametrize("which", ["tokenizer", "bos_eos_tokenizer"])
def test_no_token_is_lost_and_every_one_is_learned(
    request: pytest.FixtureRequest, which: str, name: str, max_length: int
):
    tokenizer: Any = request.getfixturevalue(which)
    leading = [tokenizer.bos_token_id] if which == "bos_eos_tokenizer" else []
    result = tokenize_examples(DOCUMENTS, get_template(name, tokenizer), tokenizer, max_length=max_length)
    rows = result.dataset.to_list()
    assert all(len(row["input_ids"]) <= max_length for row in rows)
    assert all(row["input_ids"][: len(leading)] == leading for row in rows), "each row begins as a text does"
    learned = [token for row in rows for token in row["labels"] if token != -100]
    assert learned == [token for row in rows for token in row["input_ids"][len(leading) :]]
    ids = tokenizer([f"{text}</s>" for text in TEXTS], add_special_tokens=False)["input_ids"]
    assert learned == [token for one in ids for token in one]
    report = result.report
    assert (report.rows_read, report.documents, report.kept, report.truncated) == (3, 3, len(rows), 0)
    assert report.supervised_tokens == len(learned)
    assert report.tokens == len(learned) + len(rows) * len(leading)
    one_by_one = [
        row for text in DOCUMENTS for row in encode_rows(text, get_template(name, tokenizer), tokenizer, max_length)
    ]
    assert [row.input_ids for row in one_by_one] == [row["input_ids"] for row in rows]


def test_the_report_says_so(tokenizer: Any):
    lines = tokenize_examples(DOCUMENTS, get_template("tutorial", tokenizer), tokenizer, max_length=64).report.lines()
    assert lines[1] == (
        "3 texts without a question: every token is learned, no template is applied, "
        "long ones are cut into rows of 64 tokens"
    )
    assert " of them learned, " in lines[0]


def test_texts_and_answers_in_one_run(tokenizer: Any):
    rows = [*DOCUMENTS, Example(instruction="q", output="a")]
    report = tokenize_examples(rows, get_template("tutorial", tokenizer), tokenizer, max_length=10_000).report
    assert (report.documents, report.answers, report.kept) == (3, 1, 4)


def test_no_room_behind_the_leading_tokens(bos_eos_tokenizer: Any):
    template = get_template("tutorial", bos_eos_tokenizer)
    assert encode_rows(DOCUMENTS[2], template, bos_eos_tokenizer, 1) == []


def test_an_empty_table_of_texts(tokenizer: Any):
    with pytest.raises(DataError, match="no examples"):
        tokenize_examples([], get_template("tutorial", tokenizer), tokenizer, max_length=9)
