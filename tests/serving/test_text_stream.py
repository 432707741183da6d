"""Tokens become text piece by piece: whole characters, stop strings across tokens, nothing lost."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ptune.serving.engine.text_stream import TextStream


@pytest.fixture(scope="module")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, and one that is special."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: at for at, letter in enumerate(letters)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


def streamed(tokenizer: Any, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream, pieces = TextStream(tokenizer, stop), []
    for token in ids:
        stream.push(token)
        pieces.append(stream.take())
        if stream.stopped:
            break
    stream.finish()
    return [*pieces, stream.take(last=True)], stream


TEXT = "naïve 软提示 🙂👩‍👩‍👧 — ﬁne\n\tأهلا  end"


def test_characters_of_several_tokens_come_whole(byte_tokenizer: Any) -> None:
    ids = byte_tokenizer(TEXT)["input_ids"]
    assert len(ids) == len(TEXT.encode())
    pieces, _ = streamed(byte_tokenizer, ids)
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) == len(TEXT)


def test_special_tokens_are_left_out(byte_tokenizer: Any) -> None:
    ids = byte_tokenizer("a<eos>b")["input_ids"]
    assert byte_tokenizer.eos_token_id in ids
    assert "".join(streamed(byte_tokenizer, ids)[0]) == "ab"


def test_bytes_that_are_no_text_come_as_the_tokenizer_writes_them(byte_tokenizer: Any) -> None:
    """What is streamed is what all tokens make at once, however long they are no text."""
    draw = random.Random(0)
    for length in (1, 2, 3, 9, 40):
        ids = [draw.randrange(256) for _ in range(length)]
        pieces, _ = streamed(byte_tokenizer, ids)
        whole = byte_tokenizer.decode(ids, skip_special_tokens=True)
        assert "".join(pieces).replace("\ufffd", "") == whole.replace("\ufffd", "")
    assert "".join(streamed(byte_tokenizer, byte_tokenizer("🙂")["input_ids"][:3])[0]) == "\ufffd"


def test_words_that_begin_with_a_space(tiny_tokenizer: Any) -> None:
    text = "Human: Where is my order? Assistant: It left the store today."
    ids = tiny_tokenizer(text)["input_ids"]
    assert "".join(streamed(tiny_tokenizer, ids)[0]) == text


@pytest.mark.parametrize(
    ("text", "stop", "wanted"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("thr", "o t"), "one tw"),
        ("one two three", ("one",), ""),
        ("ababac", ("abac",), "ab"),
        ("aaab", ("aab",), "a"),
        ("one two", ("two!",), "one two"),
        ("one two", ("two three",), "one two"),
        ("x\n\nHuman: y", ("\n\nHuman:",), "x"),
        ("naïve 🙂 end", ("🙂",), "naïve "),
        ("first second", ("second", "first"), ""),
    ],
)
def test_stop_strings(byte_tokenizer: Any, text: str, stop: tuple[str, ...], wanted: str) -> None:
    """No piece that was sent is ever taken back: what may begin a stop string is held until it is known."""
    pieces, stream = streamed(byte_tokenizer, byte_tokenizer(text)["input_ids"], stop)
    assert "".join(pieces) == wanted
    assert stream.stopped is (wanted != text)


def test_stop_strings_against_a_search_in_the_whole(byte_tokenizer: Any) -> None:
    draw = random.Random(1)
    for _ in range(300):
        text = "".join(draw.choice("ab ") for _ in range(draw.randrange(1, 14)))
        stop = tuple(
            "".join(draw.choice("ab ") for _ in range(draw.randrange(1, 5))) for _ in range(draw.randrange(1, 4))
        )
        # Tokens are letters here, so the stop string that is complete first wins; of those, the one that began first.
        ends = [(text.find(one) + len(one), text.find(one)) for one in stop if one in text]
        wanted = text
        if ends:
            end = min(end for end, _ in ends)
            wanted = text[: min(start for at, start in ends if at == end)]
        assert "".join(streamed(byte_tokenizer, byte_tokenizer(text)["input_ids"], stop)[0]) == wanted, (text, stop)
