"""Padding, on either side, told by length and never by token id; packing without any."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from ptune.data.collate import PackingCollator, PaddingCollator, unpacked
from ptune.errors import ConfigError, DataError

ROWS = [
    {"input_ids": [5, 2], "attention_mask": [1, 1], "labels": [-100, 2]},
    {"input_ids": [6, 7, 8, 2], "attention_mask": [1, 1, 0, 1], "labels": [-100, 7, 8, 2]},
]


def test_right_and_left():
    batch = PaddingCollator(2)(ROWS)
    assert list(batch) == ["input_ids", "attention_mask", "labels"]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert batch["input_ids"].tolist() == [[5, 2, 2, 2], [6, 7, 8, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 0, 1]]
    assert batch["labels"].tolist() == [
        [-100, 2, -100, -100],
        [-100, 7, 8, 2],
    ]  # the end token, though it is the padding
    left = PaddingCollator(2, padding_side="left")(ROWS)
    assert left["input_ids"].tolist() == [[2, 2, 5, 2], [6, 7, 8, 2]]
    assert left["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 0, 1]]
    assert left["labels"].tolist() == [[-100, -100, -100, 2], [-100, 7, 8, 2]]


def test_multiple_of():
    for multiple, width in ((1, 4), (4, 4), (8, 8), (3, 6)):
        assert PaddingCollator(0, pad_to_multiple_of=multiple)(ROWS)["labels"].shape == (2, width)


def test_rows_without_mask_or_labels():
    batch = PaddingCollator(0)([{"input_ids": [1]}, {"input_ids": torch.tensor([1, 2])}])
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert "labels" not in batch


def test_tensors_of_a_dataset():
    data = Dataset.from_list(ROWS)
    plain = PaddingCollator(0)(data.to_list())
    tensors = PaddingCollator(0)([data.with_format("torch")[index] for index in range(2)])
    assert all(torch.equal(plain[name], tensors[name]) for name in plain)


def test_packed():
    rows = [ROWS[0], {"input_ids": [6, 7, 8], "labels": [-100, 7, 8]}]
    batch = PackingCollator()(rows)
    assert list(batch) == ["input_ids", "labels", "row_lengths"]
    assert batch["input_ids"].tolist() == [[5, 2, 6, 7, 8]]
    assert batch["labels"].tolist() == [[-100, 2, -100, 7, 8]]
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert batch["row_lengths"] == [2, 3]
    assert all(type(length) is int for length in batch["row_lengths"])


def test_packed_rows_lose_what_their_mask_leaves_out():
    batch = PackingCollator()([ROWS[1], {**ROWS[0], "attention_mask": [0, 1]}])
    assert batch["input_ids"].tolist() == [[6, 7, 2, 2]]
    assert batch["labels"].tolist() == [[-100, 7, 2, 2]]
    assert batch["row_lengths"] == [3, 1]


def test_packed_rows_of_a_dataset_and_without_labels():
    data = Dataset.from_list(ROWS)
    plain, tensors = (
        PackingCollator()([one[index] for index in range(2)]) for one in (data, data.with_format("torch"))
    )
    assert plain["row_lengths"] == tensors["row_lengths"] == [2, 3]
    assert all(torch.equal(plain[name], tensors[name]) for name in ("input_ids", "labels"))
    assert list(PackingCollator()([{"input_ids": [1]}])) == ["input_ids", "row_lengths"]


def test_unpacked_is_what_padding_gives():
    rows = [{"input_ids": [5, 6]}, {"input_ids": [7]}, {"input_ids": [8, 9, 10]}]
    packed = PackingCollator()(rows)
    assert torch.equal(unpacked(packed["input_ids"], packed["row_lengths"], 0), PaddingCollator(0)(rows)["input_ids"])
    wide = torch.arange(12.0).view(1, 6, 2)
    assert unpacked(wide, [4, 2], -1).tolist() == [
        wide[0, :4].tolist(),
        [*wide[0, 4:].tolist(), [-1, -1], [-1, -1]],
    ]


@pytest.mark.parametrize("collate", [PaddingCollator(0), PackingCollator()])
def test_rows_that_cannot_be_a_batch(collate: PaddingCollator | PackingCollator):
    with pytest.raises(DataError, match="at least one row"):
        collate([])
    with pytest.raises(DataError, match="only 1 of the 2 rows"):
        collate([ROWS[0], {"input_ids": [1]}])
    with pytest.raises(DataError, match="row 1 of a batch has 1 input_ids, but 2 labels"):
        collate([ROWS[0], {"input_ids": [1], "labels": [1, 2]}])


@pytest.mark.parametrize("row", [{"input_ids": []}, {"input_ids": [4, 5], "attention_mask": [0, 0]}])
def test_packed_row_without_tokens(row: dict[str, list[int]]):
    with pytest.raises(DataError, match="row 1 of a batch has no tokens"):
        PackingCollator()([{"input_ids": [1]}, row])


def test_bad_input():
    with pytest.raises(ConfigError, match=r"'rigth'.*Did you mean 'right'"):
        PaddingCollator(0, padding_side="rigth")
    with pytest.raises(ConfigError, match="pad_token_id must be a token id, not None"):
        PaddingCollator(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="pad_to_multiple_of"):
        PaddingCollator(0, pad_to_multiple_of=0)
