"""How well answers that should be JSON objects match the expected ones, whatever the order of their keys."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class JsonMatch:
    """One answer beside the expected objects."""

    valid: bool
    """It parses as one JSON object."""
    exact: bool
    """That object equals an expected one."""
    keys: Mapping[str, bool] = field(default_factory=dict)
    """For each key of the expected object: whether its value is right; of several objects the one that it fits best."""


def match_json(answer: str, expected: Sequence[str]) -> JsonMatch:
    """Compare an answer with the expected JSON objects; expected texts that are none are passed over."""
    found = parse_object(answer)
    wanted = [one for one in map(parse_object, expected) if one is not None]
    right = [
        {key: found is not None and key in found and found[key] == value for key, value in one.items()}
        for one in wanted
    ]
    return JsonMatch(
        valid=found is not None,
        exact=found in wanted,
        keys=max(right, key=lambda one: sum(one.values()), default={}),
    )


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is, white space around it aside; None when it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
