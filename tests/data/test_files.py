"""Kinds of files: compressed, in other encodings, with other delimiters, Excel, and plain text."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import sys
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ptune.data import opened
from ptune.data.encodings import likely_encodings
from ptune.data.records import Example, load_examples
from ptune.errors import DataError

ROWS = [{"instruction": "Name a colour.", "output": "red"}, {"instruction": "给出秘诀。", "output": "第一行\n第二行"}]


def as_json(rows: list[dict[str, str]] = ROWS) -> str:
    return json.dumps(rows, ensure_ascii=False, indent=1)


def as_lines(rows: list[dict[str, str]] = ROWS) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_csv(delimiter: str = ",") -> str:
    lines = [["instruction", "output"], *([row["instruction"], row["output"]] for row in ROWS)]
    return "".join(delimiter.join(f'"{value}"' for value in line) + "\n" for line in lines)


def zst(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}
TEXTS = {"rows.json": as_json(), "rows.jsonl": as_lines(), "rows.csv": as_csv(), "rows.TSV": as_csv("\t")}


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("name", TEXTS)
def test_compressed_files_are_read_as_the_unpacked_ones(tmp_path: Path, name: str, packer: str):
    plain, packed = tmp_path / name, tmp_path / f"{name}{packer}"
    plain.write_text(TEXTS[name], encoding="utf-8")
    packed.write_bytes(PACKERS[packer](TEXTS[name].encode()))
    wanted = load_examples(plain)
    assert [(one.instruction, one.output) for one in wanted] == [(row["instruction"], row["output"]) for row in ROWS]
    read = load_examples(packed)
    assert [one.content() for one in read] == [one.content() for one in wanted]
    assert [one.source.removeprefix(str(packed)) for one in read] == [
        one.source.removeprefix(str(plain)) for one in wanted
    ]


@pytest.mark.parametrize("packer", PACKERS)
def test_a_file_packed_in_pieces_is_read_whole(tmp_path: Path, packer: str):
    path = tmp_path / f"rows.jsonl{packer}"
    path.write_bytes(b"".join(PACKERS[packer](line.encode()) for line in as_lines().splitlines(keepends=True)))
    assert len(load_examples(path)) == 2


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_damaged_archives(tmp_path: Path, name: str, packer: str):
    whole = PACKERS[packer](TEXTS[name].encode())
    broken = [] if packer == ".zst" else [whole[:30] + b"\xff\xff\xff\xff" + whole[34:]]  # it has no checksum
    for damaged in (whole[: len(whole) // 2], b"no archive at all", *broken):
        path = tmp_path / f"{name}{packer}"
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{name}{packer} cannot be unpacked: ") as caught:
            load_examples(path)
        assert caught.value.hint


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.txt"])
def test_an_archive_of_nothing_but_blanks_is_not_unpacked_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, packer: str
):
    monkeypatch.setattr(opened, "MOST_UNPACKED", 2**20)
    path = tmp_path / f"{name}{packer}"
    path.write_bytes(PACKERS[packer](b" " * 2**26))
    with pytest.raises(DataError, match="unpacks to more than 250 times its size"):
        load_examples(path)
    path.write_bytes(PACKERS[packer](as_lines([{"text": " " * 2**19 + "x"}]).encode()))
    if name == "rows.jsonl":
        assert len(load_examples(path)) == 1, "what is small may be packed as tightly as it likes"


def test_only_text_is_unpacked(tmp_path: Path):
    for name in ("rows.parquet.gz", "rows.gz", "rows.docx.zst"):
        (tmp_path / name).write_bytes(gzip.compress(b"x"))
        with pytest.raises(DataError, match=r"no kind that can be read.*\.jsonl.*\.zst"):
            load_examples(tmp_path / name)


def test_a_folder_of_compressed_files(tmp_path: Path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl.gz").write_bytes(
            gzip.compress(as_lines([{"prompt": split, "completion": "a"}]).encode())
        )
    assert [one.instruction for one in load_examples(tmp_path, split="test")] == ["test"]


ENCODINGS = {
    "gb18030": "请给出三个保持健康的秘诀，例如均衡饮食。",
    "big5": "請給出三個保持健康的秘訣，例如均衡飲食。",
    "cp932": "健康を保つための秘訣を三つ教えてください。",
    "euc_jp": "健康を保つための秘訣を三つ教えてください。",
    "cp949": "건강을 유지하는 세 가지 비결을 알려 주세요.",
    "cp1251": "Назовите три совета о том, как оставаться здоровым.",
    "cp1252": "Größe und Gewicht: Bitte schließen Sie die Tür.",
    "utf-16": "请 Größe",
    "utf-16-le": "Name it, 请",
    "utf-16-be": "Name it, 请",
    "utf-32": "Name it, 请",
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.txt"])
def test_other_encodings_are_named_and_read_with_the_flag(tmp_path: Path, encoding: str, name: str):
    text = ENCODINGS[encoding]
    rows = [{"text": f"{text} {number}", "label": "a"} for number in range(3)]
    content = {
        "rows.json": as_json(rows),
        "rows.jsonl": as_lines(rows),
        "rows.csv": "text,label\n" + "".join(f'"{row["text"]}",a\n' for row in rows),
        "rows.txt": text,
    }[name]
    path = tmp_path / name
    path.write_bytes(content.encode(encoding))
    with pytest.raises(DataError, match="is not UTF-8") as caught:
        load_examples(path)
    assert f"--encoding {encoding}" in str(caught.value)
    read = load_examples(path, encoding=encoding)
    if name == "rows.txt":
        assert read[0].output == text
    else:
        assert [one.instruction for one in read] == [row["text"] for row in rows]
    assert read[0].source == (f"{path}:{2 if name in ('rows.csv', 'rows.json') else 1}")


def test_a_broken_byte_in_utf8_is_no_other_encoding(tmp_path: Path):
    for name in ("rows.jsonl", "rows.json"):
        path = tmp_path / name
        path.write_bytes(as_lines(ROWS[::-1]).encode().replace(b"red", b"r\xe9d"))
        with pytest.raises(DataError, match="What stands before is UTF-8: fix that place"):
            load_examples(path)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_file_that_is_not_in_the_encoding_that_was_named(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(TEXTS[name].encode())
    with pytest.raises(DataError, match=r"is not ascii: .*(at byte offset \d+|at its start)\. Name the right one"):
        load_examples(path, encoding="ascii")


def test_bytes_that_are_no_text_have_no_likely_encoding():
    assert likely_encodings(b"\x00\x01\x02\xff" * 100) == []
    assert likely_encodings(b"plain") == []
    for size in range(1, 40):  # found by fuzzing: an answer for no characters at all
        likely_encodings(bytes(range(128, 128 + size)))


@pytest.mark.parametrize(("delimiter", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")])
def test_another_delimiter_is_found_and_said(tmp_path: Path, delimiter: str, name: str):
    path = tmp_path / "rows.csv"
    path.write_text("\n" + as_csv(delimiter), encoding="utf-8")
    examples = load_examples(path)
    assert [(one.instruction, one.output) for one in examples] == [(row["instruction"], row["output"]) for row in ROWS]
    assert f"rows.csv has {name} between its columns" in examples.report.lines()
    path.write_text(as_csv(delimiter).replace('"', ""), encoding="utf-8")
    with pytest.raises(DataError, match="values, the header 2 columns"):  # the line break is in no quotes now
        load_examples(path)


def test_a_comma_comes_first(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text("instruction,output,a;b;c;d\nq;r,a,x\n")
    examples = load_examples(path)
    assert (examples[0].instruction, examples.report.notes) == ("q;r", [])
    path.write_text("text\none; two\n")
    assert load_examples(path)[0].output == "one; two"


def test_blanks_in_a_csv_header(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text(" Instruction , output\nq, a\n")
    examples = load_examples(path)
    assert (examples[0].instruction, examples[0].output) == ("q", " a")
    assert "columns used: Instruction as instruction, output" in examples.report.lines()
    path.write_text("q ,a\nx,y\n")
    assert load_examples(path, columns={"instruction": "q", "output": "a"})[0].instruction == "x"


def workbook(path: Path, **sheets: list[list[Any]]) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_excel(tmp_path: Path):
    rows = [
        [None],
        ["Instruction ", "Output", None, "note"],
        ["q", 2, None, None],
        [None],
        ["r", 2.5],
        ["s", True],
        ["t"],
    ]
    path = workbook(tmp_path / "rows.xlsx", first=rows, other=[["question", "answer"], ["x", "y"]])
    examples = load_examples(path)
    assert [(one.instruction, one.output) for one in examples] == [("q", "2"), ("r", "2.5"), ("s", "true")]
    assert [one.source for one in examples] == [f"{path}:{row}" for row in (3, 5, 6)]
    assert examples.report.empty_answers == 1
    assert "read the sheet first of rows.xlsx; not read: other" in examples.report.lines()
    assert load_examples(path, sheet="other")[0].instruction == "x"
    with pytest.raises(DataError, match=r"unknown sheet of .*'othr'\. Did you mean 'other'"):
        load_examples(path, sheet="othr")


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([["a", "a"], ["x", "y"]], r"rows\.xlsx:1: the header names 'a' more than once"),
        ([["instruction", "output"], ["x", "y", "z"]], r"rows\.xlsx:2: 'z' stands in a column without a name"),
        ([[None]], "is empty"),
        ([["instruction", "output"]], "holds no rows"),
    ],
)
def test_bad_sheets(tmp_path: Path, rows: list[list[Any]], complaint: str):
    with pytest.raises(DataError, match=complaint):
        load_examples(workbook(tmp_path / "rows.xlsx", only=rows))


def test_damaged_excel_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = workbook(tmp_path / "rows.xlsx", only=[["instruction", "output"], ["x", "y"]])
    whole = path.read_bytes()
    for damaged in (b"no archive", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read as an Excel file"):
            load_examples(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<a" * 10)
    with pytest.raises(DataError, match="cannot be read as an Excel file"):
        load_examples(path)
    monkeypatch.setattr("ptune.data.excel.MOST_UNPACKED", 2**20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", " " * 2**24)
    with pytest.raises(DataError, match="unpacks to more than 250 times its size"):
        load_examples(path)


def test_excel_without_openpyxl_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "rows.xlsx").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DataError, match=r"needs the package openpyxl to be read\. Run pip install openpyxl"):
        load_examples(tmp_path / "rows.xlsx")


def test_a_text_file_is_one_document(tmp_path: Path):
    path = tmp_path / "book.txt"
    path.write_text("\ufeffOne.\n\nTwo.\r\n", encoding="utf-8", newline="")
    examples = load_examples(path)
    assert list(examples) == [Example(instruction="", output="One.\n\nTwo.\r\n", document=True, source=f"{path}:1")]
    path.write_text(" \n")
    with pytest.raises(DataError, match="none of the 1 rows can be learned"):
        load_examples(path)


def test_text_files_of_a_folder_are_data_where_nothing_else_is(tmp_path: Path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    assert [one.output for one in load_examples(tmp_path)] == ["a.txt", "b.txt"]
    (tmp_path / "rows.jsonl").write_text(as_lines(), encoding="utf-8")
    examples = load_examples(tmp_path)
    assert len(examples) == 2
    assert not examples[0].document
    assert "text files beside other data, not read: a.txt, b.txt" in examples.report.lines()


def test_a_text_column_alone_is_whole_texts(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text(as_lines([{"text": "one"}, {"text": " "}, {"text": "one"}, {"text": "two"}]))
    examples = load_examples(path)
    assert [(one.output, one.document) for one in examples] == [("one", True), ("two", True)]
    assert examples.report.lines()[1:] == [
        "dropped 1 rows without any text",
        "dropped 1 rows that repeat an earlier one",
    ]
    path.write_text(as_lines([{"text": "one", "label": "a"}]))
    assert not load_examples(path)[0].document
    path.write_text(as_lines([{"body": "one", "url": "u"}]))
    assert load_examples(path, columns={"text": "body"})[0].document


def test_csv_fields_of_any_length_in_any_thread_keep_the_limit(tmp_path: Path):
    before = csv.field_size_limit()
    path = tmp_path / "rows.csv"
    path.write_text("instruction;output\nx;" + "y" * (before + 1) + "\n")
    assert len(load_examples(path)[0].output) == before + 1
    assert csv.field_size_limit() == before
