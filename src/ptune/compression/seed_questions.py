"""What the model is asked to ask: several kinds of questions about an excerpt, so that a prompt learns many uses.

After the self-study of Eyuboglu et al. 2025, "Cartridges", whose seeds ask for questions, uses, summaries, structured
data and creative texts. Three kinds here are asked for by the model itself. The others need no asking: they name a
part of the text by its first words, and are what a small model, which asks poorly, still learns the whole text by.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ptune.compression.excerpts import Excerpt

ASKED = {
    "question": "Write one short question that the text above answers. Write the question alone.",
    "detail": (
        "Write one short question about a single number, name, date or condition in the text above. Write the question "
        "alone."
    ),
    "use": (
        "Write one question that a person with a practical problem would ask, and that the text above helps with. "
        "Write the question alone."
    ),
}
"""Kinds of questions that the model writes, and what it is told below the excerpt."""
NAMED = {
    "summary": 'Sum up in a few sentences the part of the text that begins with "{beginning}".',
    "structure": 'List the facts in the part of the text that begins with "{beginning}", one a line.',
    "passage": 'Repeat the part of the text that begins with "{beginning}".',
}
"""Kinds that name a part of the text."""
QUESTION_TOKENS = 48
"""The longest question."""
_BEGINNING, _LETTERS = 12, 80
"""Words, and letters, that a part is named by at most."""
_SENTENCE = 12
"""Letters of a sentence worth naming."""
_LABEL = re.compile(
    r"^(?:[#*\-\s]*(?:(?:question|q|问题)(?:\s*\d+)?|\d+)\s*[.:)：](?!\d)[*\s]*|[\"'“*#\s]+)+", re.IGNORECASE
)
_QUESTION = re.compile(r".*?[?？]")


@dataclass(frozen=True)
class Seed:
    """One question to come."""

    kind: str
    excerpt: int
    place: int
    """Where in the excerpt a named part begins, in sentences."""


def seeds(kinds: tuple[str, ...], excerpts: int, count: int) -> list[Seed]:
    """Every kind for every excerpt in turn, as often as it takes."""
    made = []
    for number in range(count):
        turn, rest = divmod(number, len(kinds) * excerpts)
        excerpt, kind = divmod(rest, len(kinds))
        made.append(Seed(kinds[kind], excerpt, turn))
    return made


def named(seed: Seed, excerpt: Excerpt) -> str:
    """The question of a kind that names a part of the text."""
    sentences = [one for one in re.split(r"(?<=[.!?])\s+|(?<=[。！？])|\n+", excerpt.text) if len(one) >= _SENTENCE]
    start = sentences[seed.place % len(sentences)] if sentences else excerpt.text
    beginning = " ".join(start.split()[:_BEGINNING])[:_LETTERS].replace('"', "'")
    return NAMED[seed.kind].format(beginning=beginning)


def longest_named(text: str) -> str:
    """About the longest question that names a part of a text."""
    return max(NAMED.values(), key=len).format(beginning=text[:_LETTERS])


def cleaned(written: str) -> str | None:
    """The question in what a model wrote; None where there is none."""
    for line in written.splitlines():
        text = _LABEL.sub("", line.strip()).strip("\"'“”* ")
        if len(text.split()) >= 3 or (len(text) >= _SENTENCE // 2 and not text.isascii()):
            asked = _QUESTION.match(text)
            return asked[0] if asked else text
    return None
