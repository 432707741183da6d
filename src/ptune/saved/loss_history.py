"""The losses of the run that a prompt comes from, where its folder keeps them.

`ptune train` logs into the folder of the prompt that it writes (`metrics.jsonl`); a checkpoint has its log in
`trainer_state.json`, as Trainer writes it. Neither has a checksum, and both are read as untrusted input: so many bytes
at most, numbers alone, and so many points.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptune.saved.files import MAX_JSON_BYTES, holds, read_bytes, read_json

METRICS, TRAINER_STATE = "metrics.jsonl", "trainer_state.json"
MOST_POINTS = 200
"""Points of a curve that are kept: more than a picture of it can show."""
_MOST_COUNT, _MOST_LOSS = 2**53, 1e30

Point = tuple[int, float]
"""A step, and the loss there."""


@dataclass(frozen=True)
class LossHistory:
    """Losses over the steps, in nats per answer token; each at most `MOST_POINTS`, evenly taken, with the last."""

    training: tuple[Point, ...] = ()
    held_out: tuple[Point, ...] = ()


def read_loss_history(folder: Path) -> LossHistory:
    """The losses that a folder keeps; without points where it keeps none.

    Raises:
        PromptError: The file is too large, no regular one, or cannot be read.
    """
    if holds(folder, METRICS):
        return _history(_lines(read_bytes(folder, METRICS, limit=MAX_JSON_BYTES)))
    if holds(folder, TRAINER_STATE):
        logged = read_json(folder, TRAINER_STATE, limit=MAX_JSON_BYTES).get("log_history")
        return _history(logged if isinstance(logged, list) else [])
    return LossHistory()


def _lines(content: bytes) -> Iterable[Any]:
    """The values of a JSON-lines file, up to the first line that is none: a crash cuts the last one."""
    for line in content.splitlines():
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            return


def _history(records: Iterable[Any]) -> LossHistory:
    training: dict[int, float] = {}
    held_out: dict[int, float] = {}
    for record in records:
        if isinstance(record, dict):
            _take(record, "loss", training)
            _take(record, "eval_loss", held_out)
    return LossHistory(_thinned(training), _thinned(held_out))


def _take(record: Mapping[str, Any], name: str, points: dict[int, float]) -> None:
    """Add a record's loss to the points; what is logged twice counts as it was logged last."""
    step, loss = count_in(record.get("step")), loss_in(record.get(name))
    if step is not None and loss is not None:
        points[step] = loss


def count_in(value: object) -> int | None:
    """A number of things that a file says; None where it says none."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= _MOST_COUNT else None


def loss_in(value: object) -> float | None:
    """A loss that a file says; None where it says none, or one that is not finite."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if 0 <= value <= _MOST_LOSS else None


def _thinned(points: Mapping[int, float]) -> tuple[Point, ...]:
    ordered = sorted(points.items())
    if len(ordered) <= MOST_POINTS:
        return tuple(ordered)
    last = len(ordered) - 1
    return tuple(ordered[round(at * last / (MOST_POINTS - 1))] for at in range(MOST_POINTS))
