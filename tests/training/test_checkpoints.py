"""Checkpoints on disk: whole or not there, found, passed over with a word, and never half-read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptune import last_checkpoint
from ptune.errors import ConfigError, OutputError, PromptError
from ptune.saved.state import state_bytes, state_of
from ptune.training.checkpoints import (
    check_whole,
    checkpoints,
    find_checkpoint,
    finish_checkpoint,
    keep_newest,
    newest_whole,
    open_staging,
    remove_leftovers,
)


def write(output: Path, step: int, *, resumable: bool = True) -> Path:
    staged = open_staging(output, step)
    (staged / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))
    for name in ("training_state.safetensors", "process_0.safetensors"):
        (staged / name).write_bytes(state_bytes({"step": step}))
    return finish_checkpoint(staged, output, step, resumable=resumable)


def plain(output: Path, step: int) -> Path:
    """What a plain Trainer leaves, in short."""
    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({}, folder / name)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


def quiet(_line: str) -> None: ...


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 1)


def edit(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / "checkpoint.json").read_text())
        (folder / "checkpoint.json").write_text(json.dumps({**manifest, **values}))

    return change


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a state cut": (cut("training_state.safetensors"), "does not match its checksum"),
    "a log cut": (cut("trainer_state.json"), "does not match its checksum"),
    "a file gone": (lambda folder: (folder / "process_0.safetensors").unlink(), "cannot read .*process_0"),
    "the list cut": (
        lambda folder: os.truncate(folder / "checkpoint.json", 90),
        "cannot read .*checkpoint.json: JSONDecodeError",
    ),
    "the list gone": (lambda folder: (folder / "checkpoint.json").unlink(), "optimizer.pt is missing or cut"),
    "another format": (edit(format_version=9), "format version 9; this ptune reads 1"),
    "a path in the list": (edit(files={"../../x": {"sha256": ""}}), "lists '../../x', which is no file"),
    "nothing listed": (edit(files={}), "lacks process_0.safetensors, trainer_state.json, training_state"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_passed_over_with_a_word(damage: str, tmp_path: Path):
    first, second = write(tmp_path, 10), write(tmp_path, 20)
    check_whole(second)
    harm, message = DAMAGE[damage]
    harm(second)
    with pytest.raises(PromptError, match=message):
        check_whole(second)
    said: list[str] = []
    assert newest_whole(tmp_path, said.append) == first
    assert len(said) == 1
    assert said[0].startswith("checkpoint-20 is not whole and is passed over: ")
    assert last_checkpoint(tmp_path) == str(first)


def test_newest_is_by_number_and_what_is_half_written_bears_no_name(tmp_path: Path):
    write(tmp_path, 9)
    write(tmp_path, 10)
    open_staging(tmp_path, 11)
    (tmp_path / "checkpoint-notes").mkdir()
    (tmp_path / "checkpoint-12").write_text("a file")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-9"]
    assert remove_leftovers(tmp_path) == ["checkpoint-11"]
    assert not list(tmp_path.glob(".checkpoint*"))
    assert checkpoints(tmp_path / "nowhere") == []


def test_the_oldest_go_and_the_best_stays(tmp_path: Path):
    for step in (1, 2, 3, 4, 5):
        write(tmp_path, step)
    keep_newest(tmp_path, None, [])
    assert len(checkpoints(tmp_path)) == 5
    keep_newest(tmp_path, 2, [tmp_path / "checkpoint-2"])
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-2"]
    write(tmp_path, 6)
    keep_newest(tmp_path, 1, [tmp_path / "checkpoint-6"])
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-6"]


def test_a_checkpoint_is_replaced_whole(tmp_path: Path):
    write(tmp_path, 3)
    (tmp_path / "checkpoint-3" / "stray").write_text("")
    check_whole(write(tmp_path, 3))
    assert not (tmp_path / "checkpoint-3" / "stray").exists()


def test_find_checkpoint(tmp_path: Path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ten = write(ours, 10)
    five = write(ours, 5)
    assert find_checkpoint(None, ours, quiet) is None
    assert find_checkpoint("false", ours, quiet) is None
    for asked in (True, "True", str(ours), str(ten)):
        assert find_checkpoint(asked, ours, quiet) == ten
    assert find_checkpoint(str(five), ours, quiet) == five
    seven = plain(theirs, 7)
    os.truncate(plain(theirs, 8) / "optimizer.pt", 40)
    assert find_checkpoint(True, theirs, quiet) == seven
    with pytest.raises(ConfigError, match=r"cannot go on from .*checkpoint-8: .*optimizer.pt is missing or cut"):
        find_checkpoint(str(theirs / "checkpoint-8"), ours, quiet)
    with pytest.raises(ConfigError, match=r"there is no checkpoint in .* to resume from. Leave --resume out"):
        find_checkpoint(True, tmp_path, quiet)
    with pytest.raises(ConfigError, match=r"there is no checkpoint .*checkpoint-99"):
        find_checkpoint(str(ours / "checkpoint-99"), ours, quiet)


def test_a_checkpoint_of_the_prompt_alone_is_nothing_to_go_on_from(tmp_path: Path):
    write(tmp_path, 4, resumable=False)
    with pytest.raises(ConfigError, match="holds the prompt alone"):
        find_checkpoint(str(tmp_path / "checkpoint-4"), tmp_path, quiet)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and bool((a == b).all())
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


def test_a_state_comes_back_to_the_last_bit():
    model = torch.nn.LSTM(3, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 + 0.2)
    model(torch.randn(2, 3))[0].sum().backward()
    optimizer.step()
    value = {
        "optimizer": optimizer.state_dict(),
        "numpy": np.random.get_state(legacy=False),
        "python": (3, tuple(range(9)), None),
        "numbers": [0.1 + 0.2, float("inf"), float("nan"), -0.0, 2**70, True, None, "ü\n\u0000"],
        "tensors": [torch.randn(2, 3).T, torch.tensor(5), torch.zeros(0), torch.randn(3).bfloat16()],
        (1, "a"): {2: {}},
    }
    assert same(state_of(state_bytes(value), "x"), value)


def test_what_is_no_value_is_refused_by_name():
    with pytest.raises(OutputError, match="a Linear cannot be kept in a checkpoint"):
        state_bytes({"layer": torch.nn.Linear(1, 1)})


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 20, state_bytes({"a": 1})[:-3], (5).to_bytes(8, "little") + b'{"a":1']
)
def test_what_is_no_state_is_refused(content: bytes):
    with pytest.raises(PromptError, match="somewhere is no state of a training run"):
        state_of(content, "somewhere")
