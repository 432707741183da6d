"""Help is quick, since it loads no library, and names what is there."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields

import pytest

from commands import SOURCES, run
from ptune import __version__
from ptune.cli.main import COMMANDS
from ptune.cli.trainer_flags import COMMON, trainer_names
from ptune.recipe import TrainRecipe

HEAVY = ("torch", "transformers", "datasets", "numpy", "rich", "matplotlib")
PROBE = """
import sys
from ptune.cli.main import main
code = main(sys.argv[1:])
print(",".join(name for name in {heavy} if name in sys.modules), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_loads_no_library(words: list[str]):
    command = [sys.executable, "-c", PROBE.format(heavy=HEAVY), *words]
    ran = subprocess.run(command, env={"PYTHONPATH": str(SOURCES)}, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "\n"), ran.stderr
    assert ran.stdout.strip()


def test_refusing_a_setting_loads_no_library():
    command = [sys.executable, "-c", PROBE.format(heavy=HEAVY), "train", "--model", "x", "--encoder", "lsmt"]
    ran = subprocess.run(command, env={"PYTHONPATH": str(SOURCES)}, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr.endswith("\n\n"), ran.stderr


def test_usage_names_every_command():
    for words in ([], ["--help"], ["-h"], ["help"]):
        ran = run(*words)
        assert ran.code == 0
        assert all(f"  {name} " in ran.out for name in COMMANDS)
    assert run("--version").out == f"ptune {__version__}\n"


def test_unknown_flag_before_the_command():
    ran = run("--json", "train")
    assert (ran.code, ran.err) == (2, "ptune: error: unknown flag --json. The command comes first; see ptune --help.\n")


def test_train_help_has_sections_and_every_own_flag():
    text = run("train", "--help").out
    order = [text.index(f"\n{title}") for title in ("model and data:", "prompt:", "batches:", "output:", "training (")]
    assert order == sorted(order)
    for item in fields(TrainRecipe):
        assert re.search(rf"--{item.name.replace('_', '-')}[ ,]", text)


def test_train_help_names_training_flags_that_exist():
    known = trainer_names()
    for flags, _ in COMMON:
        for word in flags.split():
            if word.startswith("--"):
                assert word.strip(",")[2:].replace("-", "_") in known
