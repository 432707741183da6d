"""What a task's evaluation says of itself: as values that tell one from another, and as sentences for its report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ptune.choices import CLASSIFY, FILL, QA, SEQ2SEQ, TAG
from ptune.data.tasks.task_token_report import TaskTokenReport
from ptune.errors import shown
from ptune.evaluation.evaluate_settings import EvaluateSettings
from ptune.evaluation.evaluation_facts import machine_fact, prompt_digest
from ptune.evaluation.tasks.asked_task import AskedTask
from ptune.evaluation.tasks.task_items import task_digest
from ptune.frozen.fingerprint import fingerprint, tokenizer_fingerprint
from ptune.task_answering import TaskAnswerer

_FORMAT = 1
_UNTRAINED = "The frozen model alone is left out: its head is trained with the prompt, and says nothing without."


def what_is_asked_of_a_task(
    answerer: TaskAnswerer, asked: AskedTask, settings: EvaluateSettings, *, answers: bool
) -> dict[str, Any]:
    """Everything that a prediction depends on: with the same values, lines of an earlier run are taken up."""
    model = answerer.model
    return {
        "format": _FORMAT,
        "task": answerer.task,
        "frozen model": fingerprint(model.prompt_base),
        "dtype": str(model.base.dtype),
        "tokenizer": tokenizer_fingerprint(answerer.tokenizer),
        "prompt": prompt_digest(model),
        "template": None if answerer.template is None else answerer.template.fingerprint,
        "labels": list(answerer.labels),
        "verbalizer": None if answerer.verbalizer is None else dict(answerer.verbalizer),
        "data": task_digest(asked.items),
        "answers": answers,
        "max_length": answerer.max_length,
        "target_length": answerer.target_length,
        "max_new_tokens": settings.max_new_tokens,
        "null_threshold": asked.null_threshold,
        "batch_size": settings.batch_size,
    }


def task_facts(
    answerer: TaskAnswerer,
    asked: AskedTask,
    settings: EvaluateSettings,
    report: TaskTokenReport,
    commonest: str | None,
) -> Iterator[str]:
    """Sentences on what was measured and how.

    Args:
        answerer: The prompt.
        asked: The rows.
        settings: What was asked for.
        report: Of the rows as tokens.
        commonest: The one answer that stands beside the prompt's; None where the frozen model itself does.
    """
    task = answerer.task
    yield from (f"{line[:1].upper()}{line[1:]}." for line in (*asked.lines, *report.lines()))
    if answerer.template is not None:
        yield f"Template: {answerer.template.text}"
    if commonest is not None:
        yield _UNTRAINED
    if task in (CLASSIFY, TAG):
        yield f"The commonest label: {shown(commonest)}, given to every {'word' if task == TAG else 'row'} of the data."
    if task == TAG:
        yield (
            "Entities: right where kind, first and last word are (CoNLL's rule). Words that were cut off count as "
            "outside, and as tagged wrongly."
        )
    if task == QA:
        none = asked.null_threshold
        yield "Exact match and F1: SQuAD's, of several right answers the nearest."
        yield (
            "An answer is always given."
            if none is None
            else f"No answer is given where its score is above the best span's by more than {none:g}."
        )
    if task == FILL:
        yield "The loss is over the whole vocabulary, as in training; a label is chosen among the words of the labels."
    if task == SEQ2SEQ:
        yield f"Texts: greedy, up to {settings.max_new_tokens or answerer.target_length} tokens."
    yield f"Intervals: {settings.bootstrap:,} resamples of the rows, seed {settings.seed}."
    yield machine_fact(answerer.model)
