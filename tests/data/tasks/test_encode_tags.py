"""Tags at the first token of each word, for every family of tokenizers, beside what the tokenizer says of words."""

from __future__ import annotations

import random
from typing import Any

import pytest
from transformers import RobertaTokenizer

from ptune.choices import TAG
from ptune.data.tasks.encode import encode_task
from ptune.data.tasks.encode_tags import first_columns
from ptune.data.tasks.task_example import TaskExample
from ptune.errors import DataError, ModelError

LABELS = ("O", "B-X", "I-X")
WORDS = ["EU", "rejects", "lamb", "Blackburn", "1996", ".", "broken", "phone?!", "naïve", "日本", "ok🙂", "x", "-"]


def sentences(count: int = 40) -> list[TaskExample]:
    rng = random.Random(0)
    rows = []
    for at in range(count):
        words = tuple(rng.choices(WORDS, k=rng.randint(1, 9)))
        rows.append(TaskExample(words=words, tags=tuple(rng.choices(LABELS, k=len(words))), source=f"f:{at}"))
    return rows


def tagged(labels: list[int]) -> list[tuple[int, str]]:
    return [(column, LABELS[label]) for column, label in enumerate(labels) if label != -100]


def test_bert_as_its_own_word_ids_have_it(bert: Any):
    rows = sentences()
    made = encode_task(rows, bert, TAG, labels=LABELS)
    for row, one in zip(made.dataset.to_list(), rows, strict=True):
        encoded = bert(list(one.words), is_split_into_words=True)
        assert row["input_ids"] == encoded["input_ids"]
        ids = encoded.word_ids()
        expected = [(ids.index(number), tag) for number, tag in enumerate(one.tags)]
        assert tagged(row["labels"]) == expected
    assert made.report.words_without_token == 0


def test_every_tokenizer_by_the_text_of_its_tokens(tokenizer: Any):
    rows = sentences()
    made = encode_task(rows, tokenizer, TAG, labels=LABELS)
    for row, one, columns in zip(made.dataset.to_list(), rows, made.word_columns, strict=True):
        text = " ".join(one.words)
        encoded = tokenizer(text)
        assert row["input_ids"] == encoded["input_ids"]
        start = 0
        expected = []
        for word, tag in zip(one.words, one.tags, strict=True):
            # The tokenizer's own way from a character to its token.
            expected.append((encoded.char_to_token(start), tag))
            start += len(word) + 1
        found = tagged(row["labels"])
        assert [tag for _, tag in found] == [tag for _, tag in expected]
        assert [column for column, _ in found] == list(columns)
        offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        for (column, _), (other, _) in zip(found, expected, strict=True):
            # T5 has the blank's own token before a word it cuts; both begin at the word's first character.
            assert max(offsets[column][0], 0) in (offsets[other][0], offsets[other][0] - 1) or column == other


def test_byte_level_words_keep_their_blanks(gpt2: Any, roberta: Any):
    one = TaskExample(words=("EU", "rejects", "lamb"), tags=("B-X", "O", "O"))
    for tokenizer in (gpt2, roberta):
        (row,) = encode_task([one], tokenizer, TAG, labels=LABELS).dataset.to_list()
        first = [tokenizer.convert_ids_to_tokens(row["input_ids"][column]) for column, _ in tagged(row["labels"])]
        assert first[0] == "EU"
        assert all(token.startswith("Ġ") for token in first[1:])
        glued = tokenizer(list(one.words), is_split_into_words=True)["input_ids"]
        assert row["input_ids"] != glued
    one = TaskExample(words=("great", "was", "lamb"), tags=("B-X", "O", "O"))
    spaced = RobertaTokenizer(vocab=roberta.get_vocab(), merges=_merges(roberta), add_prefix_space=True)
    (row,) = encode_task([one], spaced, TAG, labels=LABELS).dataset.to_list()
    encoded = spaced(list(one.words), is_split_into_words=True)
    assert row["input_ids"] == encoded["input_ids"]
    assert [column for column, _ in tagged(row["labels"])] == [encoded.word_ids().index(number) for number in range(3)]


def _merges(tokenizer: Any) -> list[tuple[str, str]]:
    import json

    return [tuple(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]


def test_words_cut_off_without_token_or_tag(bert: Any):
    rows = [
        TaskExample(words=("it", "was", "great", "great"), tags=("O", "B-X", "I-X", "O"), source="f:1"),
        TaskExample(words=("it", "\u200b", "was"), tags=("O", "O", ""), source="f:2"),
        TaskExample(words=("\u200b",), tags=("O",), source="f:3"),
    ]
    made = encode_task(rows, bert, TAG, labels=LABELS, max_length=5)
    assert [len(row["input_ids"]) for row in made.dataset.to_list()] == [5, 4]
    assert [tagged(row["labels"]) for row in made.dataset.to_list()] == [[(1, "O"), (2, "B-X"), (3, "I-X")], [(1, "O")]]
    assert made.word_columns == ((1, 2, 3, -1), (1, -1, 2))
    report = made.report
    assert (report.words_cut, report.truncated, report.words_without_token, report.without_tokens) == (1, 1, 1, 1)
    assert made.rows == (0, 1)
    assert "1 words lie behind max_length 5, and are not learned" in report.lines()


def test_first_columns_by_hand():
    assert first_columns(["ab", "c"], [(0, 0), (0, 1), (1, 2), (2, 4), (0, 0)]) == [1, 3]
    assert first_columns(["ab", "c"], [(0, 2), (2, 3), (3, 4)]) == [0, 2]  # a token of the blank alone
    assert first_columns(["ab", "c"], [(0, 4)]) == [0, -1]
    assert first_columns(["", "c"], [(1, 2)]) == [-1, 0]


def test_without_tags_and_with_unknown_ones(bert: Any):
    made = encode_task([TaskExample(words=("it", "was"))], bert, TAG)
    assert "labels" not in made.dataset.column_names
    assert made.word_columns == ((1, 2),)
    with pytest.raises(DataError, match=r"f:4: the label 'B-Y' is not among"):
        encode_task([TaskExample(words=("it",), tags=("B-Y",), source="f:4")], bert, TAG, labels=LABELS)


def test_a_tokenizer_that_is_not_fast_is_refused():
    from transformers import ByT5Tokenizer

    with pytest.raises(ModelError, match=r"ByT5Tokenizer cannot say which characters a token is of, .* task tag needs"):
        encode_task([TaskExample(words=("it",), tags=("O",))], ByT5Tokenizer(), TAG, labels=LABELS)
