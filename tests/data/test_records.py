"""Formats, layouts, and what is dropped."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from ptune.data.records import Example, Examples, load_examples
from ptune.errors import ConfigError, DataError

ROWS = [
    {"instruction": "Name a colour.", "input": "warm", "output": "red"},
    {"instruction": "给出秘诀。", "input": "", "output": "第一行\n第二行"},
    {"instruction": 'Say "hi", now', "input": "a,b\nc", "output": "hi\u2028there"},
]


def write(folder, form, rows=ROWS):
    """`rows` in the given form; returns the path to load."""
    if form == "arrow-folder":
        Dataset.from_list(rows).save_to_disk(folder / "saved")
        return folder / "saved"
    if form == "arrow-dict":
        DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows[:1])).save_to_disk(folder / "saved")
        return folder / "saved"
    path = folder / f"rows.{form.split('-')[-1]}"
    if form == "json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")
    elif form == "bom-json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8-sig")
    elif form == "wrapped-json":
        path.write_text(json.dumps({"version": [1, {"data": 2}], "data": rows, "end": None}), encoding="utf-8")
    elif form in {"jsonl", "lines-json"}:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif form == "bom-jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in rows), encoding="utf-8-sig")
    elif form in {"csv", "bom-csv", "tsv"}:
        with path.open("w", newline="", encoding="utf-8-sig" if form == "bom-csv" else "utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if form == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form == "arrow":
        Dataset.from_list(rows).save_to_disk(folder / "saved")
        (folder / "saved" / "data-00000-of-00001.arrow").rename(path)
    return path


FORMS = [
    "json", "bom-json", "wrapped-json", "lines-json", "jsonl", "bom-jsonl", "csv", "bom-csv", "tsv",
    "parquet", "arrow", "arrow-folder", "arrow-dict",
]  # fmt: skip


def fields(example):
    return {"instruction": example.instruction, "input": example.input, "output": example.output}


@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_the_same_rows(tmp_path, form):
    examples = load_examples(write(tmp_path, form))
    assert [fields(one) for one in examples] == ROWS
    assert examples.report.rows_read == examples.report.kept == 3
    assert examples.report.layout == "Alpaca"


def test_places_are_lines_of_the_file_or_rows_of_the_table(tmp_path):
    path = write(tmp_path, "json")
    lines = path.read_text(encoding="utf-8").split("\n")
    for example, row in zip(load_examples(path), ROWS, strict=True):
        number = int(example.source.removeprefix(f"{path}:"))
        assert lines[number - 1].strip() == "{"
        assert json.dumps(row["instruction"], ensure_ascii=False) in lines[number]
    path = write(tmp_path, "csv")  # header; one line; two lines (a line break in the answer); two lines
    assert [one.source for one in load_examples(path)] == [f"{path}:2", f"{path}:3", f"{path}:5"]
    path = write(tmp_path, "bom-jsonl")
    assert [one.source for one in load_examples(path)] == [f"{path}:1", f"{path}:3", f"{path}:5"]
    path = write(tmp_path, "parquet")
    assert [one.source for one in load_examples(path)] == [f"{path}[{row}]" for row in range(3)]


def test_layouts(tmp_path):
    def one(row, **options):
        path = tmp_path / "one.jsonl"
        path.write_text(json.dumps(row) + "\n")
        example = load_examples(path, **options)[0]
        assert example.source == f"{path}:1"
        return Example(**{name: getattr(example, name) for name in Example.__slots__ if name != "source"})

    assert one({"instruction": "q", "output": "a"}) == Example(instruction="q", output="a")
    assert one({"instruction": "q", "input": None, "output": "a"}) == Example(instruction="q", output="a")
    assert one({"prompt": "q", "completion": "a"}) == Example(instruction="q", output="a")
    assert one({"text": "q", "label": "a"}) == Example(instruction="q", output="a")
    assert one({"text": "q", "label": 1}) == Example(instruction="q", output="1")
    assert one({"text": "q", "label": True}) == Example(instruction="q", output="true")
    assert one({"mr": "q", "ref": "a"}, columns={"instruction": "mr", "output": "ref"}) == Example(
        instruction="q", output="a"
    )
    assert one({"sentence": "q", "y": 0}, columns={"text": "sentence", "label": "y"}) == Example(
        instruction="q", output="0"
    )
    assert one({"instruction": "q", "output": "x", "better": "a"}, columns={"output": "better"}).output == "a"
    assert one({"input": "q", "output": "a"}, columns={"instruction": "input"}) == Example(instruction="q", output="a")
    history = (("user", "q1"), ("assistant", "a1"))
    spoken = Example(instruction="q2", output="a2", system="s", history=history)
    assert one({"instruction": "q2", "output": "a2", "system": "s", "history": [["q1", "a1"]]}) == spoken
    roles = ["system", "user", "assistant", "user", "assistant"]
    messages = [{"role": r, "content": c} for r, c in zip(roles, ["s", "q1", "a1", "q2", "a2"], strict=True)]
    assert one({"messages": messages}) == spoken
    assert one({"messages": messages[:-1]}, require_output=False) == Example(
        instruction="q2", system="s", history=history
    )


def test_class_labels_become_names(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    data = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    data.save_to_disk(tmp_path / "saved")
    data.to_parquet(tmp_path / "rows.parquet")
    for path in (tmp_path / "saved", tmp_path / "rows.parquet"):
        examples = load_examples(path)
        assert [one.output for one in examples] == ["good", "bad"]
        assert examples.report.empty_answers == 1


def test_messages_survive_parquet(tmp_path):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    Dataset.from_list([{"messages": messages}]).to_parquet(tmp_path / "chat.parquet")
    example = load_examples(tmp_path / "chat.parquet")[0]
    assert (example.instruction, example.output, example.history) == ("q", "a", ())


def test_empty_answers_and_duplicates_are_dropped_and_counted(tmp_path):
    rows = [
        {"instruction": "q", "input": "", "output": "a"},
        {"instruction": "q", "input": "", "output": "another answer"},
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "input": "i", "output": "a"},
        {"instruction": "q", "input": "", "output": " \n"},
        {"instruction": "q", "input": "", "output": None},
        {"instruction": "q", "input": "", "output": "a", "history": [["x", "y"]]},
    ]
    path = write(tmp_path, "jsonl", rows)
    examples = load_examples(path)
    assert [one.source for one in examples] == [f"{path}:1", f"{path}:2", f"{path}:4", f"{path}:7"]
    report = examples.report
    assert (report.rows_read, report.kept, report.empty_answers, report.duplicates) == (7, 4, 2, 1)
    assert report.lines() == [
        f"read 7 rows from {path} (Alpaca columns), kept 4",
        "columns used: instruction, input (6 of 7 rows), output, history (1 of 7 rows)",
        "dropped 2 rows without an answer",
        "dropped 1 rows that repeat an earlier one",
    ]
    assert json.loads(json.dumps(report.to_dict()))["duplicates"] == 1
    assert len(load_examples(path, drop_duplicates=False)) == 5
    assert len(load_examples(path, drop_duplicates=False, require_output=False)) == 7


def test_history_distinguishes_rows(tmp_path):
    rows = [{"instruction": "q", "output": "a", "history": [[past, "y"]]} for past in ("x", "z", "x")]
    assert len(load_examples(write(tmp_path, "jsonl", rows))) == 2


def test_questions_alone(tmp_path):
    path = write(tmp_path, "jsonl", [{"instruction": "q"}, {"instruction": "r", "input": "i"}])
    with pytest.raises(DataError, match="fit no layout"):
        load_examples(path)
    assert [one.output for one in load_examples(path, require_output=False)] == ["", ""]


def test_limit_counts_kept_rows_and_stops_reading(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "completion": ""}, {"prompt": "b", "completion": "1"}, {"prompt": "c", "completion": "2"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    examples = load_examples(path, limit=2)
    assert [one.instruction for one in examples] == ["b", "c"]
    assert examples.report.rows_read == 3
    with pytest.raises(DataError, match="jsonl:4"):
        load_examples(path)
    with pytest.raises(ConfigError, match="limit must be at least 1, not 0"):
        load_examples(path, limit=0)


def test_unused_columns_are_reported(tmp_path):
    path = write(tmp_path, "jsonl", [{"id": 1, "instruction": "q", "output": "a", "text": "q a"}])
    assert load_examples(path).report.unused_columns == {"id": 1, "text": 1}


def test_folder_is_read_in_name_order(tmp_path):
    names = [f"part-{number:02}.json" for number in range(20)]
    for name in reversed(names):
        (tmp_path / name).write_text(json.dumps([{"prompt": name, "completion": "a"}]))
    (tmp_path / "README.md").write_text("not data")
    examples = load_examples(tmp_path)
    assert [one.instruction for one in examples] == names
    assert examples.report.files == tuple(str(tmp_path / name) for name in names)


def test_folder_with_splits_gives_only_the_one_asked_for(tmp_path):
    for index, name in enumerate(("train.jsonl", "dev32.jsonl", "test-00000-of-00001.jsonl")):
        (tmp_path / name).write_text(json.dumps({"prompt": str(index), "completion": "a"}) + "\n")
    for split, want in (("train", "0"), ("validation", "1"), ("dev", "1"), ("test", "2")):
        examples = load_examples(tmp_path, split=split)
        assert [one.instruction for one in examples] == [want]
        assert len(examples.report.skipped_files) == 2
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"no file for the split 'train'.*dev32\.jsonl"):
        load_examples(tmp_path)


def test_split_of_a_dataset_dict(tmp_path):
    path = write(tmp_path, "arrow-dict")
    assert len(load_examples(path, split="test")) == 1
    with pytest.raises(DataError, match=r"'tset'.*Did you mean 'test'"):
        load_examples(path, split="tset")


def test_hub_id_goes_through_load_dataset(monkeypatch):
    asked = []

    def load_dataset(name, configuration, *, split):
        asked.append((name, configuration, split))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    examples = load_examples("owner/name:small", split="validation")
    assert asked == [("owner/name", "small", "validation")]
    assert [fields(one) for one in examples] == ROWS
    assert examples[1].source == "owner/name:small (validation)[1]"


def test_hub_out_of_reach_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"no file or folder 'no-one-here/nothing-there'.*from the hub") as caught:
        load_examples("no-one-here/nothing-there")
    assert "\n" not in str(caught.value)


def test_examples_are_a_sequence():
    examples = Examples([Example(instruction=str(index), output="a") for index in range(4)])
    assert len(examples) == examples.report.kept == 4
    assert [one.instruction for one in examples[1:3]] == ["1", "2"]
    assert isinstance(examples[1:], Examples)
    assert examples[-1].instruction == "3"


def test_reading_needs_neither_torch_nor_transformers(tmp_path):
    path = write(tmp_path, "json")
    code = (
        "import sys; import ptune.data.template; from ptune.data.records import load_examples; "
        f"assert len(load_examples({str(path)!r})) == 3; "
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), 'heavy import'"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
