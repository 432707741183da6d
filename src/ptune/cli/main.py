"""`ptune`: picks the sub-command and turns errors into one line.

Only the chosen sub-command's module is imported, so `ptune --help` needs neither torch nor transformers.
"""

from __future__ import annotations

import importlib
import keyword
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from itertools import zip_longest

from ptune import __version__
from ptune.cli.streams import check_decoded, keep_undecoded
from ptune.errors import ConfigError, PTuneError, RunStoppedError, one_line, unknown

COMMANDS = {
    "demo": "the whole story on a real 135M model, no network needed",
    "train": "train a soft prompt on a model and a data file",
    "tune": "search for the encoder, length, start and learning rate that suit your data",
    "compress": "a long text becomes a short prompt that answers as if the text stood in front",
    "generate": "answer one text with a trained prompt",
    "chat": "talk to a model with a trained prompt",
    "serve": "prompts on one frozen model, over OpenAI's API",
    "evaluate": "how good a prompt is: scores beside the frozen model alone and told in words",
    "compare": "methods side by side on your model and data: parameters, memory, speed, loss",
    "plan": "parameters, memory and time expected, before anything is loaded",
    "inspect": "what a prompt folder holds",
    "export": "a prompt for PEFT, vLLM, as plain embeddings, or in a model folder for any engine",
    "import": "a PEFT adapter becomes a prompt folder",
}
"""Sub-commands and what they do, in the order of the help.

Each lives in `ptune.cli.<name>` as `run(argv) -> int`; where Python keeps a name for itself, in `<name>_`.
"""


_TRAINER_DEBUG = ("underflow_overflow", "tpu_metrics_debug")

_CHATTY = (
    "accelerate",
    "filelock",
    "fsspec",
    "huggingface_hub",
    "matplotlib",
    "torch.distributed",
    "torch.utils._pytree",
    "torchao",
)


def usage() -> str:
    """The text of `ptune --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ptune COMMAND [flags]      (ptune COMMAND --help shows a command's flags)",
            "",
            "Tune soft prompts (P-tuning) for Hugging Face language models; the model stays frozen.",
            "",
            *lines,
            "",
            "  --debug     show the traceback of an error",
            "  --version   print the version",
            "  --help      print this",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code (0, 2 for an error of the user's, 130 for Ctrl-C, 143 for SIGTERM)."""
    words, debug = _without_debug(sys.argv[1:] if argv is None else argv)
    command = words[0] if words else "--help"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for library in _CHATTY:
        # Before any is imported: transformers loads torchao where it is installed, which tells of missing GPUs.
        logging.getLogger(library).setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # a pipe stays plain; read by tqdm when it is imported
    keep_undecoded()
    try:
        for word in words:
            check_decoded(word, "a word of the command line")
        code = _dispatch(command, words[1:])
        sys.stdout.flush()
        return code
    except PTuneError as error:
        if debug:
            traceback.print_exc()
        name = f"ptune {command}" if command in COMMANDS else "ptune"
        what = "" if isinstance(error, RunStoppedError) else "error: "
        print(f"{_rank()}{name}: {what}{one_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print(f"{_rank()}ptune: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of a pipe has gone (`ptune generate … | head`): not an error, and nothing left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _without_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
    """The command line without ptune's own `--debug`; `--debug underflow_overflow` is for `TrainingArguments`."""
    words = list(argv)
    kept = [
        word for word, following in zip_longest(words, words[1:]) if word != "--debug" or following in _TRAINER_DEBUG
    ]
    return kept, len(kept) < len(words)


def _rank() -> str:
    """Which of several processes speaks; nothing in the first one, or when there is one."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"[process {rank}] "


def _dispatch(command: str, rest: list[str]) -> int:
    if command in ("--help", "-h", "help"):
        print(usage())
        return 0
    if command == "--version":
        print(f"ptune {__version__}")
        return 0
    if command not in COMMANDS:
        if command.startswith("-"):
            raise ConfigError(f"unknown flag {command}.", hint="The command comes first; see ptune --help.")
        raise unknown("command", command, COMMANDS)
    module = f"{command}_" if keyword.iskeyword(command) else command
    run = importlib.import_module(f"ptune.cli.{module}").run
    try:
        return int(run(rest))
    except SystemExit as leaving:  # argparse, after --help
        return int(leaving.code or 0)
