"""Rows are read by their own columns, and what was used and what was not stands in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ptune.data.example import Example
from ptune.data.layouts import LAYOUTS
from ptune.data.records import Examples, load_examples
from ptune.errors import DataError


def load(folder: Path, *rows: dict[str, Any], name: str = "rows.jsonl", **options: Any) -> Examples:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return load_examples(path, **options)


def bare(example: Example) -> Example:
    """The example without its place."""
    return Example(**{name: getattr(example, name) for name in Example.__slots__ if name != "source"})


FRENCH = {"instruction": "Translate to French", "input": "the cat", "output": "le chat"}
PAST = [["q0", "a0"]]


@pytest.mark.parametrize("order", [1, -1])
def test_no_row_loses_a_part_that_another_row_has_not(tmp_path: Path, order: int):
    rows = [
        {"instruction": "Say hi", "output": "Hi"},
        FRENCH,
        {"instruction": "And?", "output": "So", "system": "Be short.", "history": PAST},
    ]
    examples = load(tmp_path, *rows[::order])
    assert [bare(one) for one in examples][::order] == [
        Example(instruction="Say hi", output="Hi"),
        Example(instruction="Translate to French", input="the cat", output="le chat"),
        Example(instruction="And?", output="So", system="Be short.", history=(("user", "q0"), ("assistant", "a0"))),
    ]
    (line,) = [line for line in examples.report.lines() if line.startswith("columns used")]
    for part in ("instruction,", "input (1 of 3 rows)", "system (1 of 3 rows)", "history (1 of 3 rows)"):
        assert part in f"{line},"


def test_the_files_of_a_folder_may_differ(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps([{"instruction": "Say hi", "output": "Hi", "id": 1}]))
    (tmp_path / "b.csv").write_text("prompt,completion\nq,a\n")
    (tmp_path / "c.jsonl").write_text(json.dumps(FRENCH))
    examples = load_examples(tmp_path)
    assert [one.input for one in examples] == ["", "", "the cat"]
    report = examples.report
    assert report.layouts == {"Alpaca": 2, "prompt/completion": 1}
    assert report.columns["input", "input"] == 1
    assert report.unused_columns == {"id": 1}
    assert json.loads(json.dumps(report.to_dict()))["columns"][0] == {
        "column": "instruction", "as": "instruction", "rows": 2,
    }  # fmt: skip


def test_columns_that_are_not_used_are_counted_over_all_rows(tmp_path: Path):
    rows = [{"instruction": str(n), "output": "a", **({"id": n} if n else {}), "tag": "x"} for n in range(3)]
    report = load(tmp_path, *rows).report
    assert report.unused_columns == {"tag": 3, "id": 2}
    assert "columns not used: tag (3 rows), id (2 rows)" in report.lines()


def test_a_limit_counts_only_what_was_read(tmp_path: Path):
    report = load(
        tmp_path, {"prompt": "a", "completion": "b", "x": 1}, {"prompt": "c", "completion": "d"}, limit=1
    ).report
    assert (report.rows_read, report.layouts, report.unused_columns) == (1, {"prompt/completion": 1}, {"x": 1})


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ({"question": "q", "answer": "a"}, {}),
        ({"question": "q", "answer": "a", "context": "c"}, {"input": "c"}),
        ({"prompt": "q", "response": "a", "history": PAST}, {"history": (("user", "q0"), ("assistant", "a0"))}),
        ({"query": "q", "response": "a"}, {}),
        ({"system_prompt": "s", "question": "q", "response": "a"}, {"system": "s"}),
        ({"instruction": "q", "context": "c", "response": "a"}, {"input": "c"}),
        ({"input": "q", "output": "a"}, {}),
        ({"content": "q", "summary": "a"}, {}),
        ({"source": "q", "target": "a"}, {}),
        ({"text": "q", "summary": "a"}, {}),
        ({"sentence": "q", "label": "a"}, {}),
        ({"Instruction": "q", "Input": "i", "Output": "a"}, {"input": "i"}),
        ({" prompt": "q", "COMPLETION ": "a"}, {}),
        ({"context": "c", "question": "q", "answers": {"text": ["a", "b"], "answer_start": [0, 3]}}, {"input": "c"}),
        ({"context": "c", "question": "q", "answers": [{"text": "a", "answer_start": 0}]}, {"input": "c"}),
        ({"question": "q", "answers": ["a"]}, {}),
    ],
)
def test_columns_that_people_have(tmp_path: Path, row: dict[str, Any], want: dict[str, Any]):
    examples = load(tmp_path, row)
    assert bare(examples[0]) == Example(instruction="q", output="a", **want)
    assert set(examples.report.columns.values()) == {1}
    (line,) = [line for line in examples.report.lines() if line.startswith("columns used")] or [""]
    for column, part in examples.report.columns:
        assert column == part or f"{column} as {part}" in line


def test_every_layout_is_read_from_its_own_columns_and_by_mapping(tmp_path: Path):
    for layout in LAYOUTS[:-1]:
        if layout.answer is None:
            continue
        row = {layout.question: "q", layout.answer: "a"}
        read = load(tmp_path, row)
        assert (read.report.layout, read[0].instruction, read[0].output) == (layout.name, "q", "a")
        mapped = load(tmp_path, {"x y": "q", "z": "a"}, columns={layout.question: "x y", layout.answer: "z"})
        assert (mapped[0].instruction, mapped[0].output) == ("q", "a")


def test_a_layout_with_its_answer_comes_before_a_question_alone(tmp_path: Path):
    row = {"prompt": "p", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    for require_output in (True, False):
        examples = load(tmp_path, row, require_output=require_output)
        assert (examples[0].instruction, examples.report.unused_columns) == ("q", {"prompt": 1})


def test_numbers_true_and_false_are_text_and_counted(tmp_path: Path):
    rows = [{"instruction": 7, "output": value} for value in (2, 2.0, True, False, "text", -1e-7)]
    examples = load(tmp_path, *rows)
    assert [one.output for one in examples] == ["2", "2.0", "true", "false", "text", "-1e-07"]
    assert {one.instruction for one in examples} == {"7"}
    assert examples.report.converted == {"instruction": 6, "output": 5}
    assert "values that are no text, taken as text: 6 of instruction, 5 of output" in examples.report.lines()


def test_null_is_empty_and_a_row_that_asks_nothing_is_dropped(tmp_path: Path):
    rows = [
        {"instruction": None, "input": "i", "output": "a"},
        {"instruction": None, "input": None, "output": "b"},
        {"instruction": None, "output": "c"},
        {"instruction": "q", "output": None},
        {"instruction": "", "output": "d"},
    ]
    examples = load(tmp_path, *rows)
    assert [(one.instruction, one.input, one.output) for one in examples] == [("", "i", "a"), ("", "", "d")]
    assert (examples.report.empty_questions, examples.report.empty_answers) == (2, 1)
    assert "dropped 2 rows without a question" in examples.report.lines()
    with pytest.raises(DataError, match="none of the 1 rows can be learned: 1 ask nothing"):
        load(tmp_path, rows[1])


@pytest.mark.parametrize(
    ("row", "flag"),
    [
        ({"mr": "x", "ref": "y"}, "--columns instruction=mr output=ref."),
        ({"ref": "y", "mr": "x"}, "--columns instruction=mr output=ref."),
        (
            {"premise": "x", "hypothesis": "z", "label": 1},
            "--columns instruction=premise input=hypothesis output=label.",
        ),
        ({"idx": 3, "first": "x", "second": "y"}, "--columns instruction=first output=second."),
        ({"My Question": "x", "the reply": "y"}, "--columns 'instruction=My Question' 'output=the reply'."),
        ({"body": "x", "url": "u"}, "--columns text=body."),
        ({"text": "x", "url": "u"}, "--columns text=text."),
        ({"n": 1}, "--columns instruction=<column> output=<column>."),
    ],
)
def test_an_unknown_layout_says_what_there_is_and_the_flag_to_paste(tmp_path: Path, row: dict[str, Any], flag: str):
    with pytest.raises(DataError) as caught:
        load(tmp_path, row)
    assert flag in str(caught.value)
    for name, value in row.items():
        assert f"{name} ({'text' if isinstance(value, str) else 'a number'})" in str(caught.value)
    if "<" not in flag:
        import shlex

        words = shlex.split(flag.rstrip("."))[1:]
        assert load(tmp_path, row, columns=dict(word.split("=") for word in words))[0].output


def test_a_mapped_column_may_be_missing_in_some_rows_but_not_in_all(tmp_path: Path):
    columns = {"instruction": "q", "input": "extra", "output": "a"}
    rows = [{"q": "1", "a": "x"}, {"q": "2", "extra": "e", "a": "y"}]
    assert [one.input for one in load(tmp_path, *rows, columns=columns)] == ["", "e"]
    with pytest.raises(DataError, match=r"no column 'extra' \(asked for as input\)"):
        load(tmp_path, rows[0], columns=columns)
    with pytest.raises(DataError, match=r"jsonl:2: the row has no 'a' \(output\)"):
        load(tmp_path, rows[0], {"q": "3"}, columns={"instruction": "q", "output": "a"})


def test_a_mapping_is_for_the_sources_that_have_its_columns(tmp_path: Path):
    (tmp_path / "a.csv").write_text("mr,ref\nx,y\n")
    (tmp_path / "b.json").write_text(json.dumps([FRENCH]))
    both = [tmp_path / "a.csv", tmp_path / "b.json"]
    for sources in (both, both[::-1], tmp_path):
        examples = load_examples(sources, columns={"instruction": "mr", "output": "ref"})
        assert sorted(one.output for one in examples) == ["le chat", "y"]
    for sources in (both[1:], both[1], both):
        with pytest.raises(DataError, match=r"no column 'rm' \(asked for as instruction\)"):
            load_examples(sources, columns={"instruction": "rm"})


SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Sky",
            "paragraphs": [
                {
                    "context": "The sky is blue.",
                    "qas": [
                        {"id": "1", "question": "Colour?", "answers": [{"text": "blue"}, {"text": "Blue"}]},
                        {"id": "2", "question": "Size?", "answers": [], "is_impossible": True},
                    ],
                },
                {
                    "context": "Grass is green.",
                    "qas": [{"id": "3", "question": "And grass?", "answers": [{"text": "green"}]}],
                },
            ],
        }
    ],
}  # fmt: skip


@pytest.mark.parametrize("indent", [None, 1])
def test_nested_squad(tmp_path: Path, indent: int | None):
    path = tmp_path / "train-v2.0.json"
    path.write_text(json.dumps(SQUAD, indent=indent))
    examples = load_examples(path)
    assert [(one.instruction, one.input, one.output) for one in examples] == [
        ("Colour?", "The sky is blue.", "blue"),
        ("And grass?", "Grass is green.", "green"),
    ]
    report = examples.report
    assert (report.rows_read, report.empty_answers, report.further_answers) == (3, 1, 1)
    assert report.unused_columns == {"title": 3, "id": 3, "is_impossible": 1}
    assert examples[1].source.endswith(", paragraph 2, question 1")
    without = json.loads(json.dumps(SQUAD).replace('"answers"', '"nothing"'))
    path.write_text(json.dumps(without))
    assert [one.instruction for one in load_examples(path, require_output=False)] == ["Colour?", "Size?", "And grass?"]


@pytest.mark.parametrize("paragraphs", [[5], [{"context": "c"}], [{"qas": [7]}]])
def test_broken_squad(tmp_path: Path, paragraphs: list[Any]):
    with pytest.raises(DataError, match=r"jsonl:1, paragraph 1"):
        load(tmp_path, {"title": "t", "paragraphs": paragraphs})


WRAPPED = {"train": [{"question": "q", "answer": "a"}], "dev": [{"question": "r", "answer": "b"}], "version": 1}


@pytest.mark.parametrize("indent", [None, 1])
def test_splits_in_one_object(tmp_path: Path, indent: int | None):
    path = tmp_path / "all.json"
    path.write_text(json.dumps(WRAPPED, indent=indent))
    for split, want in (("train", "q"), ("validation", "r"), ("dev", "r")):
        assert [one.instruction for one in load_examples(path, split=split)] == [want]
    assert "read train of all.json; not read: dev" in load_examples(path).report.lines()
    with pytest.raises(DataError, match=r"unknown split of .*'test'.*Known: dev, train"):
        load_examples(path, split="test")
    path.write_text(json.dumps({"mine": WRAPPED["train"]}, indent=indent))
    assert len(load_examples(path, split="mine")) == 1


def test_a_row_may_have_a_column_called_like_a_split(tmp_path: Path):
    path = tmp_path / "rows.json"
    path.write_text('{"prompt": "q", "completion": "a", "test": ["assert"]}\n{"prompt": "r", "completion": "b"}\n')
    assert len(load_examples(path)) == 2
