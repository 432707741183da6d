"""Which tokens of the rows a prompt starts from."""

from __future__ import annotations

from ptune.data.own_tokens import answer_tokens, frequent_tokens, own_tokens

END = 0
LABELLED = [
    {"input_ids": [7, 8, 9, 5, END], "labels": [-100, -100, -100, 5, END]},
    {"input_ids": [7, 8, 6, END], "labels": [-100, -100, 6, END]},
    {"input_ids": [7, 9, 5, END], "labels": [-100, -100, 5, END]},
]
SHAPED = [
    {"input_ids": [9, 30, 11, 40, 12, END], "labels": [-100, 30, 11, 40, 12, END]},
    {"input_ids": [9, 31, 11, 41, 12, END], "labels": [-100, 31, 11, 41, 12, END]},
    {"input_ids": [9, 12, 11, 42, 12, END], "labels": [-100, 12, 11, 42, 12, END]},
]


def test_labels_are_what_answers_are_made_of() -> None:
    assert set(answer_tokens(LABELLED, 10, leave_out=[END])) == {5, 6}
    assert answer_tokens(LABELLED, 1, leave_out=[END]) == [5]


def test_the_fixed_parts_of_answers_in_their_order() -> None:
    assert answer_tokens(SHAPED, 2, leave_out=[END]) == [11, 12]
    assert answer_tokens(SHAPED, 3)[-1] == END


def test_the_answers_tokens_and_then_the_most_frequent_others() -> None:
    assert own_tokens(LABELLED, 4, leave_out=[END]) == [5, 6, 7, 8]
    assert own_tokens(LABELLED, 9, leave_out=[END]) == [5, 6, 7, 8, 9]
    assert own_tokens(SHAPED, 2, leave_out=[END]) == answer_tokens(SHAPED, 2, leave_out=[END])


def test_the_most_frequent_of_all() -> None:
    assert frequent_tokens(LABELLED, 1, leave_out=[END]) == [7]
    assert frequent_tokens(LABELLED, 99, leave_out=[END])[:3] == [7, 8, 9]
