"""The files of a study: what was cut off is done again, and nothing of another study is taken for this one's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptune.compression.study_files import (
    QUESTIONS,
    ROWS,
    STUDIED,
    LinesFile,
    check_study,
    open_study,
    read_labels,
    tokens_digest,
    write_labels,
)
from ptune.data.soft_labels import SoftLabels
from ptune.errors import DataError, OutputError

LINES = [{"instruction": "Wo ist „es“?\u2028", "output": "a\nb"}, {"instruction": "水壶\ud800", "seed": 3}, {}]


def test_lines_come_back(tmp_path: Path):
    path = tmp_path / "lines.jsonl"
    file = LinesFile(path)
    assert file.lines == []
    assert not path.exists()
    file.add(LINES[:1])
    file.add(LINES[1:])
    assert file.lines == LINES
    there = path.read_bytes()
    assert there.count(b"\n") == len(LINES)
    assert "水壶".encode() in there
    assert LinesFile(path).lines == LINES
    assert path.read_bytes() == there


def test_a_line_that_was_cut_off_is_forgotten(tmp_path: Path):
    path = tmp_path / "lines.jsonl"
    LinesFile(path).add(LINES)
    whole = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        file = LinesFile(path)
        # A line is whole without its end too.
        kept = sum(end - 1 <= cut for end in ends)
        assert file.lines == LINES[:kept]
        assert path.read_bytes() == whole[: [0, *ends][kept]]
        file.add(LINES[kept:])
        assert path.read_bytes() == whole


@pytest.mark.parametrize("line", [b"[1, 2]", b'"text"', b"\xff\xfe", b"[" * 100_000, b"nothing"])
def test_a_broken_line_is_named_and_nothing_behind_it_is_lost(line: bytes, tmp_path: Path):
    path = tmp_path / "lines.jsonl"
    content = b'{"a": 1}\n' + line + b'\n{"b": 2}\n'
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"lines\.jsonl:2 is no JSON object"):
        LinesFile(path)
    assert path.read_bytes() == content


def test_keep(tmp_path: Path):
    path = tmp_path / "lines.jsonl"
    file = LinesFile(path)
    file.keep(0)
    assert not path.exists()
    file.add(LINES)
    file.keep(5)
    file.keep(2)
    assert file.lines == LinesFile(path).lines == LINES[:2]


def test_a_place_that_cannot_be_written(tmp_path: Path):
    with pytest.raises(OutputError, match=r"cannot write .*lines\.jsonl: No such file or directory"):
        LinesFile(tmp_path / "missing" / "lines.jsonl").add(LINES)


STUDY = {"text": "abc", "kinds": ("question", "use"), "top_k": 64}


def test_the_same_study_goes_on(tmp_path: Path):
    folder = tmp_path / "study"
    open_study(folder, STUDY, begin=True)
    for name in (QUESTIONS, ROWS, "teacher-00000.safetensors", "mine.txt"):
        (folder / name).write_text("x")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    open_study(folder, STUDY, begin=False)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    open_study(folder, STUDY, begin=True)
    assert sorted(path.name for path in folder.iterdir()) == ["mine.txt", STUDIED]


def test_another_study_is_refused(tmp_path: Path):
    folder = tmp_path / "study"
    open_study(folder, STUDY, begin=True)
    (folder / ROWS).write_text("x")
    for other, names in (
        ({**STUDY, "text": "other"}, "other text."),
        ({**STUDY, "text": "other", "top_k": 8}, "other text, top_k."),
        ({"text": "abc", "top_k": 64}, "other kinds."),
        ({**STUDY, "seed": 1}, "other seed."),
    ):
        with pytest.raises(OutputError) as caught:
            open_study(folder, other, begin=False)
        assert str(folder) in str(caught.value)
        assert names in str(caught.value)
        assert "--overwrite" in (caught.value.hint or "")
    check_study(folder, {"text": STUDY["text"]})
    with pytest.raises(OutputError, match="other text") as caught:
        check_study(folder, {"text": "other"})
    assert "--study" in (caught.value.hint or "")
    assert (folder / ROWS).read_text() == "x"


@pytest.mark.parametrize("damage", ["", "{", "[1]", "null", "[" * 100_000])
def test_a_damaged_study_is_another(damage: str, tmp_path: Path):
    open_study(tmp_path, STUDY, begin=True)
    (tmp_path / STUDIED).write_text(damage)
    with pytest.raises(OutputError, match="holds another study: other text, kinds, top_k"):
        open_study(tmp_path, STUDY, begin=False)


def test_names_in_a_foreign_study_are_shown_harmless(tmp_path: Path):
    (tmp_path / STUDIED).write_text(json.dumps({"\x1b[31mred": 1}))
    with pytest.raises(OutputError) as caught:
        open_study(tmp_path, {}, begin=False)
    assert "\x1b" not in str(caught.value)


LABELS = [
    SoftLabels(torch.tensor([[5, 1], [7, 2]]), torch.tensor([[-0.1, -3.0], [-0.5, -1.0]])),
    SoftLabels(torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 2)),
    SoftLabels(torch.tensor([[9, 4]]), torch.tensor([[-0.25, -2.0]])),
]


def same(found: list[SoftLabels] | None) -> bool:
    return found is not None and all(
        torch.equal(one.ids, other.ids) and torch.equal(one.log_probs, other.log_probs)
        for one, other in zip(found, LABELS, strict=True)
    )


def test_soft_labels_come_back(tmp_path: Path):
    assert read_labels(tmp_path, 3, "digest") is None
    write_labels(tmp_path, 3, "digest", LABELS)
    found = read_labels(tmp_path, 3, "digest")
    assert same(found)
    assert found is not None
    assert found[0].ids.dtype == torch.int64
    assert read_labels(tmp_path, 3, "another") is None
    assert read_labels(tmp_path, 4, "digest") is None


def test_damaged_soft_labels_are_none(tmp_path: Path):
    write_labels(tmp_path, 0, "digest", LABELS)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for cut in (0, 4, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert read_labels(tmp_path, 0, "digest") is None
    path.write_bytes(whole)
    assert same(read_labels(tmp_path, 0, "digest"))
    meta = {"tokens_sha256": "digest"}
    tensors = load_file(path)
    for other in (
        {},
        {"ids": tensors["ids"]},
        {**tensors, "counts": tensors["counts"] + 1},
        {**tensors, "counts": torch.tensor([4, -1, 0], dtype=torch.int32)},
        {**tensors, "log_probs": tensors["log_probs"][:-1].clone()},
        {**tensors, "log_probs": tensors["log_probs"][:, :1].clone()},
        {**tensors, "counts": torch.tensor([[3]], dtype=torch.int32)},
        {**tensors, "counts": torch.tensor(3, dtype=torch.int32)},
        {**tensors, "ids": tensors["ids"].flatten(), "log_probs": tensors["log_probs"].flatten()},
        {**tensors, "ids": torch.tensor(1, dtype=torch.int32), "log_probs": torch.tensor(1.0)},
    ):
        save_file(other, path, meta)
        assert read_labels(tmp_path, 0, "digest") is None, other
    save_file(tensors, path)  # of nobody knows which tokens
    assert read_labels(tmp_path, 0, "digest") is None


def test_the_digest_is_of_every_token_and_row():
    rows = [[1, 2, 3], [4], []]
    assert tokens_digest(rows) == tokens_digest([tuple(row) for row in rows])
    others = [[[1, 2], [3, 4], []], [[1, 2, 3], [4]], [[4], [1, 2, 3], []], [[1, 2, 3, 4], [], []], [[12, 3], [4], []]]
    assert len({tokens_digest(one) for one in [rows, *others]}) == 6
