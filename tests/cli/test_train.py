"""`ptune train` as a program: what goes to standard output, what a pipe and a terminal show, and Ctrl-C."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from architectures import build
from commands import SOURCES, Ran, run_apart, train_words


def test_json_is_all_of_standard_output(train: Callable[..., Ran], tmp_path: Path):
    ran = train("--json", eval_rows=3, max_steps=4, logging_steps=2)
    assert ran.code == 0
    assert ran.out.count("\n") == 1
    result = json.loads(ran.out)
    assert result["output"] == str(tmp_path / "out")
    assert (result["steps"], result["held_out_rows"]) == (4, 3)
    assert result["held_out_loss_before"] != result["held_out_loss_after"]
    assert result["memory"]["cuda_allocated_gib"] is None
    assert result["tokens"] > 0


def test_without_json_standard_output_is_empty(train: Callable[..., Ran]):
    ran = train(eval_rows=3)
    assert (ran.code, ran.out) == (0, "")
    for said in (
        "read 20 rows",
        "held-out rows: ",
        "trainable params: 320 || all params: ",
        "learning rate 0.06, by default for this model and encoder",
        "peak memory: ",
        "loss.png",
    ):
        assert said in ran.err, ran.err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "batches: 8 rows packed, no padding\n"),
        (["--no-packing"], "batches: 8 rows of similar length, padded\n"),
        (["--tokens-per-batch", 300], "batches: up to 300 tokens packed, "),
    ],
)
def test_says_what_a_batch_is(train: Callable[..., Ran], words: list[object], line: str):
    ran = train("--json", *words, max_steps=None, num_train_epochs=1)
    assert ran.code == 0, ran.err
    assert line in ran.err
    steps, tokens = (json.loads(ran.out)[name] for name in ("steps", "tokens"))
    if "--tokens-per-batch" in words:
        assert re.search(rf"up to 300 tokens packed, {steps} an epoch, {tokens / (300 * steps):.0%} full\n", ran.err)
    else:
        assert steps == 3


def test_budget_below_a_row_leaves_nothing(train: Callable[..., Ran], tmp_path: Path):
    ran = train("--tokens-per-batch", 5)
    assert ran.code == 2
    assert re.search(r"row \d+ has \d+ tokens, more than tokens_per_batch=5. Set tokens_per_batch to at least", ran.err)
    assert not (tmp_path / "out").exists()


def test_model_that_cannot_pack(train: Callable[..., Ran], tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast):
    build("mamba").save_pretrained(tmp_path / "mamba")
    tiny_tokenizer.save_pretrained(tmp_path / "mamba")
    ran = train(model=tmp_path / "mamba", gradient_accumulation_steps=2)
    assert ran.code == 0, ran.err
    assert "batches: 8 rows of similar length, padded (MambaForCausalLM keeps a running state" in ran.err
    ran = train("--overwrite", model=tmp_path / "mamba", tokens_per_batch=512)
    assert ran.code == 2
    assert "tokens_per_batch=512 needs packed batches: MambaForCausalLM" in ran.err


def test_pipe_is_plain_and_result_is_alone_on_stdout(tmp_path: Path, tiny_model_dir: Path, data_file: Path):
    words = train_words(tiny_model_dir, data_file, tmp_path / "out", "--json", max_steps=3, logging_steps=1)
    ran = run_apart(*words)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["steps"] == 3
    assert "\x1b" not in ran.err
    assert "\r" not in ran.err
    steps = [line for line in ran.err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["1/3", "2/3", "3/3"]
    assert all("loss" in line and "tokens/s" in line and line.endswith(" left") for line in steps)
    assert "Warning" not in ran.err


def on_terminal(words: list[object], cache: Path, *, interrupt_at: str | None = None) -> tuple[int, str]:
    """Run on a pseudo-terminal of 80 columns; Ctrl-C is pressed when a text appears."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ.update(PYTHONPATH=str(SOURCES), OMP_NUM_THREADS="1", TERM="xterm", PTUNE_CACHE=str(cache))
        for name in ("COLUMNS", "TQDM_DISABLE", "NO_COLOR", "CI"):
            os.environ.pop(name, None)
        os.execv(sys.executable, [sys.executable, "-m", "ptune", *map(str, words)])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    text, end = "", time.monotonic() + 240
    while time.monotonic() < end:
        if select.select([terminal], [], [], 1)[0]:
            try:
                chunk = os.read(terminal, 65536)
            except OSError:  # the other side is closed
                break
            text += chunk.decode("utf-8", "replace")
            if interrupt_at is not None and interrupt_at in text:
                os.write(terminal, b"\x03")
                interrupt_at = None
    else:
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), text


def test_terminal_shows_a_bar(tmp_path: Path, tiny_model_dir: Path, data_file: Path, ptune_cache: Path):
    words = train_words(tiny_model_dir, data_file, tmp_path / "out", max_steps=12, logging_steps=3)
    code, text = on_terminal(words, ptune_cache)
    assert code == 0, text
    frames = [frame for frame in text.split("\r") if "━" in frame]
    assert "12/12 steps" in frames[-1]
    assert "loss" in frames[-1]
    assert "tokens/s" in frames[-1]
    assert "left" in frames[-1]
    assert "step 3/12" not in text, "lines are for pipes"
    assert (tmp_path / "out" / "ptune.json").is_file()


def test_ctrl_c_says_where_it_stopped(tmp_path: Path, tiny_model_dir: Path, data_file: Path, ptune_cache: Path):
    words = train_words(tiny_model_dir, data_file, tmp_path / "out", max_steps=100_000, save_steps=5, logging_steps=5)
    code, text = on_terminal(words, ptune_cache, interrupt_at="10/100000 steps")
    assert code == 130, text
    assert "Traceback" not in text
    assert "stopped after step " in text
    shown = text.replace("\r\n", "")
    assert "SIGINT: stopping after this step and saving it" in shown
    assert f"Go on with: ptune train --resume --output {tmp_path}" in shown
    assert "ptune: interrupted" not in text
    assert "\x1b[?25h" in text, "the cursor is shown again"


@pytest.mark.parametrize("flag", ["--overwrite", "--no-overwrite"])
def test_second_run_into_the_same_folder(flag: str, train: Callable[..., Ran], tmp_path: Path):
    assert train(max_steps=4, save_steps=2).code == 0
    folder = tmp_path / "out"
    (folder / "mine.txt").write_text("keep me")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ran = train(flag, max_steps=1, encoder="embedding")
    if flag == "--no-overwrite":
        assert ran.code == 2
        assert "is not empty" in ran.err
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        return
    assert ran.code == 0, ran.err
    assert (folder / "mine.txt").read_text() == "keep me"
    assert json.loads((folder / "ptune.json").read_text())["encoder"] == "embedding"
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-1"]


def test_refused_overwrite_loses_nothing(train: Callable[..., Ran], tmp_path: Path):
    assert train().code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for wrong in ({"data": tmp_path / "no.json"}, {"num_virtual_tokens": 127}, {"report_to": "nobody"}):
        assert train("--overwrite", **wrong).code == 2
        assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
