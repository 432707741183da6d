"""What a user can get wrong: one line on standard error, exit code 2, no traceback, and nothing written or lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from architectures import CONTEXT, build
from commands import Ran, run, run_apart, train_words

OK = '{"instruction": "a", "output": "b"}'


def assert_one_line(ran: Ran, *fragments: str, command: str = "ptune train") -> None:
    assert ran.code == 2, ran.err
    assert ran.out == ""
    assert ran.err.startswith(f"{command}: error: ")
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err.endswith("\n")
    assert "Traceback" not in ran.err
    for fragment in fragments:
        assert fragment in ran.err, ran.err


@dataclass(frozen=True)
class Place:
    """Where the broken things of a case are made."""

    tmp: Path
    model: Path

    def data(self, text: str, name: str = "rows.json") -> Path:
        path = self.tmp / name
        path.write_text(text, encoding="utf-8")
        return path

    def without_tokenizer(self) -> Path:
        return Path(shutil.copytree(self.model, self.tmp / "m", ignore=shutil.ignore_patterns("tokenizer*")))

    def small_embedding(self) -> Path:
        folder = Path(shutil.copytree(self.model, self.tmp / "m"))
        build("llama", vocab_size=100).save_pretrained(folder)
        return folder


Flags = Callable[[Place], dict[str, object]]
CASES: dict[str, tuple[Flags, tuple[str, ...]]] = {
    "missing file": (lambda at: {"data": at.tmp / "no.json"}, ("no file", "no.json")),
    "empty file": (lambda at: {"data": at.data("")}, ("rows.json is empty",)),
    "broken JSON at row 3": (lambda at: {"data": at.data(f"[{OK},\n{OK},\n\n{{'a'}}]")}, ("rows.json:4:", "row 3")),
    "broken JSONL at row 3": (
        lambda at: {"data": at.data(f"{OK}\n{OK}\n{{\n", "rows.jsonl")},
        ("rows.jsonl:3:", "row 3"),
    ),
    "unknown columns": (
        lambda at: {"data": at.data('[{"question": "a", "reply": "b"}]')},
        ("question (text), reply (text)", "--columns instruction=question output=reply"),
    ),
    "output is not text": (
        lambda at: {"data": at.data(f'[{OK},\n{{"instruction": "a", "output": [5]}}]')},
        ("rows.json:2:", "'output' is a list ([5]), not text"),
    ),
    "every answer truncated": (
        lambda at: {"data": at.data(json.dumps([{"instruction": "a" * 60, "output": "b"}])), "max_length": 20},
        ("no answer is left", "max_length 20", "Raise max_length"),
    ),
    "model folder without tokenizer": (lambda at: {"model": at.without_tokenizer()}, ("holds no tokenizer",)),
    "tokenizer larger than the embedding": (
        lambda at: {"model": at.small_embedding()},
        ("the tokenizer has 128 tokens", "100 rows"),
    ),
    "no virtual tokens": (lambda at: {"num_virtual_tokens": 0}, ("num_virtual_tokens", "at least 1", "not 0")),
    "as many virtual tokens as context": (
        lambda at: {"num_virtual_tokens": CONTEXT},
        (f"num_virtual_tokens={CONTEXT}", f"context of {CONTEXT} tokens"),
    ),
    "virtual tokens and rows beyond the context": (
        lambda at: {"num_virtual_tokens": CONTEXT - 1, "init": "random", "data": at.data(f"[{OK}]")},
        (f"{CONTEXT - 1} virtual tokens and the longest training row of", f"context of {CONTEXT}", "Use at most"),
    ),
    "unknown encoder": (lambda at: {"encoder": "lsmt"}, ("unknown encoder 'lsmt'", "Did you mean 'lstm'?")),
    "several settings": (
        lambda at: {"encoder": "lsmt", "max_length": 1, "eval_rows": -1},
        ("3 settings", "(1) unknown encoder", "(2) max_length must be at least 2", "(3) eval_rows"),
    ),
    "unknown flag": (lambda at: {"encodr": "lstm"}, ("unknown flag --encodr", "did you mean --encoder?")),
    "unknown training flag": (
        lambda at: {"lerning_rate": 1, "wieght_decay": 0},
        ("--lerning-rate, did you mean --learning-rate?", "--wieght-decay, did you mean --weight-decay?"),
    ),
    "training value of another type": (
        lambda at: {"learning_rate": "fast"},
        ("--learning-rate", "invalid float value: 'fast'"),
    ),
    "unknown training value": (
        lambda at: {"eval_strategy": "sometimes"},
        ("--eval-strategy", "'sometimes'", "'no', 'steps', 'epoch'"),
    ),
    "training value that cannot be used": (lambda at: {"logging_steps": 0}, ("logging_steps",)),
    "batch of nothing": (
        lambda at: {"per_device_train_batch_size": 0},
        ("per_device_train_batch_size must be at least 1, not 0",),
    ),
    "no steps": (lambda at: {"max_steps": 0}, ("nothing to train",)),
    "unknown tracker": (lambda at: {"report_to": "nobody"}, ("nobody is not supported", "wandb")),
    "evaluation without data": (lambda at: {"eval_strategy": "steps", "eval_steps": 1}, ("eval_dataset",)),
    "more held out than there is": (lambda at: {"eval_rows": 1000}, ("eval_rows=1000 leaves none",)),
    "held-out data missing": (lambda at: {"eval_data": at.tmp / "no.json"}, ("no file", "no.json")),
    "model folder missing": (lambda at: {"model": at.tmp / "nothing"}, ("no model folder", "nothing")),
    "output is a file": (lambda at: {"output": at.data("")}, ("rows.json is a file",)),
    "output below a file": (lambda at: {"output": at.data("") / "x"}, ("rows.json is a file",)),
    "nothing to resume from": (lambda at: {"resume_from_checkpoint": at.tmp}, ("no checkpoint in", "to resume from")),
    "no checkpoint yet": (lambda at: {"resume_from_checkpoint": "true"}, ("no checkpoint in",)),
}


@pytest.mark.parametrize("case", CASES)
def test_train_refuses(case: str, tmp_path: Path, tiny_model_dir: Path, data_file: Path):
    flags, fragments = CASES[case]
    values = flags(Place(tmp_path, tiny_model_dir))
    before = sorted(tmp_path.rglob("*"))
    # The folder above OUTPUT does not exist either: neither may be left behind.
    ran = run(*train_words(tiny_model_dir, data_file, tmp_path / "new" / "out", **values))
    assert_one_line(ran, *fragments)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("case", ["broken JSON at row 3", "virtual tokens and rows beyond the context", "unknown flag"])
def test_train_refuses_as_a_program(case: str, tmp_path: Path, tiny_model_dir: Path, data_file: Path):
    flags, fragments = CASES[case]
    words = train_words(tiny_model_dir, data_file, tmp_path / "new", **flags(Place(tmp_path, tiny_model_dir)))
    assert_one_line(run_apart(*words), *fragments)
    assert not (tmp_path / "new").exists()


def test_all_missing_flags_are_named_at_once():
    assert_one_line(run("train"), "model, data and output are missing")
    assert_one_line(run("train", "--data", "x"), "model and output are missing")


def test_unknown_command():
    assert_one_line(run("trian"), "unknown command 'trian'", "Did you mean 'train'?", command="ptune")


def test_stray_word(train: Callable[..., Ran]):
    assert_one_line(train("stray"), "unexpected argument 'stray'")


def test_debug_shows_the_traceback_and_the_line():
    for words in (["train", "--debug"], ["--debug", "train"]):
        ran = run(*words)
        assert ran.code == 2
        assert "Traceback" in ran.err
        assert ran.err.splitlines()[-1].startswith("ptune train: error: ")


def test_debug_of_the_trainer_is_left_to_it(train: Callable[..., Ran]):
    ran = train("--debug", "underflow_overflow", encoder="none")
    assert_one_line(ran, "unknown encoder 'none'")


def test_diverged_run_saves_no_prompt(train: Callable[..., Ran], tmp_path: Path):
    how = {"encoder": "mlp", "lr_scheduler_type": "constant", "warmup_steps": 0, "max_steps": 3, "eval_rows": 2}
    ran = train(learning_rate=1e30, max_grad_norm=0, **how)
    assert ran.code == 2
    assert ran.err.splitlines()[-1].startswith("ptune train: error: the loss is nan at step 2, in every row")
    assert not (tmp_path / "out" / "ptune.json").exists()
    for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
