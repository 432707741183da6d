"""Entities are those of conlleval's two questions: does a chunk end here, does one begin here."""

from __future__ import annotations

import random

import pytest

from ptune.evaluation.tasks.entity_spans import entities, is_schemed


def ends(before: str, now: str, kind: str, next_kind: str) -> bool:
    """conlleval's endOfChunk: what stands before, the sign that follows, and both kinds."""
    if before in ("E", "S", "L", "U"):
        return True
    if before in ("B", "I") and now in ("B", "S", "U", "O"):
        return True
    return before != "O" and kind != next_kind


def begins(before: str, now: str, kind: str, next_kind: str) -> bool:
    """conlleval's startOfChunk."""
    if now in ("B", "S", "U"):
        return True
    if before in ("E", "S", "L", "U", "O") and now in ("E", "I", "L"):
        return True
    return now != "O" and kind != next_kind


def by_conlleval(tags: list[str]) -> set[tuple[str, int, int]]:
    found, start = set(), 0
    before, kind = "O", ""
    for at, tag in enumerate([*tags, "O"]):
        now, _, next_kind = tag.partition("-")
        if before != "O" and ends(before, now, kind, next_kind):
            found.add((kind, start, at))
        if now != "O" and begins(before, now, kind, next_kind):
            start = at
        before, kind = now, next_kind
    return found


@pytest.mark.parametrize("signs", ["BI", "BIES", "BILU", "I"])
def test_any_row_of_tags_has_conllevals_entities(signs: str):
    draw = random.Random(0)
    tags = ["O", *(f"{sign}-{kind}" for sign in signs for kind in ("PER", "LOC"))]
    assert is_schemed(tags)
    for _ in range(500):
        row = draw.choices(tags, k=draw.randint(0, 9))
        assert entities(row, schemed=True) == by_conlleval(row), row


def test_runs_of_plain_tags_are_entities():
    row = ["PER", "PER", "O", "LOC", "PER", "", "LOC"]
    assert not is_schemed(row)
    assert entities(row, schemed=False) == {("PER", 0, 2), ("LOC", 3, 4), ("PER", 4, 5), ("LOC", 6, 7)}
    assert not is_schemed(["X-RAY", "ADJ", "O"])
