"""`ptune generate DIR "text"`: one answer, on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from ptune.cli.flags import Parser, number
from ptune.cli.session_flags import (
    add_session_flags,
    generation_options,
    is_for_texts,
    open_answerer,
    opened_folder,
    start_sampling,
)
from ptune.cli.streams import check_decoded
from ptune.errors import ConfigError

_MORE = """\
With a prompt for another task (ptune train --task) TEXT is the text to classify, the words to tag, the question of qa,
or what seq2seq writes a text for; --input is the second text of a pair, or the context that qa finds the answer in."""


def build_parser() -> Parser:
    """The flags of `ptune generate`."""
    parser = Parser(
        "generate",
        "Answer one text with a trained prompt. The answer goes to standard output.",
        usage="DIR [TEXT] [flags]",
        more=_MORE,
    )
    add_session_flags(parser)
    parser.add_argument(
        "text", nargs="?", metavar="TEXT", help="the instruction; without it, or with -, standard input"
    )
    parser.add_argument("--input", default="", metavar="TEXT", help="the instruction's input, as in Alpaca data")
    parser.add_argument(
        "--null-threshold",
        type=number(float, least=float("-inf")),
        metavar="X",
        help="for qa: no answer where that scores above the best one by more than this (default: always answer)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object with text and answers")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse(argv)
    text = args.text
    if text in (None, "-"):
        if sys.stdin.isatty():
            print("(the text, then Ctrl-D)", file=sys.stderr)
        text = check_decoded(sys.stdin.read(), "standard input").rstrip("\r\n")
    if not text.strip():
        raise ConfigError("there is no text to answer.", hint='Give it as an argument: ptune generate DIR "text".')
    from ptune.cli.quiet import quiet_libraries

    quiet_libraries()
    opened = opened_folder(args)
    if not is_for_texts(opened):
        from ptune.cli.generate_task import answer_task

        return answer_task(args, opened, text)
    if args.null_threshold is not None:
        raise ConfigError(
            "--null-threshold is for prompts that mark answers in a context, and this one writes them.",
            hint="Leave it out.",
        )
    answerer = open_answerer(args, opened)
    options = {**generation_options(args), "max_new_tokens": args.max_new_tokens, "system": args.system}
    answers = {}
    for name in ["base"] if args.no_prompt else ["tuned", "base"] if args.compare else ["tuned"]:
        start_sampling(args)
        answers[name] = answerer.answer(text, args.input, with_prompt=name == "tuned", **options)
    if args.json:
        print(json.dumps({"text": text, "input": args.input, **answers}, ensure_ascii=False))
    elif args.compare and sys.stdout.isatty():
        print_side_by_side(answers)
    elif args.compare:
        print("\n".join(f"{name}: {answer}" for name, answer in answers.items()))
    else:
        print(next(iter(answers.values())))
    return 0


def print_side_by_side(answers: dict[str, str]) -> None:
    """Both answers side by side."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("with the prompt", "frozen model alone", show_lines=True)
    table.add_row(Text(answers["tuned"]), Text(answers["base"]))
    Console().print(table)
