"""Batches of every task, padded on either side."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ptune.choices import CLASSIFY, FILL, QA, SEQ2SEQ, TAG
from ptune.data.tasks.encode import encode_task
from ptune.data.tasks.task_collate import TaskCollator
from ptune.data.tasks.task_example import TaskExample
from ptune.errors import ConfigError, DataError

ROWS: list[dict[str, Any]] = [
    {"input_ids": [5, 2], "attention_mask": [1, 1], "token_type_ids": [0, 1], "example": 3},
    {"input_ids": [6, 7, 0, 2], "attention_mask": [1, 1, 0, 1], "token_type_ids": [0, 0, 1, 1], "example": 4},
]


def rows(**columns: list[Any]) -> list[dict[str, Any]]:
    return [{**row, **{name: values[at] for name, values in columns.items()}} for at, row in enumerate(ROWS)]


@pytest.mark.parametrize("task", [CLASSIFY, TAG, QA, SEQ2SEQ, FILL])
@pytest.mark.parametrize("side", ["right", "left"])
def test_inputs(task: str, side: str):
    batch = TaskCollator(9, task, side)(ROWS)
    assert list(batch) == ["input_ids", "attention_mask", "token_type_ids"]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    expected = {"input_ids": [5, 2, 9, 9], "attention_mask": [1, 1, 0, 0], "token_type_ids": [0, 1, 0, 0]}
    for name, row in expected.items():
        assert batch[name].tolist() == [row if side == "right" else row[2:] + row[:2], ROWS[1][name]]


def test_classes():
    for labels in ([3, 0], torch.tensor([3, 0]), torch.tensor([[3], [0]])):
        batch = TaskCollator(9, CLASSIFY)(rows(labels=list(labels)))
        assert batch["labels"].tolist() == [3, 0]
        assert batch["labels"].dtype == torch.int64


@pytest.mark.parametrize("task", [TAG, FILL])
def test_a_label_a_token(task: str):
    data = rows(labels=[[-100, 4], [-100, 0, -100, 1]])
    assert TaskCollator(9, task)(data)["labels"].tolist() == [[-100, 4, -100, -100], [-100, 0, -100, 1]]
    assert TaskCollator(9, task, "left")(data)["labels"].tolist() == [[-100, -100, -100, 4], [-100, 0, -100, 1]]


def test_texts_to_write_are_padded_on_the_right():
    data = rows(labels=[[8, 7, 6, 5, 1], [8, 1]])
    for side in ("left", "right"):
        batch = TaskCollator(9, SEQ2SEQ, side, pad_to_multiple_of=8)(data)
        assert batch["labels"].tolist() == [[8, 7, 6, 5, 1], [8, 1, -100, -100, -100]]
        assert batch["input_ids"].shape == (2, 8)


def test_positions_go_with_their_tokens():
    data = rows(start_positions=[0, 1], end_positions=[1, 3])
    right = TaskCollator(9, QA)(data)
    assert (right["start_positions"].tolist(), right["end_positions"].tolist()) == ([0, 1], [1, 3])
    left = TaskCollator(9, QA, "left", pad_to_multiple_of=5)(data)
    assert (left["start_positions"].tolist(), left["end_positions"].tolist()) == ([3, 2], [4, 4])
    for batch in (right, left):
        for at, row in enumerate(data):
            for name in ("start_positions", "end_positions"):
                assert batch["input_ids"][at, batch[name][at]] == row["input_ids"][row[name]]


@pytest.mark.parametrize(
    ("task", "data", "complaint"),
    [
        (CLASSIFY, [], "a batch needs at least one row"),
        (CLASSIFY, [{**ROWS[0], "labels": 1}, ROWS[1]], "only 1 of the 2 rows of a batch have labels"),
        (QA, [{**ROWS[0], "start_positions": 1}, ROWS[1]], "only 1 of the 2 rows of a batch have start_positions"),
        (TAG, [{**ROWS[0], "labels": [1, 2]}, ROWS[1]], "only 1 of the 2 rows of a batch have labels"),
        (TAG, rows(labels=[[1], [1, 2, 3, 4]]), "row 0 of a batch has 2 input_ids, but 1 labels"),
        (CLASSIFY, [ROWS[0], {"input_ids": [1]}], "only 1 of the 2 rows of a batch have token_type_ids"),
        (CLASSIFY, rows(labels=[1, [1, 2]]), r"row 1 of a batch has labels of shape \(2,\) .* needs one whole number"),
        (CLASSIFY, rows(labels=[1.5, 1]), r"row 0 of a batch has labels of shape \(\) \(torch.float"),
        (
            QA,
            rows(start_positions=[0, 4], end_positions=[0, 0]),
            "row 1 of a batch has 4 tokens, but start_positions 4",
        ),
    ],
)
def test_bad_rows(task: str, data: list[dict[str, Any]], complaint: str):
    with pytest.raises(DataError, match=complaint):
        TaskCollator(9, task)(data)


def test_bad_arguments():
    with pytest.raises(ConfigError, match=r"unknown task 'tags'. Did you mean 'tag'\?"):
        TaskCollator(9, "tags")
    with pytest.raises(ConfigError, match="unknown padding_side 'lft'"):
        TaskCollator(9, TAG, "lft")
    with pytest.raises(ConfigError, match="pad_token_id must be a token id, not None"):
        TaskCollator(None, TAG)  # type: ignore[arg-type]


def test_encoded_rows_of_every_task(bert: Any, t5: Any):
    made = {
        CLASSIFY: [TaskExample(text="it was", label="b"), TaskExample(text="the lamp is broken", label="a")],
        FILL: [TaskExample(text="it was", label="great"), TaskExample(text="the lamp is", label="terrible")],
        TAG: [TaskExample(words=("it",), tags=("a",)), TaskExample(words=("the", "lamp"), tags=("b", "a"))],
        QA: [
            TaskExample(question="it ?", context="it", impossible=True),
            TaskExample(question="a ?", context="the lamp", answers=(("lamp", 4),)),
        ],
        SEQ2SEQ: [TaskExample(text="it", target="the lamp"), TaskExample(text="it was", target="a")],
    }
    for task, examples in made.items():
        labels = ("great", "terrible") if task == FILL else ("a", "b") if task in (CLASSIFY, TAG) else ()
        data = encode_task(examples, t5 if task == SEQ2SEQ else bert, task, labels=labels).dataset
        batch = TaskCollator(0, task)(data.to_list())
        for at, length in enumerate(len(row) for row in data["input_ids"]):
            assert batch["input_ids"][at, :length].tolist() == data[at]["input_ids"]
            assert batch["attention_mask"][at].sum() == length
        assert set(batch) == set(data.column_names)
