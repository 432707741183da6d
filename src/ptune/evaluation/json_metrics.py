"""How well answers that should be JSON objects match the expected ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class JsonScores:
    """Shares in [0, 1] over all answers."""

    valid: float
    """The answer parses as one JSON object."""
    exact: float
    """That object equals the expected one, whatever the order of its keys."""
    fields: dict[str, float]
    """For each key of the expected objects: how often its value is right."""


def score_json(answers: Sequence[str], expected: Sequence[str]) -> JsonScores:
    """Compare answers with the expected JSON objects, row by row.

    Raises:
        ValueError: An expected text is not a JSON object, or the lengths differ.
    """
    wanted = [json.loads(text) for text in expected]
    found = [parse_object(text) for text in answers]
    keys = list(dict.fromkeys(key for item in wanted for key in item))
    rows = list(zip(found, wanted, strict=True))
    total = max(len(rows), 1)

    def share(key: str) -> float:
        right = [item is not None and key in item and item[key] == want.get(key) for item, want in rows]
        return right.count(True) / total

    return JsonScores(
        valid=sum(item is not None for item in found) / total,
        exact=sum(item == want for item, want in rows) / total,
        fields={key: share(key) for key in keys},
    )


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is, white space around it aside; None when it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
