"""Soft labels in batches: every token and probability stands where the label stands that it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from ptune.data.collate import PackingCollator, PaddingCollator, unpacked
from ptune.data.labels import IGNORE_INDEX
from ptune.data.soft_labels import TEACHER_IDS, TEACHER_LOG_PROBS, add_soft_labels, soft_labels_of
from ptune.errors import DataError
from ptune.training.micro_batches import in_parts, row_slice

KEPT = 3
LABELS = ([-100, -100, 7, 8], [-100, 9], [-100, 5, -100, -100, 6, 2])
"""Of three rows: supervised at the end, short, and with a gap."""


def teacher_of(row: int, place: int) -> tuple[list[int], list[float]]:
    """What the teacher says of a place: numbers that stand nowhere else."""
    first = 100 * row + 10 * place
    return [first + at for at in range(1, KEPT + 1)], [-(first + at) / 8 for at in range(1, KEPT + 1)]


def rows(nested: bool = False) -> list[dict[str, Any]]:
    made = []
    for number, labels in enumerate(LABELS):
        places = [at for at, label in enumerate(labels) if label != IGNORE_INDEX]
        ids, log_probs = zip(*(teacher_of(number, place) for place in places), strict=True)
        columns = {TEACHER_IDS: list(ids), TEACHER_LOG_PROBS: list(log_probs)}
        if not nested:
            columns = {name: [value for one in values for value in one] for name, values in columns.items()}
        made.append({"input_ids": [3] * len(labels), "labels": labels, **columns})
    return made


def check(batch: dict[str, Any], starts: Sequence[tuple[int, int]], numbers: Sequence[int] = (0, 1, 2)) -> None:
    """Every place of a batch, whose rows `numbers` begin at `starts` (row of the batch, column)."""
    ids, log_probs = batch[TEACHER_IDS].clone(), batch[TEACHER_LOG_PROBS].clone()
    assert (ids.dtype, log_probs.dtype) == (torch.int64, torch.float32)
    assert ids.shape == log_probs.shape == (*batch["labels"].shape, KEPT)
    for number, (line, column) in zip(numbers, starts, strict=True):
        for place, label in enumerate(LABELS[number]):
            if label != IGNORE_INDEX:
                wanted = teacher_of(number, place)
                assert ids[line, column + place].tolist() == wanted[0]
                assert log_probs[line, column + place].tolist() == wanted[1]
                ids[line, column + place], log_probs[line, column + place] = 0, 0
    assert not ids.any()
    assert not log_probs.any()


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "a list a position"])
def test_padded_and_packed(nested: bool):
    check(PaddingCollator(0)(rows(nested)), [(0, 0), (1, 0), (2, 0)])
    check(PaddingCollator(0, padding_side="left")(rows(nested)), [(0, 2), (1, 4), (2, 0)])
    check(PaddingCollator(0, pad_to_multiple_of=8)(rows(nested)), [(0, 0), (1, 0), (2, 0)])
    packed = PackingCollator()(rows(nested))
    check(packed, [(0, 0), (0, 4), (0, 6)])
    padded = PaddingCollator(0)(rows(nested))
    for name in (TEACHER_IDS, TEACHER_LOG_PROBS):
        assert torch.equal(unpacked(packed[name], packed["row_lengths"], 0), padded[name])


def test_those_of_the_supervised_positions_row_by_row():
    wanted = [teacher_of(row, at) for row, one in enumerate(LABELS) for at, label in enumerate(one) if label >= 0]
    for collate in (PaddingCollator(0), PaddingCollator(0, padding_side="left"), PackingCollator()):
        found = soft_labels_of(collate(rows()), torch.device("cpu"))
        assert found.ids.tolist() == [ids for ids, _ in wanted]
        assert found.log_probs.tolist() == [log_probs for _, log_probs in wanted]


@pytest.mark.parametrize("collate", [PaddingCollator(0), PackingCollator()], ids=["padded", "packed"])
def test_rows_without(collate: PaddingCollator | PackingCollator):
    bare = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows()]
    assert not {TEACHER_IDS, TEACHER_LOG_PROBS} & set(collate(bare))
    with pytest.raises(DataError, match="only 2 of the 3 rows of a batch have soft labels"):
        collate([*rows()[:2], bare[2]])


@pytest.mark.parametrize("collate", [PaddingCollator(0), PackingCollator()], ids=["padded", "packed"])
@pytest.mark.parametrize("name", [TEACHER_IDS, TEACHER_LOG_PROBS])
def test_wrong_counts(name: str, collate: PaddingCollator | PackingCollator):
    made = rows()
    made[1][name] = made[1][name][:-1]
    with pytest.raises(DataError, match=f"a batch has 6 supervised tokens and 17 values of {name}"):
        collate(made)


def test_nothing_supervised():
    row = {"input_ids": [3, 4], "labels": [-100, -100], TEACHER_IDS: [], TEACHER_LOG_PROBS: []}
    with pytest.raises(DataError, match="0 supervised tokens"):
        PaddingCollator(0)([row])
    with pytest.raises(DataError, match="0 supervised tokens and 3 values"):
        add_soft_labels({"labels": torch.tensor([[-100]])}, [{TEACHER_IDS: [1, 2, 3], TEACHER_LOG_PROBS: [0, 0, 0]}])


def test_rows_cut_out_of_a_batch_keep_theirs():
    for side, column in (("right", [0, 0]), ("left", [4, 0])):
        batch = PaddingCollator(0, padding_side=side)(rows())
        check(row_slice(batch, 1, 3), [(0, column[0]), (1, column[1])], (1, 2))
    packed = PackingCollator()(rows())
    check(row_slice(packed, 0, 1), [(0, 0)], (0,))
    check(row_slice(packed, 1, 3), [(0, 0), (0, 2)], (1, 2))
    check(row_slice(packed, 2, 3), [(0, 0)], (2,))
    for batch in (packed, PaddingCollator(0)(rows())):
        parts = [soft_labels_of(part, torch.device("cpu")) for part in in_parts(batch, 2)]
        whole = soft_labels_of(batch, torch.device("cpu"))
        assert len(parts) == 2
        assert torch.equal(torch.cat([one.ids for one in parts]), whole.ids)
        assert torch.equal(torch.cat([one.log_probs for one in parts]), whole.log_probs)
