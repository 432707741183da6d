"""Entities in a row of tags, by the rule of CoNLL-2000's script (conlleval).

`B-PER` begins a person, `I-PER` goes on with it, and begins one where nothing of that kind stands before; `O` is
outside. `E-` and `L-` end an entity, `S-` and `U-` are one of a single word. Where no tag has such a beginning, every
run of one tag is an entity.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_TAG = re.compile(r"([BIELSU])-(.*)", re.DOTALL)
_OUTSIDE = ("", "O", "_")
_BEGIN, _END = ("B", "S", "U"), ("E", "L", "S", "U")

Entity = tuple[str, int, int]
"""Kind, first word, and the one behind the last."""


def is_schemed(tags: Iterable[str]) -> bool:
    """Whether tags say where an entity begins."""
    return any(_TAG.fullmatch(tag) for tag in tags)


def entities(tags: Sequence[str], *, schemed: bool) -> set[Entity]:
    """The entities of a row.

    Args:
        tags: Of its words.
        schemed: Whether the task's tags say where an entity begins.
    """
    found: set[Entity] = set()
    begun: tuple[str, int] | None = None
    before = ""
    for at, tag in enumerate([*tags, "O"]):
        sign, kind = _parts(tag, schemed=schemed)
        goes_on = begun is not None and sign and sign not in _BEGIN and kind == begun[0] and before not in _END
        if begun is not None and not goes_on:
            found.add((begun[0], begun[1], at))
            begun = None
        if sign and not goes_on:
            begun = (kind, at)
        before = sign
    return found


def _parts(tag: str, *, schemed: bool) -> tuple[str, str]:
    """The sign and the kind of a tag; no sign for one outside of entities."""
    if tag in _OUTSIDE:
        return "", ""
    match = _TAG.fullmatch(tag) if schemed else None
    return (match[1], match[2]) if match else ("I", tag)
