"""Answers from logits, beside a search that tries every span one by one."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from ptune.choices import QA
from ptune.data.tasks.encode import TokenizedTask, encode_task
from ptune.data.tasks.span_answers import best_spans
from ptune.data.tasks.task_example import TaskExample
from ptune.errors import ConfigError, DataError

WORDS = [
    *("the", "lamp", "is", "broken", "and", "nobody", "answers", "phone"),
    *("EU", "rejects", "German", "call", "boycott", "British", "lamb"),
]


def made_of(tokenizer: Any, count: int = 6) -> tuple[list[TaskExample], TokenizedTask]:
    rng = random.Random(3)
    rows = [
        TaskExample(
            question="where is it ?", context=" ".join(rng.choices(WORDS, k=rng.randint(4, 50))), impossible=True
        )
        for _ in range(count)
    ]
    return rows, encode_task(rows, tokenizer, QA, max_length=40, stride=8)


def logits_of(made: TokenizedTask, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(window.offsets) for window in made.windows) + 3
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, len(made.windows), width, generator=generator)
    for row, window in enumerate(made.windows):
        start[row, len(window.offsets) :] = 99  # padding, which no answer may come from
        end[row, len(window.offsets) :] = 99
    return start, end


def brute(
    rows: list[TaskExample], made: TokenizedTask, start: Any, end: Any, longest: int
) -> list[list[tuple[float, str, int]]]:
    """Every span of every window by two loops: score, text, first character."""
    found: list[dict[tuple[str, int], float]] = [{} for _ in rows]
    for row, window in enumerate(made.windows):
        offsets = window.offsets.tolist()
        for first in range(len(offsets)):
            for last in range(first, len(offsets)):
                if offsets[first][0] < 0 or offsets[last][0] < 0 or last - first + 1 > longest:
                    continue
                text = rows[window.example].context[offsets[first][0] : offsets[last][1]]
                span = (text.strip(), offsets[first][0] + len(text) - len(text.lstrip()))
                score = float(start[row][first].double() + end[row][last].double())
                if span[0]:
                    found[window.example][span] = max(score, found[window.example].get(span, -math.inf))
    return [sorted(((score, *span) for span, score in spans.items()), reverse=True) for spans in found]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("longest", [1, 3, 30])
def test_beside_every_span(tokenizer: Any, seed: int, longest: int):
    rows, made = made_of(tokenizer)
    start, end = logits_of(made, seed)
    answers = best_spans(start, end, made.windows, rows, n_best=7, longest_answer=longest)
    for answer, expected in zip(answers, brute(rows, made, start, end, longest), strict=True):
        assert answer.text == expected[0][1] == answer.candidates[0].text
        assert [(one.text, one.start) for one in answer.candidates] == [(text, at) for _, text, at in expected[:7]]
        np.testing.assert_allclose([one.score for one in answer.candidates], [score for score, _, _ in expected[:7]])
        assert sum(one.probability for one in answer.candidates) == pytest.approx(1)
        ratio = math.exp(expected[1][0] - expected[0][0])
        assert answer.candidates[1].probability / answer.candidates[0].probability == pytest.approx(ratio)


def test_no_answer_by_its_lowest_score(bert: Any):
    rows, made = made_of(bert)
    start, end = logits_of(made, 0)
    lowest = [
        min(float(start[at, 0].double() + end[at, 0].double()) for at in range(len(made.rows)) if made.rows[at] == one)
        for one in range(len(rows))
    ]
    best = [one[0][0] for one in brute(rows, made, start, end, 30)]
    for threshold in (-20.0, -4.0, -3.0, 0.0, 20.0):
        answers = best_spans(start, end, made.windows, rows, null_threshold=threshold)
        for answer, null, score in zip(answers, lowest, best, strict=True):
            assert answer.null_score == pytest.approx(null)
            assert answer.null_difference == pytest.approx(null - score)
            assert (answer.text == "") == (null - score > threshold)
            assert sum(one.text == "" and one.start == -1 for one in answer.candidates) == 1
            assert sorted(answer.candidates, key=lambda one: -one.score) == list(answer.candidates)
    assert all(answer.text for answer in best_spans(start, end, made.windows, rows))


def test_what_was_learned_comes_back(tokenizer: Any):
    """Logits that are one at the learned positions give the answers of the data."""
    rows = [
        TaskExample(question="where ?", context="the lamp is broken and nobody answers", answers=(("is broken", 9),)),
        TaskExample(
            question="where ?", context=" ".join(WORDS * 5), answers=(("phone EU", " ".join(WORDS).index("phone")),)
        ),
        TaskExample(question="where ?", context=" ".join(WORDS), impossible=True),
    ]
    made = encode_task(rows, tokenizer, QA, max_length=40, stride=8)
    start, end = torch.zeros(2, len(made.windows), 40).unbind()
    for at, row in enumerate(made.dataset.to_list()):
        # A window without the answer says so less surely, so that the other windows are heard.
        sure = 9.0 if row["start_positions"] != made.windows[at].null or rows[made.rows[at]].impossible else 1.0
        start[at, row["start_positions"]] = end[at, row["end_positions"]] = sure
    answers = best_spans(start, end, made.windows, rows, null_threshold=0.0)
    assert [answer.text for answer in answers] == ["is broken", "phone EU", ""]
    assert answers[0].candidates[0].start == 9


def test_padding_on_the_left_and_rows_of_their_own_length(bert: Any):
    rows, made = made_of(bert)
    start, end = logits_of(made, 1)
    expected = best_spans(start, end, made.windows, rows)
    lengths = [len(window.offsets) for window in made.windows]
    own = [[one[at, :length] for at, length in enumerate(lengths)] for one in (start, end)]
    assert best_spans(*own, made.windows, rows) == expected
    assert best_spans(*[[one.numpy() for one in side] for side in own], made.windows, rows) == expected
    left = [
        torch.stack([one[at].roll(one.shape[1] - length) for at, length in enumerate(lengths)]) for one in (start, end)
    ]
    assert best_spans(*left, made.windows, rows, padding_side="left") == expected


def test_a_score_within_a_window_alone(bert: Any):
    """A start of one window and an end of another are no span."""
    context = " ".join(WORDS * 4)
    rows = [TaskExample(question="where ?", context=context, impossible=True)]
    made = encode_task(rows, bert, QA, max_length=32, stride=0)
    start, end = torch.zeros(2, len(made.windows), 32).unbind()
    start[0, 15], end[1, 12] = 5.0, 5.0
    (answer,) = best_spans(start, end, made.windows, rows, longest_answer=1000)
    assert answer.candidates[0].score == pytest.approx(5.0)


def test_bad_logits(bert: Any):
    rows, made = made_of(bert, 2)
    start, end = logits_of(made, 0)
    with pytest.raises(DataError, match=r"logits of 1 starts and \d ends, and \d windows. Give a row"):
        best_spans(start[:1], end, made.windows, rows)
    with pytest.raises(DataError, match=r"window 0 has \d+ tokens, and logits of shape \(3,\)"):
        best_spans(start[:, :3], end, made.windows, rows)
    for name in ("n_best", "longest_answer"):
        with pytest.raises(ConfigError, match=f"{name} must be at least 1, not 0"):
            best_spans(start, end, made.windows, rows, **{name: 0})
    with pytest.raises(ConfigError, match=r"unknown padding_side 'lft'. Did you mean 'left'\?"):
        best_spans(start, end, made.windows, rows, padding_side="lft")
