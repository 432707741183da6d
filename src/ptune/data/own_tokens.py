"""Tokens that are typical of the training rows, for a prompt to start from.

Lester et al. 2021, section 3.2, start from sampled vocabulary or from the words of the classes. Here the rows
themselves say which: the tokens found in the most answers, in the order in which they come there, are the labels of a
classification, and the fixed parts of answers that share a shape (the keys of a JSON object, say). What is left of the
prompt begins at the most frequent other tokens of the rows. No token comes twice: virtual tokens that start alike learn
alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ptune.data.labels import IGNORE_INDEX

ROWS = 2000
"""Rows that are looked at, from the first."""


def answer_tokens(rows: Iterable[Mapping[str, Any]], count: int, leave_out: Sequence[int] = ()) -> list[int]:
    """At most `count` tokens that are in the most answers, ordered by where they stand in them on average.

    Args:
        rows: Tokenized rows with `input_ids` and `labels`.
        count: Tokens wanted.
        leave_out: Tokens that are not wanted: those that mark the end, say.
    """
    answers: Counter[int] = Counter()
    places: Counter[int] = Counter()
    for row in rows:
        learned = [label for label in row["labels"] if label != IGNORE_INDEX]
        for token in dict.fromkeys(learned):
            answers[token] += 1
            places[token] += learned.index(token)
    for token in leave_out:
        answers.pop(token, None)
    chosen = [token for token, _ in answers.most_common(count)]
    return sorted(chosen, key=lambda token: places[token] / answers[token])


def own_tokens(rows: Sequence[Mapping[str, Any]], count: int, leave_out: Sequence[int] = ()) -> list[int]:
    """`answer_tokens`, and behind them the most frequent others of the rows; fewer than `count` where there are fewer.

    Arguments as for `answer_tokens`.
    """
    answers = answer_tokens(rows, count, leave_out)
    return answers + frequent_tokens(rows, count - len(answers), [*leave_out, *answers])


def frequent_tokens(rows: Iterable[Mapping[str, Any]], count: int, leave_out: Sequence[int] = ()) -> list[int]:
    """The `count` most frequent tokens of the rows, questions and answers; fewer where there are fewer."""
    seen: Counter[int] = Counter()
    for row in rows:
        seen.update(token for token in row["input_ids"] if token >= 0)  # below: virtual tokens inside the text
    for token in leave_out:
        seen.pop(token, None)
    return [token for token, _ in seen.most_common(count)]
