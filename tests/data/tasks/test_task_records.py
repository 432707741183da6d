"""Rows of tasks by the columns of their files, with labels as the data name them, and what is dropped counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from ptune.choices import CLASSIFY, FILL, QA, SEQ2SEQ, TAG
from ptune.data.opened import ReadOptions
from ptune.data.tables import dataset_rows
from ptune.data.tasks.label_set import labels_of
from ptune.data.tasks.task_example import TaskExample, TaskExamples
from ptune.data.tasks.task_kinds import DATA_TASKS
from ptune.data.tasks.task_layouts import PAIRS
from ptune.data.tasks.task_records import load_task_examples
from ptune.errors import ConfigError, DataError


def load(folder: Path, task: str, *rows: dict[str, Any], **options: Any) -> TaskExamples:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_task_examples(path, task, **options)


@pytest.mark.parametrize("task", [CLASSIFY, FILL])
@pytest.mark.parametrize("text", ["text", "sentence", "content", "review", "query", "question", " Sentence "])
@pytest.mark.parametrize("label", ["label", "category", "class", "intent", "sentiment", "output", "answer", "Labels"])
def test_a_text_and_its_label(tmp_path: Path, task: str, text: str, label: str):
    (one,) = load(tmp_path, task, {"id": 7, text: "so good", label: "pos"})
    assert (one.text, one.second, one.label) == ("so good", None, "pos")
    assert one.source == f"{tmp_path / 'rows.jsonl'}:1"


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_pairs(tmp_path: Path, first: str, second: str):
    (one,) = load(tmp_path, CLASSIFY, {second: "B", "label": 1, first: "A", "idx": 0})
    assert (one.text, one.second, one.label) == ("A", "B", "1")


def test_boolq_and_multiple_choice(tmp_path: Path):
    examples = load(
        tmp_path,
        CLASSIFY,
        {"question": "is it", "passage": "It is.", "label": True},
        {"question": "is it", "passage": "It is not.", "answer": False},
    )
    assert [(one.text, one.second, one.label) for one in examples] == [
        ("It is.", "is it", "true"),
        ("It is not.", "is it", "false"),
    ]
    copa = {"premise": "It fell.", "choice1": "A", "choice2": "B", "question": "cause", "label": 0}
    with pytest.raises(
        DataError, match=r"rows.jsonl: the columns choice1, choice2 .*multiple choice.* a row for every"
    ):
        load(tmp_path, CLASSIFY, copa)
    (one,) = load(tmp_path, CLASSIFY, copa, columns={"text": "premise", "second": "choice1"})
    assert (one.text, one.second) == ("It fell.", "A")


def test_mapped_columns(tmp_path: Path):
    row = {"sentence1": "A", "sentence2": "B", "Stars": 4, "label": "x"}
    (one,) = load(tmp_path, CLASSIFY, row, columns={"text": "sentence2", "label": "stars"})
    assert (one.text, one.second, one.label) == ("B", None, "4")
    (one,) = load(tmp_path, CLASSIFY, row, columns={"text": "sentence1"})
    assert (one.text, one.second, one.label) == ("A", None, "x")
    (one,) = load(tmp_path, CLASSIFY, row, columns={"label": "Stars"})
    assert (one.text, one.second, one.label) == ("A", "B", "4")
    (one,) = load(tmp_path, CLASSIFY, {"text": "A", "more": "B", "label": "x"}, columns={"second": "more"})
    assert (one.text, one.second, one.label) == ("A", "B", "x")
    with pytest.raises(DataError, match=r"no column 'star' \(asked for as label\). Did you mean 'Stars'\?"):
        load(tmp_path, CLASSIFY, row, columns={"label": "star"})
    with pytest.raises(ConfigError, match=r"field in columns \(task classify\) 'lable'. Did you mean 'label'\?"):
        load(tmp_path, CLASSIFY, row, columns={"lable": "Stars"})
    with pytest.raises(ConfigError, match="label must name a column, not 3"):
        load(tmp_path, CLASSIFY, row, columns={"label": 3})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="unknown field in columns 'words'"):
        load(tmp_path, SEQ2SEQ, row, columns={"words": "Stars"})


def test_labels_of_every_kind(tmp_path: Path):
    values = ["pos", " neg ", 3, 3.0, True, False, "4", "-0", "None", "v3.5", "1.0"]
    texts = [{"text": str(number), "label": value} for number, value in enumerate(values)]
    examples = load(tmp_path, CLASSIFY, *texts)
    expected = ["pos", "neg", "3", "3", "true", "false", "4", "-0", "None", "v3.5", "1.0"]
    assert [one.label for one in examples] == expected
    assert not examples.report.converted


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (3.5, r"rows.jsonl:2: 'label' is 3.5, a number with a fraction.*regression.* Give classes"),
        ("2.75", "'label' is '2.75', a number with a fraction"),
        (float("inf"), "'label' is inf, a number with a fraction"),
        ([0, 2], r"'label' is a list \(\[0, 2\]\): several labels.* Give every row one label"),
        ({"a": 1}, r"'label' is an object \({'a': 1}\), not a label. Write it as"),
    ],
)
def test_values_that_are_no_class(tmp_path: Path, value: object, complaint: str):
    with pytest.raises(DataError, match=complaint):
        load(tmp_path, CLASSIFY, {"text": "a", "label": 1}, {"text": "b", "label": value})


def test_what_is_dropped_is_counted(tmp_path: Path):
    rows: list[dict[str, Any]] = [
        {"text": "a", "label": 1},
        {"text": "a", "label": 1},
        {"text": "a", "label": 0},
        {"text": "b", "label": -1},
        {"text": "c", "label": None},
        {"text": "d", "label": " "},
        {"text": "e", "label": float("nan")},
        {"text": " ", "label": 1},
        {"text": None, "label": 1},
    ]
    examples = load(tmp_path, CLASSIFY, *rows)
    report = examples.report
    assert [(one.text, one.label) for one in examples] == [("a", "1"), ("a", "0")]
    assert (report.rows_read, report.kept, report.duplicates) == (9, 2, 1)
    assert (report.hidden_labels, report.unlabelled, report.empty_texts) == (1, 3, 2)
    dropped = [line for line in report.lines() if line.startswith("dropped")]
    assert len(dropped) == 4
    assert any("label -1" in line for line in dropped)
    assert report.kept + sum(int(line.split()[1]) for line in dropped) == report.rows_read
    assert len(load(tmp_path, CLASSIFY, *rows, drop_duplicates=False)) == 3
    free = load(tmp_path, CLASSIFY, *rows, require_labels=False)
    assert [one.label for one in free] == ["1", "0", None, None, None, None]
    assert json.loads(json.dumps(report.to_dict()))["hidden_labels"] == 1


def test_nothing_left_and_no_layout(tmp_path: Path):
    with pytest.raises(DataError, match=r"none of the 2 rows .* 2 have the label -1.* Fill the column of labels"):
        load(tmp_path, CLASSIFY, {"text": "a", "label": -1}, {"text": "b", "label": -1})
    with pytest.raises(
        DataError, match=r"fit no layout of the task classify: a \(text\), b \(a number\).*text=<column>"
    ):
        load(tmp_path, CLASSIFY, {"a": "x", "b": 1})
    with pytest.raises(DataError, match=r"rows.jsonl:2: its columns fit no layout"):
        load(tmp_path, CLASSIFY, {"text": "x", "label": 1}, {"text": "y"})
    assert load(tmp_path, CLASSIFY, {"text": "y"}, require_labels=False)[0].label is None
    with pytest.raises(ConfigError, match=r"unknown task 'clasify'. Did you mean 'classify'\?"):
        load(tmp_path, "clasify", {"text": "y"})
    with pytest.raises(ConfigError, match="limit must be at least 1, not 0"):
        load(tmp_path, CLASSIFY, {"text": "y"}, limit=0)
    with pytest.raises(ConfigError, match="no data are named"):
        load_task_examples([], CLASSIFY)
    with pytest.raises(DataError, match=r"there is no file.*rows.csv"):
        load_task_examples(tmp_path / "rows.csv", CLASSIFY)


def test_files_folders_and_limit(tmp_path: Path):
    (tmp_path / "train.csv").write_text("sentence,label\ngood,1\nbad,0\nworse,0\n")
    (tmp_path / "dev.csv").write_text("sentence,label\nfine,1\n")
    assert [one.text for one in load_task_examples(tmp_path, CLASSIFY)] == ["good", "bad", "worse"]
    assert [one.text for one in load_task_examples(tmp_path, CLASSIFY, split="validation")] == ["fine"]
    several = [tmp_path / "train.csv", tmp_path / "dev.csv"]
    examples = load_task_examples(several, CLASSIFY, limit=2)
    assert [one.text for one in examples] == ["good", "bad", "fine"]
    assert [part.kept for part in examples.report.parts] == [2, 1]
    assert examples[1:].report is examples.report
    assert examples[1:].task == CLASSIFY


NAMES = ["negative", "neutral", "positive"]


def class_labels() -> datasets.Dataset:
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=NAMES),
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-PER", "B-LOC"])),
            "pos_tags": datasets.List(datasets.ClassLabel(names=["X", "Y"])),
        }
    )
    return datasets.Dataset.from_dict(
        {
            "text": ["a", "b", "c"],
            "label": [2, 0, -1],
            "tokens": [["Al", "is"], ["in", "Rome"], ["no", "tags"]],
            "ner_tags": [[1, 0], [0, 2], [-1, -1]],
            "pos_tags": [[0, 0], [0, 0], [0, 0]],
        },
        features=features,
    )


@pytest.mark.parametrize("form", ["parquet", "arrow", "folder"])
def test_class_names_and_their_order(tmp_path: Path, form: str):
    data = class_labels()
    path = tmp_path / "rows"
    if form == "parquet":
        path = path.with_suffix(".parquet")
        data.to_parquet(path)
    else:
        data.save_to_disk(path)
        path = next(path.glob("*.arrow")) if form == "arrow" else path
    examples = load_task_examples(path, CLASSIFY, columns={"text": "text"})
    assert [one.label for one in examples] == ["positive", "negative"]
    assert examples.report.unlabelled == 1
    assert labels_of(examples) == tuple(NAMES)  # neutral too, which no row has, and not in the alphabet's order
    assert labels_of(examples[:1]) == tuple(NAMES)
    tagged = load_task_examples(path, TAG)
    assert [one.tags for one in tagged] == [("B-PER", "O"), ("O", "B-LOC")]
    assert tagged.report.unlabelled == 1
    assert labels_of(tagged) == ("O", "B-PER", "B-LOC")
    assert labels_of(load_task_examples(path, TAG, columns={"tags": "pos_tags"})) == ("X", "Y")


def test_class_names_of_the_hub():
    options = ReadOptions()
    rows = [row for _, row in dataset_rows(class_labels(), "owner/name (train)", options)]
    assert [row["label"] for row in rows] == ["positive", "negative", None]
    assert [row["ner_tags"] for row in rows] == [["B-PER", "O"], ["O", "B-LOC"], [None, None]]
    assert options.class_names == {"label": tuple(NAMES), "ner_tags": ("O", "B-PER", "B-LOC"), "pos_tags": ("X", "Y")}


def test_words_and_tags(tmp_path: Path):
    rows: list[dict[str, Any]] = [
        {"tokens": ["EU", "rejects", 22], "ner_tags": [3, 0, None]},
        {"words": "Al is", "labels": "B O"},
        {"words": '["New York", "is"]', "tags": '["L", "O"]'},
    ]
    examples = load(tmp_path, TAG, *rows)
    assert [(one.words, one.tags) for one in examples] == [
        (("EU", "rejects", "22"), ("3", "0", "")),
        (("Al", "is"), ("B", "O")),
        (("New York", "is"), ("L", "O")),
    ]
    assert examples.report.untagged_words == 1
    with pytest.raises(DataError, match=r"rows.jsonl:1: there are 2 words and 1 tags. Give every word one tag"):
        load(tmp_path, TAG, {"tokens": ["a", "b"], "tags": ["O"]})
    with pytest.raises(DataError, match=r"tokens' \(words\) is text \(\"\['a', 'b'\]\"\), not a list. Write a list"):
        load(tmp_path, TAG, {"tokens": "['a', 'b']", "tags": ["O", "O"]})
    with pytest.raises(DataError, match=r"tag 2 of 'tags' is 0.5, a number with a fraction"):
        load(tmp_path, TAG, {"tokens": ["a", "b"], "tags": ["O", 0.5]})
    with pytest.raises(DataError, match=r"word 1 of 'tokens' \(words\) is a list"):
        load(tmp_path, TAG, {"tokens": [["a"], "b"], "tags": ["O", "O"]})
    (free,) = load(tmp_path, TAG, {"tokens": ["a", "b"]}, require_labels=False)
    assert (free.words, free.tags, free.labelled(TAG)) == (("a", "b"), (), False)


def test_texts_to_write(tmp_path: Path):
    rows: list[dict[str, Any]] = [
        {"source": "the cat", "target": "le chat"},
        {"instruction": "Translate", "input": "the dog", "output": "le chien", "system": "Be short."},
        {
            "messages": [
                {"role": "user", "content": "q1"},
                {"role": "assistant", "content": "a1"},
                {"role": "user", "content": "q2"},
                {"role": "assistant", "content": "a2"},
            ]
        },
    ]
    examples = load(tmp_path, SEQ2SEQ, *rows)
    assert [(one.text, one.second, one.target) for one in examples] == [
        ("the cat", None, "le chat"),
        ("Be short.\nTranslate", "the dog", "le chien"),
        ("user: q1\nassistant: a1\nuser: q2", None, "a2"),
    ]
    path = tmp_path / "e2e.csv"
    path.write_text("mr,ref\nname[A],A is.\n")
    (one,) = load_task_examples(path, SEQ2SEQ, columns={"instruction": "mr", "output": "ref"})
    assert (one.text, one.target) == ("name[A]", "A is.")
    with pytest.raises(DataError, match=r"rows.jsonl:1: the row is a text without another to write for it. Give two"):
        load(tmp_path, SEQ2SEQ, {"text": "alone"})


def test_every_task_knows_what_is_labelled():
    right = {
        CLASSIFY: {"label": "a"},
        FILL: {"label": "a"},
        TAG: {"tags": ("a", "")},
        QA: {"impossible": True},
        SEQ2SEQ: {"target": "a"},
    }
    assert set(right) == set(DATA_TASKS)
    for task, fields in right.items():
        assert TaskExample(**fields).labelled(task)
        assert not TaskExample().labelled(task)
    assert TaskExample(answers=(("a", 0),)).labelled(QA)
