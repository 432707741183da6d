"""`ptune generate DIR "text"`: one answer, on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from ptune.cli.flags import Parser
from ptune.errors import ConfigError


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    from ptune.cli.quiet import quiet_libraries
    from ptune.cli.session import add_session_flags, generation_options, open_session

    parser = Parser("generate", "Answer one text with a trained prompt. The answer goes to standard output.")
    add_session_flags(parser)
    parser.add_argument("text", nargs="?", default=None, help="the instruction (default, or with '-': standard input)")
    parser.add_argument("--input", default="", help="the instruction's input, as in Alpaca data")
    parser.add_argument("--system", default=None, help="a system message, where the template has a place for one")
    parser.add_argument("--json", action="store_true", help="print one JSON object with text and answers")
    args = parser.parse(argv)
    text = args.text if args.text not in (None, "-") else sys.stdin.read()
    if not text.strip():
        raise ConfigError("there is no text to answer.", hint='Give it as an argument: ptune generate DIR "text".')
    quiet_libraries()
    session = open_session(args)
    if args.seed is not None:
        from transformers import set_seed

        set_seed(args.seed)
    ids = session.encode(text, args.input, system=args.system)
    options = generation_options(args)
    answers = {}
    if not args.no_prompt:
        answers["tuned"] = session.answer(ids, **options)
    if args.no_prompt or args.compare:
        answers["base"] = session.answer(ids, with_prompt=False, **options)
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
    table.add_row(Text(answers.get("tuned", "")), Text(answers.get("base", "")))
    Console().print(table)
