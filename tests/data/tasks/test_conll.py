"""CoNLL files: words and tags of sentences, comments and documents passed over, hashtags kept."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from ptune.choices import CLASSIFY, TAG
from ptune.data.tasks.task_records import load_task_examples
from ptune.errors import DataError

CONLL_2003 = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""


@pytest.mark.parametrize("name", ["a.conll", "a.bio", "a.iob", "a.txt", "a.CONLL", "a.conll.gz"])
def test_columns_sentences_and_documents(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(gzip.compress(CONLL_2003.encode()) if name.endswith("gz") else CONLL_2003.encode())
    examples = load_task_examples(path, TAG)
    assert [(one.words, one.tags) for one in examples] == [
        (("EU", "rejects"), ("B-ORG", "O")),
        (("Peter", "Blackburn"), ("B-PER", "I-PER")),
    ]
    assert [one.source for one in examples] == [f"{path}:3", f"{path}:6"]


def test_comments_hashtags_and_carriage_returns(tmp_path: Path):
    path = tmp_path / "tweets.conll"
    path.write_bytes(
        b"# id 12 domain=en\r\n#begin document\r\nat\tO\r\n#Rome\tB\r\n#\tO\r\n\r\n"
        b"# newdoc\tfoo\r\nNew York\tB\r\n \t \r\n"
    )
    examples = load_task_examples(path, TAG)
    assert [(one.words, one.tags) for one in examples] == [
        (("at", "#Rome", "#"), ("O", "B", "O")),
        (("New York",), ("B",)),
    ]
    assert any("3 lines that begin with # are comments" in line for line in examples.report.lines())


def test_only_the_task_tag_reads_them(tmp_path: Path):
    path = tmp_path / "a.conll"
    path.write_text(CONLL_2003)
    with pytest.raises(DataError, match="of no kind that can be read"):
        load_task_examples(path, CLASSIFY)
    with pytest.raises(DataError, match=r"there is no file.*b.iob"):
        load_task_examples("b.iob", TAG)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.txt").write_text("a O\n\nb B\n")
    (folder / "test.txt").write_text("c O\n")
    assert [one.words for one in load_task_examples(folder, TAG)] == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a O\nb X O\n", r"a.txt:2: the line has 3 columns divided by blanks \('b X O'\), the first of the file 2"),
        ("This is a text.\nIt has no tags at all\n", r"a.txt:2: .* Write a word and its tag a line"),
        ("a\tO\n\tO\n", r"a.txt:2: the word is empty"),
        ("1\ta\ta\tX\t_\t_\t0\troot\t_\t_\n", r"looks like CoNLL-U: ten columns"),
        ("word\nalone\n", r"fit no layout of the task tag: words \(a list\).* words=<column> tags=<column>"),
        ("# only a comment\n\n", "holds no rows"),
    ],
)
def test_files_that_are_not_of_that_form(tmp_path: Path, text: str, complaint: str):
    path = tmp_path / "a.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=complaint):
        load_task_examples(path, TAG)


def test_words_without_tags(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("EU\nrejects\n\nit\n")
    examples = load_task_examples(path, TAG, require_labels=False)
    assert [one.words for one in examples] == [("EU", "rejects"), ("it",)]
