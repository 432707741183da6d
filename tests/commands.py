"""Running `ptune`: in this process, or in one of its own."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ptune.cli.main import main

SOURCES = Path(__file__).resolve().parents[1] / "src"


@dataclass(frozen=True)
class Ran:
    """What a command line gave."""

    code: int
    out: str
    err: str


def run(*argv: object, stdin: str = "") -> Ran:
    """A command line in this process."""
    out, err, before = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.StringIO(stdin)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(word) for word in argv])
    finally:
        sys.stdin = before
    return Ran(code, out.getvalue(), err.getvalue())


def run_apart(*argv: object, module: str = "ptune", stdin: str = "", **environment: str) -> Ran:
    """A command line in a process of its own."""
    settings = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", module, *map(str, argv)]
    done = subprocess.run(command, input=stdin, env=settings, capture_output=True, text=True, check=False, timeout=300)
    return Ran(done.returncode, done.stdout, done.stderr)


def train_words(model: Path | str, data: Path, output: Path, /, *more: object, **values: object) -> list[object]:
    """The words of a short `ptune train`."""
    flags = {"model": model, "data": data, "output": output, "max_steps": 2, **values}
    given = [(f"--{name.replace('_', '-')}", value) for name, value in flags.items() if value is not None]
    return ["train", *(word for flag in given for word in flag), *more]
