"""What `ptune generate` does with a prompt for a task: a label, tags, an answer in a context, a text."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ptune.cli.session_flags import generation_options, open_task_answerer, start_sampling
from ptune.errors import ConfigError

if TYPE_CHECKING:
    from ptune.data.tasks.task_example import TaskExample
    from ptune.saved.opened_folder import OpenedFolder
    from ptune.tasks.prediction import Prediction

_PLAIN = {
    "temperature": 0.0,
    "top_p": 1.0,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "seed": None,
    "max_new_tokens": None,
}
"""The flags of an answer that is written token by token, and what they are when nobody gave them."""


def answer_task(args: argparse.Namespace, opened: OpenedFolder, text: str) -> int:
    """Answer one text, and print the answer; returns the exit code.

    Args:
        args: The flags of `ptune generate`.
        opened: The folder of a prompt for a task.
        text: What was given, or standard input.

    Raises:
        PTuneError: A flag that does not go with the task, or as for `TaskAnswerer`.
    """
    from ptune.saved.task_of_folder import task_notes

    task = task_notes(opened).task
    _check_flags(args, task)
    example = _example(task, text, args.input)
    answerer = open_task_answerer(args, opened)
    options: dict[str, Any] = {"null_threshold": args.null_threshold}
    if task == "seq2seq":
        limit = {} if args.max_new_tokens is None else {"max_new_tokens": args.max_new_tokens}
        options |= {**generation_options(args), **limit}
    found = {}
    for name in ["base"] if args.no_prompt else ["tuned", "base"] if args.compare else ["tuned"]:
        start_sampling(args)
        (found[name],) = answerer.predictions([example], with_prompt=name == "tuned", **options)
    _print(args, task, example, found)
    return 0


def _check_flags(args: argparse.Namespace, task: str) -> None:
    """Raise `ConfigError` for a flag that does not go with the task."""
    refused: dict[str, str] = {}
    if task != "seq2seq":
        refused |= {name: "it writes no text" for name, plain in _PLAIN.items() if getattr(args, name) != plain}
    if task in ("classify", "tag", "qa"):
        why = "the frozen model's head is untrained without the prompt's own"
        refused |= {name: why for name in ("no_prompt", "compare") if getattr(args, name)}
    if args.system is not None:
        refused["system"] = "its texts have no system message"
    if task == "tag" and args.input:
        refused["input"] = "it tags the words of one text"
    if task != "qa" and args.null_threshold is not None:
        refused["null_threshold"] = "it marks no answer in a context"
    for name, why in refused.items():
        flag = "--" + name.replace("_", "-")
        raise ConfigError(f"{flag} has no use with a prompt for the task {task}: {why}.", hint=f"Leave {flag} out.")


def _example(task: str, text: str, second: str) -> TaskExample:
    from ptune.data.tasks.task_example import TaskExample

    source = "the text"
    if task == "tag":
        return TaskExample(words=tuple(text.split()), source=source)
    if task != "qa":
        return TaskExample(text=text, second=second or None, source=source)
    if not second.strip():
        raise ConfigError(
            "there is no context to find the answer in.",
            hint='Give it with --input: ptune generate DIR "question" --input "context".',
        )
    return TaskExample(question=text, context=second, source=source)


def _print(args: argparse.Namespace, task: str, example: TaskExample, found: dict[str, Prediction]) -> None:
    from ptune.cli.generate import print_side_by_side
    from ptune.cli.quiet import json_line

    if args.json:
        given = {"text": example.question or example.text or " ".join(example.words), "input": args.input, "task": task}
        words = {"words": list(example.words)} if task == "tag" else {}
        print(json_line({**given, **words, **{name: one.to_dict() for name, one in found.items()}}))
        return
    if task == "tag":
        print("\n".join("\t".join(pair) for pair in zip(example.words, found["tuned"].tags, strict=True)))
        if cut := found["tuned"].words_cut:
            print(f"ptune generate: {cut} of the words were cut off, or have no token, and so no tag", file=sys.stderr)
        return
    answers = {name: one.label or one.text for name, one in found.items()}
    if args.compare and sys.stdout.isatty():
        print_side_by_side(answers)
    elif args.compare:
        print("\n".join(f"{name}: {answer}" for name, answer in answers.items()))
    else:
        print(next(iter(answers.values())))
