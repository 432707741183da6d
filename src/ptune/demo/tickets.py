"""The demo's data set: a customer message in, a support ticket as compact JSON out.

A language model that is only shown a message has no way to know that a ticket is wanted, let alone which keys and
labels it has; all of that must come from the soft prompt. The job itself is settled by the text:

- `intent`: what the customer asks for (`refund`, `cancel`, `delivery`, `repair`, `invoice`), whatever went wrong;
- `product`: one of six, whatever kind of it the customer names;
- `urgency`: `urgent` where the message says that it presses, else `normal`;
- `order`: the order number as written, else `none`.

Messages are put together from independent parts (`phrases.py`) in varying order, some in lower case, some with a
typing error. Held-out messages use order numbers no training message has and, half the time for each part, phrases
never trained on; none is close to a training message (`overlap.py`). Everything follows from one seed:
`python -m ptune.demo.tickets` writes `train.jsonl` and `heldout.jsonl` beside this file again, byte for byte.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from ptune.demo import phrases
from ptune.demo.overlap import nearest_similarity, words
from ptune.demo.phrases import Pool

Split = Literal["train", "heldout"]

TRAIN_FILE = Path(__file__).with_name("train.jsonl")
HELDOUT_FILE = Path(__file__).with_name("heldout.jsonl")
TRAIN_ROWS = 1080
HELDOUT_ROWS = 180
SEED = 20

MAX_SIMILARITY = 0.8
"""A held-out message is drawn again when its words are this similar (Jaccard) to those of a training message."""

_UNSEEN = 0.5
_ORDER_GIVEN = 0.75
_ORDER_INLINE = 0.3
_GREETING = 0.35
_CLOSING = 0.15
_ASIDE = 0.05
_LOWER_CASE = 0.08
_TYPING_ERROR = 0.08
_URGENCIES = ("normal", "urgent")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a message amounts to. The field order is the key order of the JSON."""

    intent: str
    product: str
    urgency: str
    order: str | None
    """None becomes `none`."""

    def to_json(self) -> str:
        """The ticket as JSON without spaces, the answer the model must give to the letter."""
        fields = {
            "intent": self.intent,
            "product": self.product,
            "urgency": self.urgency,
            "order": self.order or "none",
        }
        return json.dumps(fields, separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A message and its ticket."""

    message: str
    ticket: Ticket

    def to_json(self) -> str:
        """The row as one JSON line in Alpaca columns."""
        return json.dumps(
            {"instruction": self.message, "input": "", "output": self.ticket.to_json()}, ensure_ascii=False
        )


class _Dice:
    """Random choices made from `random.Random.random` alone, the one method Python promises never to change."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def chance(self, probability: float) -> bool:
        return self._rng.random() < probability

    def below(self, bound: int) -> int:
        return int(self._rng.random() * bound)

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def shuffled(self, items: Iterable[T]) -> list[T]:
        deck = list(items)
        for last in range(len(deck) - 1, 0, -1):
            other = self.below(last + 1)
            deck[last], deck[other] = deck[other], deck[last]
        return deck

    def phrase(self, pool: Pool, split: Split) -> str:
        unseen = split == "heldout" and self.chance(_UNSEEN)
        return self.pick(pool.heldout if unseen else pool.common)


def build() -> tuple[list[Row], list[Row]]:
    """The training rows and the held-out rows, always the same."""
    dice = _Dice(SEED)
    numbers = iter(dice.shuffled(range(1000, 10000)))
    train: list[Row] = []
    seen: set[str] = set()
    for ticket in _tickets(dice, TRAIN_ROWS, numbers):
        message = _draw(dice, ticket, "train", seen, ())
        train.append(Row(message=message, ticket=ticket))
    known = [words(row.message) for row in train]
    heldout = [
        Row(message=_draw(dice, ticket, "heldout", seen, known), ticket=ticket)
        for ticket in _tickets(dice, HELDOUT_ROWS, numbers)
    ]
    return train, heldout


def _tickets(dice: _Dice, count: int, numbers: Iterable[int]) -> list[Ticket]:
    """`count` tickets in random order, with every intent and product equally often (`count` a multiple of 30)."""
    supply = iter(numbers)
    pairs = [(intent, product) for intent in phrases.REQUESTS for product in phrases.PRODUCTS]
    tickets = []
    for index in range(count):
        intent, product = pairs[index % len(pairs)]
        order = f"{dice.pick('ABCDEFGH')}-{next(supply)}" if dice.chance(_ORDER_GIVEN) else None
        tickets.append(Ticket(intent=intent, product=product, urgency=dice.pick(_URGENCIES), order=order))
    return dice.shuffled(tickets)


def _draw(dice: _Dice, ticket: Ticket, split: Split, seen: set[str], known: Sequence[frozenset[str]]) -> str:
    """A message that is not in `seen` and not close to one in `known`; it is added to `seen`."""
    while True:
        message = _message(dice, ticket, split)
        if message not in seen and nearest_similarity(words(message), known) < MAX_SIMILARITY:
            seen.add(message)
            return message


def _message(dice: _Dice, ticket: Ticket, split: Split) -> str:
    """One way to say `ticket`: greeting, the parts in random order, closing."""
    product = dice.phrase(phrases.PRODUCTS[ticket.product], split)
    mention = ""
    if ticket.order is None:
        mention = dice.phrase(phrases.NO_ORDERS, split)
    elif dice.chance(_ORDER_INLINE):
        product = dice.phrase(phrases.INLINE_ORDERS, split).format(p=product, o="{o}")
    else:
        mention = dice.phrase(phrases.ORDERS, split)
    request = dice.phrase(phrases.REQUESTS[ticket.intent], split).format(p=product)
    parts = [request, mention, dice.phrase(phrases.URGENCIES[ticket.urgency], split)]
    if dice.chance(_ASIDE):
        parts.append(dice.phrase(phrases.ASIDES, split))
    body = " ".join(part for part in dice.shuffled(parts) if part)
    if dice.chance(_GREETING):
        body = f"{dice.phrase(phrases.GREETINGS, split)} {_lower_first(body)}"
    if dice.chance(_CLOSING):
        closing = dice.phrase(phrases.CLOSINGS, split)
        body = f"{body} {closing.format(o='{o}', name=dice.phrase(phrases.NAMES, split))}"
    if dice.chance(_LOWER_CASE):
        body = body.lower()
    if dice.chance(_TYPING_ERROR):
        body = _mistype(dice, body)
    return body.replace("{o}", ticket.order or "")


def _lower_first(text: str) -> str:
    """`text` as it goes on after a greeting's comma."""
    first = text.split(maxsplit=1)[0]
    return text if first in {"I", "ASAP"} else text[0].lower() + text[1:]


def _mistype(dice: _Dice, text: str) -> str:
    """`text` with two letters swapped inside one of its connecting words, if it holds one."""
    tokens = text.split(" ")
    places = [index for index, token in enumerate(tokens) if token.lower() in _MISTYPED]
    if not places:
        return text
    place = dice.pick(places)
    word = tokens[place]
    swap = 1 + dice.below(len(word) - 2)
    tokens[place] = word[:swap] + word[swap + 1] + word[swap] + word[swap + 2 :]
    return " ".join(tokens)


_MISTYPED = frozenset(
    {
        "please",
        "would",
        "could",
        "about",
        "where",
        "there",
        "still",
        "know",
        "with",
        "have",
        "this",
        "that",
        "from",
        "order",
        "number",
        "after",
        "before",
        "when",
        "hello",
    }
)


def render(rows: Iterable[Row]) -> bytes:
    """Rows as the bytes of a JSONL file."""
    return "".join(row.to_json() + "\n" for row in rows).encode()


def main() -> int:
    """Write both files again and say how far apart they are."""
    train, heldout = build()
    TRAIN_FILE.write_bytes(render(train))
    HELDOUT_FILE.write_bytes(render(heldout))
    known = [words(row.message) for row in train]
    nearest = sorted(nearest_similarity(words(row.message), known) for row in heldout)
    sys.stdout.write(f"{len(train)} training rows, {len(heldout)} held-out rows\n")
    middle = nearest[len(nearest) // 2]
    sys.stdout.write(f"most similar training message: median {middle:.2f}, at most {nearest[-1]:.2f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
