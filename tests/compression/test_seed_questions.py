"""What the model is asked to ask, and the question in what it wrote."""

from __future__ import annotations

from collections import Counter

import pytest

from ptune.compression.compress_settings import KINDS
from ptune.compression.excerpts import Excerpt
from ptune.compression.seed_questions import ASKED, NAMED, Seed, cleaned, named, seeds


def test_every_kind_is_asked_or_named():
    assert {*ASKED, *NAMED} == set(KINDS)
    assert not {*ASKED} & {*NAMED}


def test_every_kind_of_every_excerpt_in_turn():
    found = seeds(("detail", "passage"), 3, 15)
    assert len(found) == 15
    assert Counter((one.kind, one.excerpt) for one in found[:6]) == {
        (kind, excerpt): 1 for kind in ("detail", "passage") for excerpt in range(3)
    }
    assert [one.place for one in found] == [0] * 6 + [1] * 6 + [2] * 3
    assert found[6:12] == [Seed(one.kind, one.excerpt, 1) for one in found[:6]]
    assert seeds(KINDS, 4, 5) == seeds(KINDS, 4, 50)[:5]  # more questions go on behind fewer


@pytest.mark.parametrize(
    ("written", "question"),
    [
        ("What does the kettle cost?", "What does the kettle cost?"),
        ("  Question: What does it cost?\n\nAnswer: 40.", "What does it cost?"),
        ("Q: Where is the lamp? It is here.", "Where is the lamp?"),
        ("**Question 1:** ok\nWho moved the lamp?", "Who moved the lamp?"),
        ('1. "Where does the ladder stand?"', "Where does the ladder stand?"),
        ("- 2) Where does the ladder stand?", "Where does the ladder stand?"),
        ("# Question\nWhere does the ladder stand?", "Where does the ladder stand?"),
        ("“Where does the ladder stand?”", "Where does the ladder stand?"),
        ("List what stands in the hall", "List what stands in the hall"),
        ("Sure!\n\nHere you are:\n", "Here you are:"),
        ("3.5 percent of what is paid back?", "3.5 percent of what is paid back?"),
        ("10:30 is the time of which train?", "10:30 is the time of which train?"),
        ("Quite how long does it take?", "Quite how long does it take?"),
        ("水壶的价格是多少？", "水壶的价格是多少？"),
        ("问题：水壶的价格是多少？", "水壶的价格是多少？"),
        ("问题: 水壶的价格是多少？\n四十元。", "水壶的价格是多少？"),
        ("水壶的价格是多少？四十元。", "水壶的价格是多少？"),
    ],
)
def test_the_question_in_what_was_written(written: str, question: str):
    assert cleaned(written) == question


@pytest.mark.parametrize("written", ["", "\n\n", "Yes.", "ok?\nno", "1.", "***", "Question:", "多少"])
def test_no_question(written: str):
    assert cleaned(written) is None


def test_a_long_line_of_signs_ends():
    assert cleaned('"' * 20_000) is None
    assert cleaned("* " * 20_000) is None
    assert cleaned("1. " * 5_000 + "Where does it stand?") == "Where does it stand?"


def test_a_part_is_named_by_its_first_words():
    text = "The lamp is broken. Short. Nobody answers the phone!\n\nThe kettle left the store"
    sentences = ("The lamp is broken.", "Nobody answers the phone!", "The kettle left the store")
    for kind, form in NAMED.items():
        for place in range(7):
            found = named(Seed(kind, 0, place), Excerpt(text, 20, 0))
            assert found == form.format(beginning=sentences[place % 3])
    many = " ".join(f"word{at}" for at in range(40))
    assert named(Seed("passage", 0, 0), Excerpt(many, 80, 0)) == NAMED["passage"].format(
        beginning=" ".join(f"word{at}" for at in range(12))
    )
    assert named(Seed("summary", 0, 0), Excerpt('He said "no" to her.', 8, 0)) == NAMED["summary"].format(
        beginning="He said 'no' to her."
    )
    assert named(Seed("summary", 0, 3), Excerpt("Short. No.", 4, 0)) == NAMED["summary"].format(beginning="Short. No.")


def test_a_long_text_without_spaces_is_named_by_some_letters():
    assert named(Seed("passage", 0, 0), Excerpt("x" * 500, 90, 0)) == NAMED["passage"].format(beginning="x" * 80)
    text = "水壶今天离开了商店,价格是四十元。台灯坏了,现在没有人来接电话！"
    for place, sentence in enumerate(("水壶今天离开了商店,价格是四十元。", "台灯坏了,现在没有人来接电话！")):
        found = named(Seed("passage", 0, place), Excerpt(text, 90, 0))
        assert found == NAMED["passage"].format(beginning=sentence)


def test_braces_of_the_text_are_letters():
    assert "{0} and {beginning}" in named(Seed("passage", 0, 0), Excerpt("{0} and {beginning} here", 9, 0))
