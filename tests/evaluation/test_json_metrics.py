"""Answers that should be JSON objects, beside the expected ones."""

from __future__ import annotations

import pytest

from ptune.evaluation.json_metrics import JsonMatch, match_json, parse_object


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        (' {"a": null}\n', {"a": None}),
        ("[1]", None),
        ("1", None),
        ('{"a": 1} and more', None),
        ('{"a": 1', None),
        ("", None),
        ("[" * 100_000, None),
    ],
)
def test_one_object_and_nothing_else(text: str, value: object) -> None:
    assert parse_object(text) == value


@pytest.mark.parametrize(
    ("answer", "expected", "match"),
    [
        ('{"b": null, "a": 1}', ['{"a": 1, "b": null}'], JsonMatch(True, True, {"a": True, "b": True})),
        ('{"a": 2, "b": "no"}', ['{"a": 2, "b": "x"}'], JsonMatch(True, False, {"a": True, "b": False})),
        ("nothing", ['{"a": 3}'], JsonMatch(False, False, {"a": False})),
        ("{}", ['{"a": null}'], JsonMatch(True, False, {"a": False})),
        ('{"a": 1, "b": 2}', ['{"a": 1}', '{"a": 1, "b": 2}'], JsonMatch(True, True, {"a": True, "b": True})),
        ('{"a": 1}', ["no JSON", '{"a": 1, "c": 0}'], JsonMatch(True, False, {"a": True, "c": False})),
        ("nothing", ["nothing"], JsonMatch(False, False, {})),
    ],
)
def test_matches(answer: str, expected: list[str], match: JsonMatch) -> None:
    assert match_json(answer, expected) == match
