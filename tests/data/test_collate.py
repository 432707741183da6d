"""Padding, on either side, told by length and never by token id."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from ptune.data.collate import PaddingCollator
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


def test_bad_input():
    with pytest.raises(ConfigError, match=r"'rigth'.*Did you mean 'right'"):
        PaddingCollator(0, padding_side="rigth")
    with pytest.raises(ConfigError, match="pad_token_id must be a token id, not None"):
        PaddingCollator(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="pad_to_multiple_of"):
        PaddingCollator(0, pad_to_multiple_of=0)
    with pytest.raises(DataError, match="at least one row"):
        PaddingCollator(0)([])
    with pytest.raises(DataError, match="only 1 of the 2 rows"):
        PaddingCollator(0)([ROWS[0], {"input_ids": [1]}])
    with pytest.raises(DataError, match="row 0 of a batch has 1 input_ids, but 2 labels"):
        PaddingCollator(0)([{"input_ids": [1], "labels": [1, 2]}])
