"""Bytes that are not text in the terminal's encoding: said in one line, and a conversation goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from commands import SOURCES, run

HELLO_IN_GBK = b"\xc4\xe3\xba\xc3"
HALF_A_CHARACTER = b"\xe4\xbd"
"""What is left of a Chinese character where a terminal's backspace deletes one byte."""


def apart(*words: object, given: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command line of bytes in a process of its own."""
    settings = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", **environment}
    command = [sys.executable, "-m", "ptune", *(word if isinstance(word, bytes) else str(word) for word in words)]
    return subprocess.run(command, input=given, env=settings, capture_output=True, check=False, timeout=300)


@pytest.mark.parametrize("flags", [(), ("--system", "x"), ("--template", "{instruction}{output}")])
def test_a_word_of_the_command_line(prompt_dir: Path, flags: tuple[str, ...]):
    done = apart("generate", prompt_dir, HELLO_IN_GBK, *flags)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == (
        "ptune generate: error: a word of the command line is not UTF-8: \\xc4\\xe3\\xba\\xc3. "
        "Set terminal and locale to the same encoding, best UTF-8, and type it again.\n"
    )


def test_a_flags_value():
    assert "is not UTF-8: \\xe4\\xbd" in run("train", "--init-text", os.fsdecode(HALF_A_CHARACTER)).err


def test_standard_input(prompt_dir: Path):
    done = apart("generate", prompt_dir, given=HALF_A_CHARACTER + b"\n")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"standard input is not UTF-8: \\xe4\\xbd" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_chat_asks_again(prompt_dir: Path):
    lines = b"green\n" + HELLO_IN_GBK + b"\ngreen\n"
    done = apart("chat", prompt_dir, "--max-new-tokens", 3, given=lines)
    assert (done.returncode, done.stderr) == (0, b"")
    first, refused, again = done.stdout.decode().splitlines()
    assert refused.startswith("(that line is not UTF-8: \\xc4\\xe3\\xba\\xc3.")
    assert first == again
    assert first.startswith("tuned> ")


def test_an_answer_that_the_terminal_cannot_show():
    """A GBK terminal has no such sign; the file's name stands in the message that is printed to it."""
    script = "import sys; from ptune.cli.streams import keep_undecoded; keep_undecoded(); print('好 \U0001f600')"
    settings = {**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONIOENCODING": "gbk"}
    done = subprocess.run([sys.executable, "-c", script], env=settings, capture_output=True, check=True)
    assert done.stdout.strip() == "好 \\U0001f600".encode("gbk")
