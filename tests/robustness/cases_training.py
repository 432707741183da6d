"""Checkpoints that are damaged, strange or another run's, and runs in which something goes wrong on the way."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file, save_file

from commands import Ran, run, train_words
from ptune.model.wrapper import PTunedModel
from ptune.training.checkpoints import check_whole, checkpoints, open_staging
from ptune.training.trainer import PTuneTrainer
from robustness.workshop import Case, Made, Place, Words

STATE, LAST = "training_state.safetensors", "checkpoint-2"
ROWS = "".join(
    json.dumps({"instruction": f"word {'Q' if at == 5 else 'a'} {at}", "output": "b"}) + "\n" for at in range(8)
)


def begun(at: Place, **flags: object) -> Path:
    """A finished run of two steps with a checkpoint after each."""
    words = train_words(
        at.kit.model, at.file("rows.jsonl", ROWS), at.at / "run",
        **{"max_steps": 2, "save_steps": 1, "num_virtual_tokens": 4, **flags},
    )  # fmt: skip
    done = run(*words)
    assert done.code == 0, done.err
    return at.at / "run"


def damaged(harm: Callable[[Path], object], *more: object, **flags: object) -> Callable[[Place], Words]:
    """Going on from a checkpoint to which something was done."""

    def make(at: Place) -> Words:
        folder = begun(at, **flags) / LAST
        at.secret()
        harm(folder)
        return ["train", "--resume", folder, *more]

    return make


def fitting(harm: Callable[[Path], object]) -> Callable[[Path], None]:
    """The harm, and checksums that fit what it left: what stands behind them is to be reached."""

    def both(folder: Path) -> None:
        harm(folder)
        details = json.loads((folder / "ptune.json").read_text())
        details["sha256"] = {name: _sum(folder / name) for name in details["sha256"]}
        (folder / "ptune.json").write_text(json.dumps(details))
        _edit(
            lambda found: found["files"].update(
                {
                    name: {"bytes": (folder / name).stat().st_size, "sha256": _sum(folder / name)}
                    for name in found["files"]
                }
            )
        )(folder)

    return both


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _edit(change: Callable[[dict[str, Any]], object], name: str = "checkpoint.json") -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        change(found)
        (folder / name).write_text(json.dumps(found))

    return edit


def _cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def _flip(name: str) -> Callable[[Path], None]:
    def flip(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)

    return flip


def _pickled(folder: Path) -> None:
    (folder / STATE).write_bytes(pickle.dumps({"optimizer": print}))


def _linked(folder: Path) -> None:
    (folder / STATE).unlink()
    (folder / STATE).symlink_to(folder.parent.parent / "secret.txt")


def _encoder(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "encoder.safetensors"
        save_file({name: change(value) for name, value in load_file(path).items()}, path)

    return write


def _only_begun(at: Place) -> Words:
    open_staging(at.at / "run", 3)
    return ["train", "--resume", at.at / "run"]


CHECKPOINT = tuple(
    Case("checkpoint", name, make, says)
    for name, make, says in (
        (
            "its state cut in half",
            damaged(_cut(STATE)),
            ("checkpoint-2", STATE, "does not match its checksum", "--resume"),
        ),
        ("one bit of its encoder", damaged(_flip("encoder.safetensors")), ("encoder.safetensors", "checksum")),
        ("its log cut", damaged(_cut("trainer_state.json")), ("trainer_state.json", "checksum")),
        ("its list cut", damaged(_cut("checkpoint.json")), ("cannot read", "checkpoint.json")),
        ("a file gone", damaged(lambda folder: (folder / STATE).unlink()), (STATE, "No such file")),
        (
            "a path in its list",
            damaged(_edit(lambda found: found["files"].update({"../../secret.txt": {"sha256": ""}}))),
            ("'../../secret.txt'", "no file of a checkpoint"),
        ),
        ("a newer format", damaged(_edit(lambda found: found.update(format_version=9))), ("format version 9",)),
        ("a pickle for its state", damaged(fitting(_pickled)), (STATE, "no state of a training run")),
        ("a link out of it", damaged(_linked), (STATE, "link to a place outside")),
        ("NaN in its encoder", damaged(fitting(_encoder(lambda one: one * float("nan")))), ("not finite",)),
        (
            "an encoder of another size",
            damaged(fitting(_encoder(lambda one: one.reshape(-1)[:8].clone()))),
            ("is not the one that trains here", "size mismatch"),
        ),
        (
            "settings of nonsense",
            damaged(fitting(_edit(lambda found: found["recipe"].update(max_length="long"), "ptune.json"))),
            ("max_length must be a whole number, not 'long'",),
        ),
        ("only half-written", _only_begun, ("there is no checkpoint in", "run", "Leave --resume out")),
        (
            "the prompt alone",
            damaged(lambda folder: None, save_only_model=True),
            ("save_only_model", "nothing to go on"),
        ),
        ("other rows", damaged(lambda folder: None, "--limit", 3), ("trained on other rows", "--init-from")),
        (
            "another batch",
            damaged(lambda folder: None, "--per-device-train-batch-size", 2),
            ("per_device_train_batch_size=8, not 2", "--init-from"),
        ),
        ("another rate", damaged(lambda folder: None, "--learning-rate", 1), ("learning_rate=0.06, not 1.0",)),
    )
)


# ---- trouble on the way ----------------------------------------------------------------------------------------------


def going_on(trouble: Callable[[Path], Any]) -> Callable[[Place], Made]:
    """A run of six steps that is gone on with from its second, while there is trouble; its checkpoints stay whole."""

    def make(at: Place) -> Made:
        folder = begun(at)

        def attempt() -> Ran:
            with trouble(folder):
                ran = run("train", "--resume", folder, "--max-steps", 6, "--save-total-limit", 9)
            whole = checkpoints(folder)
            assert whole
            for path in whole:
                check_whole(path)
            return ran

        return attempt

    return make


class _NoRoom:
    """No file may be larger than some bytes: the kernel refuses to write on, as on a full disk."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def _in_the_way(folder: Path) -> Any:
    (folder / ".checkpoint-3.new").write_text("mine")
    return mock.patch("ptune.training.output.remove_leftovers")


def _forward(change: Callable[[Any, Any], Any]) -> Any:
    """While it is entered, what the model gives in training goes through `change` with the token ids."""
    forward = PTunedModel.forward

    @functools.wraps(forward)
    def changed(self: Any, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        return change(input_ids, forward(self, input_ids, *args, **kwargs)) if self.training else forward(
            self, input_ids, *args, **kwargs
        )  # fmt: skip

    return mock.patch.object(PTunedModel, "forward", changed)


def _not_finite(folder: Path) -> Any:
    from transformers import AutoTokenizer

    details = json.loads((folder / "ptune.json").read_text())
    bad = AutoTokenizer.from_pretrained(details["base_model"])("Q")["input_ids"][0]

    def spoil(ids: Any, output: Any) -> Any:
        if bool((ids == bad).any()):
            output.loss = output.loss * float("nan")
        return output

    return _forward(spoil)


def _no_memory(_folder: Path) -> Any:
    def fail(_ids: Any, _output: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    return _forward(fail)


def _signalled(number: int) -> Callable[[Path], Any]:
    step, sent = PTuneTrainer.training_step, []

    def send(self: Any, *args: Any) -> Any:
        if self.state.global_step == 3 and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return step(self, *args)

    return lambda _folder: mock.patch.object(PTuneTrainer, "training_step", send)


_LOG, _MORE = r"run/metrics\.jsonl", r"run/checkpoint-[3-6](/.*)?"
TROUBLE = (
    Case(
        "training", "a rate at which numbers overflow",
        lambda at: at.train(encoder="mlp", learning_rate=1e30, max_grad_norm=0, max_steps=3, warmup_steps=0),
        ("the loss is nan at step 2", "no checkpoint was written", "Lower learning_rate"),
        leaves=("new(/out(/metrics.jsonl)?)?",),
    ),
    Case(
        "training", "a rate that leads where nothing has a gradient",
        lambda at: at.train(learning_rate=1e30, max_grad_norm=0, max_steps=3, warmup_steps=0),
        ("gradient of the prompt is exactly 0 at step 2", "no checkpoint was written", "lower learning_rate"),
        leaves=("new(/out(/metrics.jsonl)?)?",),
    ),
    Case(
        "training", "a row whose loss is NaN", going_on(_not_finite),
        ("the loss is nan at step 3, in 1 of 8 rows", "rows.jsonl:6", "the last good checkpoint is", "checkpoint-2"),
        leaves=(_LOG,),
    ),
    Case(
        "training", "memory for not even one row", going_on(_no_memory),
        ("the memory is not enough for 1 row at step 3", "checkpoint-2", "Lower per_device_train_batch_size"),
        leaves=(_LOG,),
    ),
    Case(
        "training", "no room for a checkpoint (the kernel says so)", going_on(lambda _: _NoRoom(6000)),
        ("the checkpoint of step 3 could not be written", "File too large", "checkpoint-2", "go on with --resume"),
        leaves=(_LOG,),
    ),
    Case(
        "training", "no room for the log (the kernel says so)", going_on(lambda _: _NoRoom(150)),
        ("metrics.jsonl", "File too large", "Free some space"), leaves=(_LOG,),
    ),
    Case(
        "training", "a file in the place of a checkpoint", going_on(_in_the_way),
        ("the checkpoint of step 3 could not be written", "Not a directory", "checkpoint-2"),
        leaves=(_LOG, r"run/\.checkpoint-3\.new"),
    ),
    Case(
        "training", "SIGTERM", going_on(_signalled(signal.SIGTERM)),
        ("stopped after step 4 of 6; it is saved in", "checkpoint-4", "Go on with: ptune train --resume"),
        code=143, leaves=(_LOG, _MORE),
    ),
    Case(
        "training", "Ctrl-C", going_on(_signalled(signal.SIGINT)),
        ("stopped after step 4 of 6; it is saved in", "checkpoint-4", "Go on with: ptune train --resume"),
        code=130, leaves=(_LOG, _MORE),
    ),
)  # fmt: skip
