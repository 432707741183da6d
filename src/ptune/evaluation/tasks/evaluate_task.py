"""An evaluation of a prompt for a task from files to scores, top to bottom: read, open, ask each column, score.

Columns are the frozen model alone and the prompt for `seq2seq` and `fill`. A prompt that has a head of its own stands
beside one answer to every row instead: without it the frozen model's head is untrained.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from ptune.choices import FILL, METRIC_GROUPS, QA, SEQ2SEQ
from ptune.errors import ConfigError
from ptune.evaluation.asking_progress import progress_bar, say_line
from ptune.evaluation.columns import ALONE, COMMONEST, NO_ANSWER, PROMPT, TITLES
from ptune.evaluation.evaluate_settings import EvaluateSettings
from ptune.evaluation.evaluation_facts import title_of
from ptune.evaluation.evaluation_report import write_reports
from ptune.evaluation.evaluation_result import Cost, Evaluation, score_all
from ptune.evaluation.outcomes import Outcome
from ptune.evaluation.predictions import Predictions
from ptune.evaluation.tasks.asked_task import AskedTask, read_asked_task, rows_of
from ptune.evaluation.tasks.task_facts import task_facts, what_is_asked_of_a_task
from ptune.evaluation.tasks.task_metrics import breakdown, task_metrics
from ptune.evaluation.tasks.task_outcomes import ask, constant, is_whole
from ptune.frozen.eval_mode import in_eval_mode
from ptune.task_answering import TaskAnswerer

_BATCHES = 4
"""Batches whose lines are written together; their rows are sorted by length."""


def run_task_evaluation(
    open_prompt: Callable[[], TaskAnswerer],
    settings: EvaluateSettings,
    say: Console,
    *,
    task: str,
    said: Collection[str] = (),
) -> Evaluation:
    """Measure a prompt for a task.

    Args:
        open_prompt: Opens it; called when the rows have been read.
        settings: What is measured, on which rows.
        say: Where to report.
        task: What the prompt is for.
        said: Names of settings that somebody gave, as for `read_asked_task`.

    Raises:
        PTuneError: Anything the user can fix.
    """
    asked = read_asked_task(settings, task, said)
    answerer = _within(open_prompt(), settings)
    asked.check_labels(answerer.labels)
    with in_eval_mode(answerer.model):
        evaluation = _measured(_Run(answerer, asked, settings, say))
    if settings.output is not None:
        write_reports(evaluation, Path(settings.output))
    return evaluation


@dataclass(frozen=True)
class _Run:
    """What one evaluation works with."""

    answerer: TaskAnswerer
    asked: AskedTask
    settings: EvaluateSettings
    say: Console

    @property
    def answers(self) -> bool:
        """Whether texts are to be written."""
        return bool(set(self.asked.metrics) & set(METRIC_GROUPS["texts"]))


def _within(answerer: TaskAnswerer, settings: EvaluateSettings) -> TaskAnswerer:
    """The prompt with the length of rows that was asked for.

    Raises:
        ConfigError: It has no room in the model's context.
    """
    wanted, limit = settings.max_length, answerer.model.context_length
    if wanted is None:
        return answerer
    room = None if limit is None else limit - answerer.model.active_peft_config.num_virtual_tokens
    if room is not None and wanted > room:
        raise ConfigError(
            f"max_length {wanted} and the prompt exceed the model's context of {limit} tokens.",
            hint=f"Take at most {room}.",
        )
    return replace(answerer, max_length=wanted)


def _measured(run: _Run) -> Evaluation:
    """Ask every column, and score."""
    answerer, asked, settings = run.answerer, run.asked, run.settings
    report = answerer.encode(rows_of(asked.items), learned=True).report
    noted = what_is_asked_of_a_task(answerer, asked, settings, answers=run.answers)
    folder = None if settings.output is None else Path(settings.output)
    predictions = Predictions(folder, noted, overwrite=settings.overwrite)
    # Whatever is wrong with the request has been said by now, in one line and with nothing written.
    for line in (*asked.lines, *report.lines()):
        say_line(run.say, line)
    if len(predictions):
        say_line(run.say, f"going on behind the {len(predictions):,} lines of {settings.output}")
    found: dict[str, list[Outcome]] = {}
    commonest: str | None = None
    if asked.task in (SEQ2SEQ, FILL):
        found[ALONE] = _ask(run, ALONE, predictions)
    else:
        name = NO_ANSWER if asked.task == QA else COMMONEST
        found[name], commonest = constant(asked.task, asked.items, answerer.labels)
    found[PROMPT] = _ask(run, PROMPT, predictions)
    predictions.finish()
    tokens = answerer.model.active_peft_config.num_virtual_tokens
    return Evaluation(
        title=title_of(answerer.model, settings),
        columns=tuple(found),
        items=asked.items,
        labels=answerer.labels,
        outcomes=found,
        metrics=score_all(
            task_metrics(asked.task, asked.metrics, asked.items),
            asked.items,
            found,
            answerer.labels,
            times=settings.bootstrap,
            seed=settings.seed,
        ),
        costs={
            name: Cost(tokens if name == PROMPT else 0, sum(one.seconds for one in made) / max(len(made), 1))
            for name, made in found.items()
        },
        unrelated=None,
        facts=tuple(task_facts(answerer, asked, settings, report, commonest)),
        by_label=breakdown(asked.task, asked.items, found[PROMPT], answerer.labels),
        task=asked.task,
    )


def _ask(run: _Run, column: str, predictions: Predictions) -> list[Outcome]:
    """What a column makes of every item; what `predictions` hold is not asked again."""
    items, settings = run.asked.items, run.settings
    todo = [at for at in range(len(items)) if _outcome(run, column, at, predictions) is None]
    todo.sort(key=lambda at: len(items[at].question) + len(items[at].example.context))
    size = settings.batch_size * _BATCHES
    with progress_bar(TITLES[column], len(items), len(items) - len(todo), run.say) as advance:
        for start in range(0, len(todo), size):
            numbers = todo[start : start + size]
            made = ask(
                run.answerer,
                [items[at] for at in numbers],
                with_prompt=column == PROMPT,
                answers=run.answers,
                batch_size=settings.batch_size,
                null_threshold=run.asked.null_threshold,
                max_new_tokens=settings.max_new_tokens,
            )
            predictions.add(
                {
                    "row": at,
                    "column": column,
                    "source": items[at].source,
                    "question": items[at].question,
                    "references": list(items[at].references),
                    **told,
                    **outcome.to_dict(),
                }
                for at, (outcome, told) in zip(numbers, made, strict=True)
            )
            advance(len(numbers))
    found = [_outcome(run, column, at, predictions) for at in range(len(items))]
    return [one for one in found if one is not None]


def _outcome(run: _Run, column: str, number: int, predictions: Predictions) -> Outcome | None:
    """The outcome that a line tells; None where there is no such line, or none that can be used."""
    if (column, number) not in predictions:
        return None
    try:
        found = Outcome.of(predictions[column, number])
    except (KeyError, TypeError, ValueError):
        return None
    whole = is_whole(found, run.asked.items[number], run.answerer.labels, answers=run.answers)
    return found if whole else None
