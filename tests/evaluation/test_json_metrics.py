"""Scores of answers that should be JSON objects."""

from __future__ import annotations

import pytest

from ptune.evaluation.json_metrics import JsonScores, parse_object, score_json


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


def test_shares() -> None:
    expected = ['{"a": 1, "b": null}', '{"a": 2, "b": "x"}', '{"a": 3, "b": "y"}', '{"a": 4, "b": "z"}']
    answers = ['{"b": null, "a": 1}', '{"a": 2, "b": "no"}', "nothing", '{"a": 4}']
    assert score_json(answers, expected) == JsonScores(valid=0.75, exact=0.25, fields={"a": 0.75, "b": 0.25})


def test_a_missing_key_is_not_a_null() -> None:
    assert score_json(["{}"], ['{"a": null}']) == JsonScores(valid=1.0, exact=0.0, fields={"a": 0.0})


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="zip"):
        score_json(["{}"], [])
    with pytest.raises(ValueError, match="Expecting"):
        score_json(["{}"], ["no JSON"])
    assert score_json([], []) == JsonScores(valid=0.0, exact=0.0, fields={})
