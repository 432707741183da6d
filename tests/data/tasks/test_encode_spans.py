"""Windows of contexts, and where the answer stands in them, beside what the tokenizer itself says."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from ptune.choices import QA
from ptune.data.tasks.encode import encode_task
from ptune.data.tasks.task_example import TaskExample
from ptune.errors import ConfigError, ModelError

WORDS = [
    *("the", "lamp", "is", "broken", "and", "nobody", "answers", "phone"),
    *("EU", "rejects", "German", "call", "boycott", "British", "lamb"),
]


def questions(count: int = 12, length: int = 60) -> list[TaskExample]:
    rng = random.Random(1)
    rows = []
    for at in range(count):
        words = rng.choices(WORDS, k=rng.randint(3, length))
        first = rng.randrange(len(words))
        last = min(len(words), first + rng.randint(1, 3))
        text = " ".join(words[first:last])
        start = len(" ".join(words[:first])) + (first > 0)
        rows.append(
            TaskExample(question="where is it ?", context=" ".join(words), answers=((text, start),), source=f"f:{at}")
        )
    return rows


@pytest.mark.parametrize(("max_length", "stride"), [(32, 4), (40, None), (256, 0)])
def test_windows_as_the_tokenizer_makes_them(tokenizer: Any, max_length: int, stride: int | None):
    rows = questions()
    made = encode_task(rows, tokenizer, QA, max_length=max_length, stride=stride)
    between = "\n" if tokenizer.pad_token is None else ""  # of GPT-2, which puts nothing between two texts
    own_end = tokenizer.cls_token_id is None and tokenizer("a", "a")["input_ids"][-1] != tokenizer.eos_token_id
    at = 0
    for number, one in enumerate(rows):
        encoded = tokenizer(
            one.question + between,
            one.context,
            truncation="only_second",
            max_length=max_length - own_end,
            stride=max_length // 3 if stride is None else stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        seen: set[int] = set()
        for which, ids in enumerate(encoded["input_ids"]):
            row, window = made.dataset[at], made.windows[at]
            assert row["input_ids"] == ids + [tokenizer.eos_token_id] * own_end
            assert window.example == made.rows[at] == number
            for column, (sequence, span) in enumerate(
                zip(encoded.sequence_ids(which), encoded["offset_mapping"][which], strict=True)
            ):
                assert tuple(window.offsets[column]) == (span if sequence == 1 else (-1, -1))
                seen |= set(range(*span)) if sequence == 1 else set()
            assert len(window.offsets) == len(row["input_ids"]) == len(row["attention_mask"])
            at += 1
        assert {at for at, sign in enumerate(one.context) if sign != " "} <= seen  # nothing of a context is lost
    assert at == len(made.dataset) == len(made.windows) == made.report.rows
    assert made.report.rows_read == len(rows)
    assert made.report.longest <= max_length


def test_the_span_holds_the_answer(tokenizer: Any):
    rows = questions(40)
    made = encode_task(rows, tokenizer, QA, max_length=80)
    found: set[int] = set()
    for row, window in zip(made.dataset.to_list(), made.windows, strict=True):
        one = rows[window.example]
        ((text, start),) = one.answers
        first, last = row["start_positions"], row["end_positions"]
        context = window.offsets[window.offsets[:, 0] >= 0]
        whole = context[0, 0] <= start and context[-1, 1] >= start + len(text)
        if first == window.null:
            assert last == window.null
            assert not whole
            continue
        assert whole
        found.add(window.example)
        # Words of these texts are divided by blanks, so that tokens end where words do.
        assert one.context[window.offsets[first, 0] : window.offsets[last, 1]].strip() == text
    assert found == set(range(40))
    assert made.report.answers_in_no_window == 0


def test_the_null_token(bert: Any, roberta: Any, t5: Any, gpt2: Any):
    rows = [TaskExample(question="where ?", context="the lamp is broken", impossible=True)]
    for tokenizer, column in ((bert, 0), (roberta, 0), (t5, -1), (gpt2, -1)):
        made = encode_task(rows, tokenizer, QA)
        (row,) = made.dataset.to_list()
        null = column % len(row["input_ids"])
        assert (made.windows[0].null, row["start_positions"], row["end_positions"]) == (null, null, null)
        special = tokenizer.cls_token_id if column == 0 else tokenizer.eos_token_id
        assert row["input_ids"][null] == special
        assert tuple(made.windows[0].offsets[null]) == (-1, -1)


def test_token_types(bert: Any):
    (row,) = encode_task(questions(1, 3), bert, QA).dataset.to_list()
    ids = row["input_ids"]
    behind = ids.index(bert.sep_token_id) + 1
    assert row["token_type_ids"] == [0] * behind + [1] * (len(ids) - behind)


def test_an_answer_longer_than_a_window_is_counted(bert: Any):
    context = " ".join(WORDS * 6)
    rows = [TaskExample(question="where ?", context=context, answers=((context[4:-8], 4),))]
    made = encode_task(rows, bert, QA, max_length=32, stride=8)
    assert made.report.answers_in_no_window == 1
    assert set(made.dataset["start_positions"]) == {0}
    assert any("1 answers lie in no window as a whole" in line for line in made.report.lines())
    assert f"tokenized 1 rows in {len(made.dataset)} windows" in made.report.lines()[0]


def test_inside_a_word(bert: Any):
    rows = [TaskExample(question="where ?", context="the lamp rejects it", answers=(("ject", 11),))]
    made = encode_task(rows, bert, QA)
    (row,), (window,) = made.dataset.to_list(), made.windows
    first, last = window.offsets[row["start_positions"]], window.offsets[row["end_positions"]]
    assert first[0] <= 11 < first[1]
    assert last[0] < 15 <= last[1]


def test_long_questions_are_cut(tokenizer: Any):
    question = " ".join(WORDS * 5)
    rows = [TaskExample(question=f" {question}", context="the lamp is broken " * 9, answers=(("lamp", 4),))]
    made = encode_task(rows, tokenizer, QA, max_length=64, stride=10)
    assert made.report.questions_cut == 1
    for row, window in zip(made.dataset.to_list(), made.windows, strict=True):
        assert len(row["input_ids"]) <= 64
        assert np.count_nonzero(window.offsets[:, 0] >= 0) > 10 or window is made.windows[-1]
    assert len(made.windows) < 40
    text = tokenizer.decode(made.dataset[0]["input_ids"], skip_special_tokens=True).replace(" ", "")
    assert text.lower().startswith("thelampisbroken")


def test_without_answers(bert: Any):
    made = encode_task([TaskExample(question="where ?", context="here")], bert, QA)
    assert "start_positions" not in made.dataset.column_names
    assert made.report.answers_in_no_window == 0


def test_bad_arguments(bert: Any):
    rows = questions(1)
    with pytest.raises(ConfigError, match=r"stride 60 leaves no room .* max_length 64. Raise .* at most 35"):
        encode_task(rows, bert, QA, max_length=64, stride=60)
    encode_task(rows, bert, QA, max_length=64, stride=35)
    with pytest.raises(ConfigError, match="stride must be at least 0, not -1"):
        encode_task(rows, bert, QA, stride=-1)
    from transformers import ByT5Tokenizer

    with pytest.raises(ModelError, match="ByT5Tokenizer cannot say which characters"):
        encode_task(rows, ByT5Tokenizer(), QA)
