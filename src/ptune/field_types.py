"""What the annotations of a settings class say, and values of other types, as a recipe file may hold."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Mapping: "a table",
    Sequence: "a list",
}


def type_faults(settings: Any) -> list[str]:
    """Fields of a dataclass whose value is of another type than theirs, as a recipe file may hold."""
    hints = typing.get_type_hints(type(settings))
    faults = []
    for item in fields(settings):
        value, kinds, listed = (
            getattr(settings, item.name),
            allowed_types(hints[item.name]),
            item_type(hints[item.name]),
        )
        fits = type(value) in kinds or (isinstance(value, Mapping) and Mapping in kinds)
        if listed is not None and isinstance(value, (list, tuple)):
            fits = all(type(one) is listed or (listed is float and type(one) is int) for one in value)
        if not fits and not (type(value) is int and float in kinds):
            wanted = " or ".join(_WORDS[kind] for kind in kinds if kind in _WORDS)
            wanted += f" ({_WORDS[listed]} each)" if listed is not None else ""
            faults.append(f"{item.name} must be {wanted}, not {value!r}")
    return faults


def allowed_types(hint: Any) -> tuple[type, ...]:
    """The types of a field's annotation: `int | None` → `(int, NoneType)`, `Mapping[str, str]` → `(Mapping,)`."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    parts = typing.get_args(hint) if union else (hint,)
    return tuple(typing.get_origin(part) or part for part in parts)


def item_type(hint: Any) -> type | None:
    """What the items of a field's list are: `str | Sequence[str]` → `str`; None where no list may stand."""
    for part in (hint, *typing.get_args(hint)):
        if typing.get_origin(part) is Sequence:
            found: type = typing.get_args(part)[0]
            return found
    return None
