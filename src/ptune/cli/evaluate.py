"""`ptune evaluate DIR --data F`: a prompt measured beside the frozen model alone and the frozen model told in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ptune.cli.flags import Parser, add_fields
from ptune.cli.session_flags import (
    add_model_flags,
    add_prompt_flags,
    is_for_texts,
    open_answerer,
    open_task_answerer,
    opened_folder,
)
from ptune.evaluation.evaluate_settings import EvaluateSettings

_MORE = """\
A prompt for another task (ptune train --task) is measured by what suits the task, beside the commonest label, no
answer, or, where that needs no trained head, the frozen model alone; DATA are rows as ptune train --task reads them.

OUTPUT (by default DIR-evaluation) holds predictions.jsonl, report.md and report.html. Interrupted, the same command
goes on where it stopped."""


def build_parser() -> Parser:
    """The flags of `ptune evaluate`."""
    parser = Parser(
        "evaluate",
        "Measure a prompt on rows that it was not trained on, beside the frozen model alone and the frozen model told "
        "in words with some examples.",
        usage="DIR --data DATA [flags]",
        more=_MORE,
    )
    add_prompt_flags(parser)
    parser.add_argument("--json", action="store_true", help="print the scores as one JSON line on stdout")
    add_fields(parser, EvaluateSettings)
    add_model_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    parser = build_parser()
    args = parser.parse(argv)
    values = {name: value for name, value in vars(args).items() if name in EvaluateSettings.__dataclass_fields__}
    values.setdefault("output", f"{Path(args.folder).absolute().name}-evaluation")
    settings = EvaluateSettings(**values)
    from ptune.cli.quiet import console, output, quiet_libraries

    quiet_libraries()
    from ptune.evaluation.evaluate import run_evaluation
    from ptune.evaluation.evaluation_report import PAGE, show_evaluation
    from ptune.evaluation.tasks.evaluate_task import run_task_evaluation
    from ptune.saved.task_of_folder import task_notes

    opened = opened_folder(args)
    if is_for_texts(opened):
        evaluation = run_evaluation(partial(open_answerer, args, opened), settings, console())
    else:
        open_prompt, task = partial(open_task_answerer, args, opened), task_notes(opened).task
        evaluation = run_task_evaluation(open_prompt, settings, console(), task=task, said=values)
    if args.json:
        print(json.dumps(evaluation.to_dict()))
    else:
        show_evaluation(evaluation, output(width=200))
        print(f"report: {settings.output}/{PAGE}")
    return 0
