"""Data files that cannot be used, or were made to do harm."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

from commands import Ran, run
from ptune.data.opened import MOST_UNPACKED
from robustness.workshop import ROWS, Case, Place, Words
from workbooks import workbook

_G = "data"
_OK = '{"instruction": "a", "output": "b"}'


def _parquet(change: Any = bytes, **columns: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table(columns or {"instruction": ["a"], "output": ["b"]}), out)
    return bytes(change(out.getvalue()))


def _arrow(change: Any = bytes) -> bytes:
    import pyarrow as pa

    out = io.BytesIO()
    table = pa.table({"instruction": ["a", "b"], "output": ["c", "d"]})
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return bytes(change(out.getvalue()))


def _far_offset(content: bytes) -> bytes:
    """The end of the second text, a million bytes behind the buffer."""
    offsets = struct.pack("<iii", 0, 1, 2)
    assert offsets in content
    return content.replace(offsets, struct.pack("<iii", 0, 1, 1_000_000), 1)


def _far_metadata(content: bytes) -> bytes:
    """The first message says that its metadata have 2 GiB."""
    return content[:4] + struct.pack("<i", 2**31 - 1) + content[8:]


def _unknown_class(at: Place) -> Words:
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    table = pa.table({"text": ["a"], "label": pa.array([7])}, metadata={b"huggingface": json.dumps(features).encode()})
    pq.write_table(table, at.at / "rows.parquet")
    return at.train(data=at.at / "rows.parquet")


def _arrow_folder(filename: Any) -> Any:
    def make(at: Place) -> Words:
        at.secret()
        at.file("other.arrow", _arrow())
        state = at.file("saved/state.json", json.dumps({"_data_files": [{"filename": filename}]}))
        return at.train(data=state.parent)

    return make


def _splits(at: Place) -> Words:
    state = at.file("saved/dataset_dict.json", json.dumps({"splits": ["../train"]}))
    return at.train(data=state.parent)


def _pipe(at: Place) -> Words:
    os.mkfifo(at.at / "rows.jsonl")
    return at.train(data=at.at / "rows.jsonl")


def _zst(content: bytes) -> bytes:
    import pyarrow as pa

    return bytes(pa.Codec("zstd").compress(content, asbytes=True))


def _several(*weights: float) -> Callable[[Place], Words]:
    """A run on two files with these weights."""

    def make(at: Place) -> Words:
        words = at.train(data=at.file("a.json", ROWS))
        other = at.file("b.json", '[{"prompt": "e", "response": "f"}, {"prompt": "g", "response": "h"}]')
        after = words.index("--data") + 2
        return [*words[:after], other, "--data-weights", *weights, *words[after:]]

    return make


def _without_openpyxl(at: Place) -> Callable[[], Ran]:
    words = at.on_data("rows.xlsx", workbook())

    def call() -> Ran:
        with mock.patch.dict(sys.modules, {"openpyxl": None}):
            return run(*words)

    return call


def _rows(name: str, content: str | bytes, *says: str, what: str, **flags: object) -> Case:
    needs = "openpyxl" if name.endswith(".xlsx") else None
    return Case(_G, what, lambda at: at.on_data(name, content, **flags), says, needs=needs)


DATA = (
    Case(_G, "no such file", lambda at: at.train(data=at.at / "no.json"), ("no file", "no.json")),
    Case(
        _G,
        "a name nearly right",
        lambda at: at.train(data=at.file("rows.json", ROWS).with_name("rosw.json")),
        ("Did you mean", "rows.json"),
    ),
    Case(
        _G, "a home of nobody's", lambda at: at.train(data="~nobody-of-that-name/rows.json"), ("~nobody-of-that-name",)
    ),
    Case(_G, "a folder without data", lambda at: at.train(data=at.file("d/x.md", "").parent), ("holds no data file",)),
    Case(_G, "a pipe", _pipe, ("rows.jsonl is not a regular file",)),
    _rows("rows.docx", "x", "no kind that can be read", ".jsonl", what="a file of another kind"),
    _rows("rows.json", "", "rows.json is empty", what="an empty file"),
    _rows("rows.json", "[]", "holds no rows", what="a list without rows"),
    _rows("rows.json", f"[{_OK},\n{_OK},\n\n{{'a'}}]", "rows.json:4:", "row 3", what="broken JSON in row 3"),
    _rows("rows.jsonl", f"{_OK}\n{_OK}\n{{\n", "rows.jsonl:3:", "row 3", what="broken JSON lines in row 3"),
    _rows("rows.json", "[" * 100_000, "nested too deeply", what="100,000 lists in one another"),
    _rows(
        "rows.json",
        '[{"instruction": "a", "output": ' + "[" * 900 + "]" * 900 + "}]",
        "'output' is a list",
        "not text",
        what="an answer of 900 lists in one another",
    ),
    _rows(
        "rows.jsonl", '{"instruction": "' + "x" * 5_000_000, "rows.jsonl:1:", "row 1", what="one broken line of 5 MB"
    ),
    _rows(
        "rows.json",
        '[{"instruction": "a", "output": ' + "9" * 5000 + "}]",
        "row 1",
        "digits",
        what="a number of 5,000 digits",
    ),
    _rows(
        "rows.json",
        '[{"instruction": "a", "output": {"text": "b"}}]',
        "'output' is an object",
        "not text",
        what="an object for an answer",
    ),
    _rows(
        "rows.json", '[{"instruction": "a", "output": "\\ud83d"}]', "half of a surrogate pair", what="half a character"
    ),
    _rows(
        "rows.json",
        '[{"question": "a", "reply": "b"}]',
        "question (text), reply (text)",
        "--columns instruction=question output=reply",
        what="columns of no layout",
    ),
    _rows("rows.json", '[{"\\u001b[2Ja": "a", "b": "b"}]', "\\x1b[2Ja", what="a column that clears the terminal"),
    _rows(
        "rows.json",
        json.dumps([{f"c{n}": "x" for n in range(5000)}]),
        "(5,000 in all)",
        what="5,000 columns of no layout",
    ),
    _rows("rows.json", ROWS, "no column 'q'", what="a mapped column that is not there", columns="instruction=q"),
    _rows(
        "rows.json",
        '[{"instruction": "a", "output": " "}]',
        "none of the 1 rows can be learned: 1 have no answer",
        what="no answer at all",
    ),
    _rows(
        "rows.json",
        json.dumps([{"instruction": "a" * 60, "output": "b"}]),
        "no answer is left",
        "Raise max_length",
        what="every answer cut off",
        max_length=20,
    ),
    _rows("rows.json", ROWS.encode("utf-16"), "not UTF-8", "--encoding utf-16", what="UTF-16"),
    _rows("rows.json", '[{"instruction": "é", "output": "b"}]'.encode("latin-1"), "byte offset 18", what="Latin-1"),
    _rows(
        "rows.jsonl",
        '{"content": "类型#裤*版型#宽松", "summary": "宽松的裤子"}'.encode("gb18030"),
        "not UTF-8",
        "Pass --encoding gb18030",
        what="GB18030",
    ),
    _rows(
        "rows.jsonl", ROWS.encode("utf-16"), "is not gb18030", "--encoding", what="another encoding", encoding="gb18030"
    ),
    _rows("rows.json", ROWS, "unknown encoding 'gb1803'", what="an encoding that is none", encoding="gb1803"),
    _rows("rows.jsonl", b"\x00\x01\x02\xff" * 100, "rows.jsonl", what="bytes that are no text"),
    _rows(
        "rows.jsonl",
        '{"messages": [{"role": "user", "content": "q"}]}',
        "none of the 1 rows can be learned: 1 have no answer",
        what="a conversation without an answer",
    ),
    _rows(
        "rows.jsonl",
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": "http://x/y.png"}]},
                    {"role": "assistant", "content": "a"},
                ]
            }
        ),
        "part 1 of the content of message 1 (user) is of the type 'image_url', not text",
        what="a picture in a conversation",
    ),
    _rows(
        "rows.jsonl",
        '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0.5}]}',
        "weight of message 2 is a number (0.5)",
        what="half a weight for a message",
    ),
    _rows(
        "rows.jsonl",
        '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [{"name": "f"}]}]}',
        "turn 2 has tool_calls, which the tutorial template cannot write",
        "Use the template 'chat'",
        what="a tool call for a template that has no place for it",
    ),
    _rows(
        "rows.jsonl",
        '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "train": false}]}',
        "nothing is learned of any of the 1 rows",
        what="conversations of which nothing is learned",
    ),
    _rows(
        "rows.json",
        '{"dev": [{"prompt": "q", "completion": "a"}]}',
        "rows.json: 'train'. Known: dev",
        what="an object without the split",
    ),
    _rows(
        "rows.jsonl",
        '{"text": "a", "label": 1}\n{"text": "b"}',
        "rows.jsonl:2: the row has no 'label'",
        what="a text among labelled ones",
    ),
    _rows("rows.jsonl.gz", b"no archive", "rows.jsonl.gz cannot be unpacked", what="no gzip file"),
    _rows(
        "rows.jsonl.gz",
        gzip.compress(f"{_OK}\n".encode() * 100)[:-20],
        "rows.jsonl.gz cannot be unpacked",
        what="a gzip file cut short",
    ),
    _rows(
        "rows.jsonl.zst",
        _zst(b" " * (MOST_UNPACKED + 1)),
        "unpacks to more than 250 times its size",
        what="256 MiB of blanks in a few kilobytes",
    ),
    _rows(
        "rows.parquet.gz", gzip.compress(_parquet()), "no kind that can be read", what="a Parquet file in a gzip file"
    ),
    _rows("rows.xlsx", b"no archive", "cannot be read as an Excel file", what="no Excel file"),
    _rows(
        "rows.xlsx",
        workbook(lambda text: text.replace(b"</c>", b"")),
        "cannot be read as an Excel file",
        what="an Excel file with a broken sheet",
    ),
    _rows("rows.xlsx", workbook(), "rows.xlsx: 'none'. Known: first", what="a sheet that is not there", sheet="none"),
    Case(_G, "an Excel file without openpyxl", _without_openpyxl, ("Run pip install openpyxl",)),
    Case(_G, "two sources and one weight", _several(2), ("data has 2 sources, data_weights has 1 weights",)),
    Case(_G, "a weight of nothing", _several(1, 0), ("data_weights must be above 0 and at most 1000, not 0",)),
    Case(_G, "a weight that leaves nothing", _several(1, 0.1), ("data_weights: 0.1 of the 2 rows of", "leaves none")),
    _rows(
        "rows.csv",
        'instruction,output\nx,1\n"never closed,2\ny,3\n',
        "rows.csv:3:",
        "quotes",
        what="a quote that is never closed",
    ),
    _rows(
        "rows.csv",
        "instruction,output\nx,1,2\n",
        "3 values",
        "2 columns",
        what="a row of three values under two columns",
    ),
    _rows("rows.csv", ",".join(["c"] * 200_000) + "\nx\n", "'c' more than once", what="200,000 columns of one name"),
    _rows("rows.parquet", b"PAR1 not really PAR1", "cannot be read as a Parquet file", what="no Parquet file"),
    _rows(
        "rows.parquet",
        _parquet(lambda content: content[:-40]),
        "cannot be read as a Parquet file",
        what="a Parquet file cut short",
    ),
    _rows(
        "rows.parquet",
        _parquet(lambda content: content[:-8] + struct.pack("<I", 2**31) + b"PAR1"),
        "cannot be read as a Parquet file",
        what="a Parquet footer of 2 GiB",
    ),
    _rows(
        "rows.parquet",
        _parquet(instruction=["a"], output=[b"\xff"]),
        "rows.parquet[0]: 'output' is bytes",
        what="bytes in a Parquet file",
    ),
    Case(_G, "a class without a name", _unknown_class, ("rows.parquet[0]: 'label' is class 7; there are names for 2",)),
    _rows("rows.arrow", b"ARROW? no", "cannot be read as an Arrow file", what="no Arrow file"),
    _rows(
        "rows.arrow",
        _arrow(lambda content: content[:-200]),
        "cannot be read as an Arrow file",
        what="an Arrow file cut short",
    ),
    _rows(
        "rows.arrow",
        _arrow(_far_offset),
        "cannot be read as an Arrow file",
        what="an Arrow text that ends outside its buffer",
    ),
    _rows("rows.arrow", _arrow(_far_metadata), "cannot be read as an Arrow file", what="an Arrow message of 2 GiB"),
    Case(
        _G,
        "an Arrow folder that names ../other.arrow",
        _arrow_folder("../other.arrow"),
        ("'../other.arrow', which is no file of its folder",),
    ),
    Case(_G, "an Arrow folder that names a number", _arrow_folder(5), ("state.json names 5",)),
    Case(_G, "splits that lead upwards", _splits, ("'../train', which is no file of its folder",)),
)
