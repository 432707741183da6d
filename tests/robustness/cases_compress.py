"""Texts that cannot be compressed, and studies of something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from commands import run
from robustness.workshop import Case, Place, Words

TEXT = "The gate opens at six. The key is blue."


def _compress(at: Place, *more: object, **flags: object) -> list[object]:
    """The words of a compression that would be fine but for these flags."""
    text = flags.pop("text", None) or at.file("text.txt", TEXT)
    questions = [{"instruction": f"What is {sign}?"} for sign in "abcde"]
    given: dict[str, object] = {
        "model": at.kit.model,
        "output": at.at / "new",
        "data": at.file("questions.json", json.dumps(questions)),
        "answer_tokens": 2,
        "excerpt_tokens": 16,
        "num_virtual_tokens": 4,
        "max_steps": 1,
        "report_rows": 0,
        **flags,
    }
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    return ["compress", text, *words, "--use-cpu", *more]


def _flags(*more: object, **flags: object) -> Callable[[Place], Words]:
    return lambda at: _compress(at, *more, **flags)


def _text(content: str | bytes) -> Callable[[Place], Words]:
    return lambda at: _compress(at, text=at.file("broken.txt", content))


def _begun(at: Place, name: str = "begun") -> Path:
    """The folder of a compression that has ended."""
    folder = at.at / name
    done = run(*_compress(at, output=folder))
    assert done.code == 0, done.err
    return folder


def _other_text(at: Place) -> Words:
    study = _begun(at)
    return _compress(at, "--study", study, text=at.file("other.txt", "Nobody knows when it shuts."))


def _cut_study(at: Place) -> Words:
    study = _begun(at)
    (study / "study" / "rows.jsonl").unlink()
    return _compress(at, "--study", study)


def _by_train(at: Place) -> Words:
    """`ptune train --resume` on a checkpoint of a compression."""
    folder = _begun(at)
    copied = shutil.copytree(folder, at.at / "copied")
    return ["train", "--resume", "--output", copied]


def _settings_broken(at: Place) -> Words:
    return ["compress", "--resume", at.file("begun/compress.yaml", "model: [1\ntext").parent]


def _occupied(at: Place) -> Words:
    return _compress(at, output=at.file("mine/notes.txt", "mine").parent)


def _conversation(at: Place) -> Words:
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user", "assistant")]
    return _compress(at, "--data", at.file("chats.json", json.dumps([{"messages": turns}])))


_C = "compression"
COMPRESSION = tuple(
    Case(_C, name, make, says)
    for name, make, says in (
        ("no text", lambda at: ["compress", "--model", at.kit.model, "--output", at.at / "new"], ("text file is",)),
        ("a text that is not there", lambda at: _compress(at, text=at.at / "nothing.txt"), ("nothing.txt",)),
        ("an empty text", _text(" \n\n "), ("the text is empty",)),
        ("a text that is no UTF-8", _text(b"caf\xe9 and \xfc"), ("broken.txt",)),
        ("an unknown kind of question", _flags("--kinds", "sumary"), ("sumary", "Did you mean 'summary'?")),
        ("an unknown start", _flags("--start", "middle"), ("unknown start 'middle'",)),
        (
            "numbers that cannot be",
            _flags("--temperature", "nan", questions=1, answer_tokens=0, top_k=0),
            ("4 settings", "questions must be at least 2", "top_k must be at least 1", "temperature must be above 0"),
        ),
        ("answers that leave the text no room", _flags(answer_tokens=120), ("room for 0 tokens", "answer_tokens")),
        ("a prompt with no room in the context", _flags(num_virtual_tokens=500), ("500", "context of")),
        ("virtual tokens among the words", _flags("--template", "{instruction}{prompt:2}{output}"), ("places for",)),
        ("questions that are conversations", _conversation, ("is no single question",)),
        ("activation checkpointing", _flags("--gradient-checkpointing"), ("keys and values",)),
        ("a flag of training that has no place", _flags("--init", "vocab"), ("unknown flag --init",)),
        ("a folder of somebody else's", _occupied, ("mine is not empty", "no compression's")),
        (
            "a compression that is there already",
            lambda at: _compress(at, output=_begun(at)),
            ("holds a compression already", "--resume"),
        ),
        ("nothing to resume", lambda _: ["compress", "--resume", "nothing"], ("no compression in nothing",)),
        ("settings that are cut", _settings_broken, ("compress.yaml:2:", "not YAML")),
        ("a study that is not there", _flags("--study", "nothing"), ("no finished study in 'nothing'",)),
        ("a study that is not finished", _cut_study, ("no finished study in",)),
        ("a study of another text", _other_text, ("holds another study: other text", "--study")),
        (
            "a compression that ptune train is to resume",
            _by_train,
            ("belongs to a compression", "ptune compress --resume"),
        ),
    )
)
