"""The loss history of a prompt folder is read as untrusted input: numbers alone, and so many."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from ptune.errors import PromptError
from ptune.saved.files import MAX_JSON_BYTES
from ptune.saved.loss_history import METRICS, MOST_POINTS, TRAINER_STATE, LossHistory, read_loss_history


def history_of(folder: Path, *lines: str) -> LossHistory:
    (folder / METRICS).write_text("\n".join(lines))
    return read_loss_history(folder)


def test_the_log_of_a_run(tmp_path: Path) -> None:
    assert read_loss_history(tmp_path) == LossHistory()
    found = history_of(
        tmp_path,
        '{"step": 0, "eval_loss": 3}',
        '{"step": 10, "loss": 2.5, "grad_norm": 1}',
        '{"step": 20, "loss": 1.5}',
        '{"step": 20, "eval_loss": 1.75}',
        '{"step": 20, "train_loss": 2, "train_runtime": 9}',
    )
    assert found == LossHistory(training=((10, 2.5), (20, 1.5)), held_out=((0, 3.0), (20, 1.75)))


def test_the_log_of_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / TRAINER_STATE).write_text(json.dumps({"log_history": [{"step": 5, "loss": 1.0}, 7, None]}))
    assert read_loss_history(tmp_path).training == ((5, 1.0),)
    (tmp_path / TRAINER_STATE).write_text('{"log_history": "none"}')
    assert read_loss_history(tmp_path) == LossHistory()


def test_what_is_no_loss_is_left_out(tmp_path: Path) -> None:
    values = ("NaN", "Infinity", "-1", "1e999", "true", "null", '"2"', "[1]", "1" + "0" * 400)
    lines = [f'{{"step": 1, "loss": {value}}}' for value in values]
    lines += [f'{{"step": {step}, "loss": 1}}' for step in ("-1", "1.5", '"2"', "true", "1" + "0" * 400, "{}")]
    assert history_of(tmp_path, *lines, "[]", "3", '{"loss": 1}') == LossHistory()
    assert history_of(tmp_path, *lines, '{"step": 1, "loss": 2}').training == ((1, 2.0),)


@pytest.mark.parametrize("last", ['{"step": 2, "lo', "[" * 100_000, "1" * 10_000, "\x00"], ids=repr)
def test_a_line_that_is_cut_or_no_json_ends_it(tmp_path: Path, last: str) -> None:
    assert history_of(tmp_path, '{"step": 1, "loss": 2}', last, '{"step": 3, "loss": 2}').training == ((1, 2.0),)


def test_of_many_points_some_are_kept(tmp_path: Path) -> None:
    found = history_of(tmp_path, *(f'{{"step": {step}, "loss": {step}}}' for step in range(5001))).training
    assert len(found) == MOST_POINTS
    assert (found[0], found[-1]) == ((0, 0.0), (5000, 5000.0))
    gaps = {after[0] - before[0] for before, after in pairwise(found)}
    assert gaps <= {25, 26}


def test_files_that_are_not_read(tmp_path: Path) -> None:
    outside = tmp_path / "outside.jsonl"
    outside.write_text('{"step": 1, "loss": 2}')
    folder = tmp_path / "prompt"
    folder.mkdir()
    (folder / METRICS).symlink_to(outside)
    with pytest.raises(PromptError, match="link to a place outside"):
        read_loss_history(folder)
    (folder / METRICS).unlink()
    (folder / METRICS).write_bytes(b" " * (MAX_JSON_BYTES + 1))
    with pytest.raises(PromptError, match="more than the"):
        read_loss_history(folder)
