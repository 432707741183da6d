"""Where prompts and rows of a packed batch stand, and what a span may see."""

from __future__ import annotations

import torch

from ptune.packed.layout import PackedRows, Run, Span, span_bias

CPU = torch.device("cpu")


def test_prompts_stand_before_the_rows_and_each_row_behind_its_own() -> None:
    rows = PackedRows.of([4, 1, 3], [2, 3], [1, None, 1], inside=True)
    assert rows.spans == (Span(0, 2), Span(2, 3), Span(5, 4, 2, 3), Span(9, 1), Span(10, 3, 2, 3))
    assert rows.rows == rows.spans[2:]
    assert rows.length == 13
    assert rows.reach == 7
    assert rows.position_ids(CPU).tolist() == [[0, 1, 0, 1, 2, 3, 4, 5, 6, 0, 3, 4, 5]]
    assert rows.runs == (Run(5, 9, 2, 3), Run(10, 13, 2, 3)), "a row without a prompt parts its neighbours"
    assert rows.own_keys(rows.spans[2]) == slice(5, 9)


def test_prompts_that_are_there_already_take_keys_but_no_positions() -> None:
    rows = PackedRows.of([4, 2], [3], [0, 0], inside=False)
    assert rows.spans == (Span(0, 4, 0, 3), Span(4, 2, 0, 3))
    assert rows.position_ids(CPU).tolist() == [[3, 4, 5, 6, 3, 4]]
    assert rows.own_keys(rows.spans[1]) == slice(7, 9)
    assert rows.runs == (Run(0, 6, 0, 3),)


def test_bias_of_a_span() -> None:
    span = Span(0, 2, 0, 3)
    inf = float("-inf")
    plain = span_bias(span, None, None, device=CPU, dtype=torch.float32)
    assert plain.tolist() == [[[0, 0, 0, 0, inf], [0, 0, 0, 0, 0]]]
    window = span_bias(span, 2, None, device=CPU, dtype=torch.float32)
    assert window.tolist() == [[[inf, inf, 0, 0, inf], [inf, inf, inf, 0, 0]]]
    alibi = span_bias(span, None, torch.tensor([0.5, 2.0]), device=CPU, dtype=torch.float32)
    assert alibi.tolist() == [[[0, 0.5, 1, 1.5, inf], [0, 0.5, 1, 1.5, 2]], [[0, 2, 4, 6, inf], [0, 2, 4, 6, 8]]]
