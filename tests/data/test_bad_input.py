"""Every bad file gives one `DataError` on one line that names the file, the place and the way out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ptune.data.records import load_examples
from ptune.errors import ConfigError, DataError

GOOD = '{"instruction": "q%d", "output": "a"}'


def fails(path, *parts, **options):
    """Loading fails with one line that holds every part."""
    with pytest.raises(DataError) as caught:
        load_examples(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    for part in (str(path), *parts):
        assert part in text, text
    assert caught.value.hint, "the way out is missing"


def put(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_missing_file(tmp_path):
    put(tmp_path, "train.jsonl", GOOD % 1)
    with pytest.raises(DataError, match=r"no file or folder .*trian\.jsonl.*Did you mean .*train\.jsonl"):
        load_examples(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match=r"folder .*nowhere' does not exist"):
        load_examples(str(tmp_path / "nowhere" / "x.json"))
    with pytest.raises(DataError, match=r"no file or folder 'gone\.json'"):
        load_examples("gone.json")
    with pytest.raises(DataError, match="no file or folder ''"):
        load_examples("")


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "tsv", "parquet", "arrow"])
def test_empty_file(tmp_path, suffix):
    fails(put(tmp_path, f"empty.{suffix}", b""), "is empty")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", "[]"),
        ("a.json", '{"data": []}'),
        ("a.csv", "instruction,output\n"),
        ("a.jsonl", "\n \n"),
        ("a.json", " \n"),
        ("a.csv", "\n"),
    ],
)
def test_file_without_rows(tmp_path, name, content):
    path = put(tmp_path, name, content)
    with pytest.raises(DataError, match=r"is empty|holds no rows"):
        load_examples(path)


def test_parquet_without_rows(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"instruction": pa.array([], pa.string()), "output": pa.array([], pa.string())}), path)
    fails(path, "holds no rows")


def test_unknown_kind_and_folder_without_data(tmp_path):
    fails(put(tmp_path, "a.docx", b"x"), ".jsonl", ".parquet")
    fails(tmp_path, "holds no data file")


def test_broken_jsonl_at_row_3(tmp_path):
    lines = [GOOD % 1, GOOD % 2, '{"instruction": "q3", "output": "a"', GOOD % 4]
    path = put(tmp_path, "a.jsonl", "\n".join(lines))
    fails(path, f"{path}:3:", "row 3", "column")
    path = put(tmp_path, "b.jsonl", "\n".join([lines[0], "", *lines[1:]]))
    fails(path, f"{path}:4:", "row 3")


def test_broken_json_list_at_row_3(tmp_path):
    rows = [json.dumps(json.loads(GOOD % number), indent=2) for number in range(1, 5)]
    rows[2] = rows[2].replace(",", "")  # rows of four lines: row 3 starts at line 10, the fault shows at line 12
    path = put(tmp_path, "a.json", "[\n" + ",\n".join(rows) + "\n]")
    fails(path, f"{path}:10:", "row 3", "line 12, column 3")


@pytest.mark.parametrize(
    ("content", "place", "found"),
    [
        ("[\n%s,\n%s", ":3:", "the end of the file"),
        ("[\n%s\n%s]", ":3:", "'{'"),
        ("[\n%s,\n%s,\n]", ":4:", "row 3"),
        ("[\n%s,\n%s\n]\nmore", ":5:", "'m'"),
        ('{"data": [\n%s,\n%s], "x": }', ":3:", "the value of 'x'"),
        ('{"data": [\n%s,\n%s]\n', ":4:", "the end of the file"),
        ('{"data": [%s,\n%s\n]}}', ":3:", "'}'"),
        ("[\n%s,\n%s,\n17]", ":4:", "17, not an object"),
    ],
)
def test_broken_json_structure(tmp_path, content, place, found):
    path = put(tmp_path, "a.json", content % (GOOD % 1, GOOD % 2))
    fails(path, f"{path}{place}", found)


def test_json_that_is_no_list_of_rows(tmp_path):
    fails(put(tmp_path, "a.json", '"text"'), "expected a list of objects")
    fails(put(tmp_path, "b.json", '{"rows": 1,\n "other": {}}'), "rows, other", "'data'")
    fails(put(tmp_path, "c.json", "[" * 100_000), "nested too deeply")
    fails(put(tmp_path, "c.jsonl", "[" * 100_000), "nested too deeply")
    fails(put(tmp_path, "d.json", '[{"instruction": ' + "9" * 5000 + "}]"), "row 1", "digits")
    fails(put(tmp_path, "d.jsonl", '{"instruction": ' + "9" * 5000 + "}"), "row 1", "digits")


@pytest.mark.parametrize(
    ("value", "kind"),
    [('["a"]', "a list"), ('{"a": 1}', "an object")],
)
def test_output_that_is_not_text(tmp_path, value, kind):
    bad = f'{{"instruction": "q", "output": {value}}}'
    path = put(tmp_path, "a.jsonl", "\n".join([GOOD % 1, GOOD % 2, bad]))
    fails(path, f"{path}:3:", "'output'", kind, "not text")
    path = put(tmp_path, "a.json", f"[\n{GOOD % 1},\n{bad}\n]")
    fails(path, f"{path}:3:", "'output'", kind)
    table = pa.Table.from_pylist([json.loads(bad)])
    pq.write_table(table, tmp_path / "a.parquet")
    fails(tmp_path / "a.parquet", "a.parquet[0]:", kind)


def test_wrong_values_name_column_and_field(tmp_path):
    path = put(tmp_path, "a.jsonl", '{"q": "x", "ref": [1.5]}')
    fails(path, f"{path}:1:", "'ref' (output)", "a list ([1.5])", columns={"instruction": "q", "output": "ref"})
    path = put(tmp_path, "b.jsonl", '{"instruction": {"a": 1}, "output": "a"}')
    fails(path, "'instruction' is an object")
    path = put(tmp_path, "c.jsonl", GOOD % 1 + '\n{"instruction": "q"}')
    fails(path, f"{path}:2:", "no 'output'")
    path = put(tmp_path, "d.jsonl", '{"text": "q", "label": 1}\n{"text": "r"}')
    fails(path, f"{path}:2:", "no 'label'")
    path = put(tmp_path, "d.jsonl", '{"text": "q"}\n{"text": "r", "label": 1}')
    fails(path, f"{path}:2:", "an answer (label)", "texts without one")
    path = put(tmp_path, "e.jsonl", '{"instruction": "q", "output": "a \\ud83d b"}')
    fails(path, f"{path}:1:", "'output'", "surrogate", "character 2")


def test_unknown_columns_name_them_and_the_expected(tmp_path):
    path = put(tmp_path, "a.csv", "mr,ref\nx,y\n")
    fails(path, "mr (text), ref (text)", "--columns instruction=mr output=ref.")
    fails(path, "'reff'", "Did you mean 'ref'", columns={"instruction": "mr", "output": "reff"})
    with pytest.raises(ConfigError, match=r"'ouput'.*Did you mean 'output'"):
        load_examples(path, columns={"ouput": "ref"})
    with pytest.raises(ConfigError, match="do not go together"):
        load_examples(path, columns={"instruction": "mr", "completion": "ref"})


def test_no_answer_at_all(tmp_path):
    path = put(tmp_path, "a.csv", "instruction,output\nx,\ny, \n")
    fails(path, "none of the 2 rows can be learned: 2 have no answer")


def test_other_encodings_name_the_byte(tmp_path):
    text = "".join(GOOD.replace("a", "é") % number + "\n" for number in (1, 2))
    data = text.encode("latin-1")
    path = put(tmp_path, "a.jsonl", data)
    fails(path, f"byte offset {data.index(0xE9)}", "0xe9", "UTF-8")
    second = '{"instruction": "é好", "output": "a"}\n'.encode() + data  # characters of more than one byte before it
    fails(put(tmp_path, "b.jsonl", second), f"byte offset {second.index(0xE9, 45)}")
    for name in ("a.json", "a.csv"):
        fails(put(tmp_path, name, data), f"byte offset {data.index(0xE9)}")
    marked = b"\xef\xbb\xbf" + data
    for name in ("b.json", "c.jsonl"):
        fails(put(tmp_path, name, marked), f"byte offset {marked.index(0xE9)}")
    fails(put(tmp_path, "c.json", text.encode("utf-16")), "byte offset 0", "--encoding utf-16")


def test_broken_csv(tmp_path):
    path = put(tmp_path, "a.csv", 'instruction,output\n"x\ny",1\nx,1,2\n')
    fails(path, f"{path}:4:", "3 values", "2 columns")
    path = put(tmp_path, "b.csv", 'instruction,output\nx,1\n"never closed,2\ny,3\n')
    fails(path, f"{path}:3:", "not valid CSV")
    fails(put(tmp_path, "c.csv", "output,output\nx,1\n"), "'output' more than once")


def test_long_csv_fields_are_read_and_the_global_limit_is_kept(tmp_path):
    before = csv.field_size_limit()
    path = put(tmp_path, "a.csv", "instruction,output\nx," + "y" * (before + 1) + "\n")
    assert len(load_examples(path)[0].output) == before + 1
    assert csv.field_size_limit() == before


def test_damaged_tables(tmp_path):
    fails(put(tmp_path, "a.parquet", b"PAR1 not really"), "cannot be read as a Parquet file")
    fails(put(tmp_path, "a.arrow", b"ARROW? no"), "cannot be read as an Arrow file")
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "state.json").write_text("{}")
    fails(folder, "cannot be read as an Arrow folder")


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ("x", "not a list of messages"),
        ([], "not a list of messages"),
        ([{"role": "user", "content": "q"}], "none of the 1 rows can be learned: 1 have no answer"),
        ([{"role": "assistant", "content": "a"}], "none of the 1 rows can be learned: 1 ask nothing"),
        ([{"role": "system", "content": "s"}], "1 ask nothing"),
        ([{"role": "user", "text": "q"}], "message 1"),
        ([{"role": "user", "content": "q"}, {"role": "asistant", "content": "a"}], "Did you mean 'assistant'"),
        (
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": {}}],
            "message 2 (assistant) is an object",
        ),
        ([{"role": 5, "content": "q"}], "the role of message 1 is a number (5)"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "of the type 'image_url', not text"),
        ([{"role": "user", "content": "q", "train": True}], "message 1 (user) says that it is to be learned"),
        ([{"role": "assistant", "content": "q", "weight": 0.5}], "weight of message 1 is a number (0.5)"),
        ([{"role": "assistant", "tool_calls": ["f"]}], "a tool call of message 1 is text ('f')"),
        ([{"role": "function_call", "content": "f()"}], "the function call of message 1 is text ('f()'), not JSON"),
    ],
)
def test_bad_conversations(tmp_path, messages, complaint):
    path = put(tmp_path, "a.jsonl", json.dumps({"messages": messages}))
    fails(path, complaint)


def test_bad_history(tmp_path):
    path = put(tmp_path, "a.jsonl", json.dumps({"instruction": "q", "output": "a", "history": "x"}))
    fails(path, "history", "not a list")
    path = put(tmp_path, "b.jsonl", json.dumps({"instruction": "q", "output": "a", "history": [["q", {"a": 1}]]}))
    fails(path, "answer of history entry 1", "an object")


def test_unreadable_file(tmp_path, monkeypatch):
    path = put(tmp_path, "a.json", "[]")

    def refuse(self, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        load_examples(path)
