"""An evaluation from files to scores, top to bottom: read, open, ask each column, score.

`evaluate` is what `ptune evaluate` calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ptune.answering import Answerer
from ptune.choices import NEW_TOKENS
from ptune.config import TaskType
from ptune.errors import ModelError
from ptune.evaluation.asked_rows import AskedRows, read_asked
from ptune.evaluation.asking_progress import progress_bar, say_line
from ptune.evaluation.columns import ALONE, PROMPT, TITLES, Column, ItemTexts, item_texts, plain_column
from ptune.evaluation.evaluate_settings import EvaluateSettings
from ptune.evaluation.evaluation_facts import facts_of, title_of, what_is_asked
from ptune.evaluation.evaluation_report import write_reports
from ptune.evaluation.evaluation_result import Cost, Evaluation, score_all
from ptune.evaluation.items import Item
from ptune.evaluation.measured import outcomes
from ptune.evaluation.metrics import with_keys
from ptune.evaluation.outcomes import Outcome
from ptune.evaluation.predictions import Predictions
from ptune.evaluation.tasks.evaluate_task import run_task_evaluation
from ptune.evaluation.told_in_words import Telling, told_in_words
from ptune.evaluation.unrelated import UNRELATED, compared, unrelated_scores
from ptune.frozen.eval_mode import in_eval_mode
from ptune.saved.hub import prompt_folder
from ptune.saved.opened_folder import open_folder
from ptune.saved.task_of_folder import task_notes
from ptune.task_answering import TaskAnswerer

__all__ = ["Evaluation", "evaluate"]


def evaluate(
    prompt: str | Path | Answerer | TaskAnswerer, *, console: Console | None = None, **settings: Any
) -> Evaluation:
    """Measure a prompt beside the frozen model alone and the frozen model told in words.

    A prompt for another task is measured by what suits the task, beside the frozen model alone where that can answer
    without a trained head.

    Args:
        prompt: The prompt folder, its hub id, or one that is open.
        console: Where to report; nowhere by default.
        settings: The fields of `EvaluateSettings`: `data` and, as wanted, `metrics`, `labels`, `written_prompt`,
            `shots`, `shots_data`, `unrelated`, `output` and others.

    Returns:
        The scores. With `output` the folder holds `predictions.jsonl`, `report.md` and `report.html`.

    Raises:
        PTuneError: Anything the user can fix.
    """
    chosen, say = EvaluateSettings(**settings), console or Console(quiet=True)
    if isinstance(prompt, Answerer):
        return run_evaluation(lambda: prompt, chosen, say)
    if isinstance(prompt, TaskAnswerer):
        return run_task_evaluation(lambda: prompt, chosen, say, task=prompt.task)
    opened = open_folder(prompt_folder(prompt))
    if opened.task is TaskType.CAUSAL_LM:
        return run_evaluation(partial(Answerer.open, opened), chosen, say)
    return run_task_evaluation(partial(TaskAnswerer.open, opened), chosen, say, task=task_notes(opened).task)


def run_evaluation(open_prompt: Callable[[], Answerer], settings: EvaluateSettings, say: Console) -> Evaluation:
    """`evaluate` for answers to texts, with the prompt opened when the rows have been read."""
    asked = read_asked(settings)
    answerer = open_prompt()
    with in_eval_mode(answerer.model):
        evaluation = _measured(_Run(answerer, asked, settings, say))
    if settings.output is not None:
        write_reports(evaluation, Path(settings.output))
    return evaluation


@dataclass(frozen=True)
class _Run:
    """What one evaluation works with."""

    answerer: Answerer
    asked: AskedRows
    settings: EvaluateSettings
    say: Console


def _measured(run: _Run) -> Evaluation:
    """Ask every column, and score."""
    answerer, asked, settings, model = run.answerer, run.asked, run.settings, run.answerer.model
    name = model.active_prompt
    width = 0 if name is None else model.prompt_configs[name].leading_tokens
    room = _room(model.context_length, width, settings.max_length)
    texts, others = (
        [item_texts(item, answerer.template, answerer.tokenizer, room) for item in items]
        for items in (asked.items, asked.unrelated)
    )
    new_tokens = _new_tokens(asked, texts, width, limit=model.context_length, wanted=settings.max_new_tokens)
    with ExitStack() as stack:
        bare = [one.bare() for one in texts]
        columns = [plain_column(ALONE, bare, None, 0)]
        telling = Telling.drawn(settings.written_prompt, asked.pool, settings.shots, settings.seed)
        if not asked.documents and (telling.words or telling.shown(asked.items[0])):
            answers = new_tokens if asked.needs.answers else 0
            told = told_in_words(answerer, asked.items, telling, plain=bare, new_tokens=answers)
            column, telling = stack.enter_context(told)
            if telling.words or telling.shots:  # the context may have no room for any example
                columns.append(column)
        tokens = 0 if name is None else model.prompt_configs[name].num_virtual_tokens
        columns.append(plain_column(PROMPT, texts, name, tokens))
        noted = what_is_asked(answerer, asked, settings, telling, room=room, new_tokens=new_tokens)
        folder = None if settings.output is None else Path(settings.output)
        predictions = Predictions(folder, noted, overwrite=settings.overwrite)
        # Whatever is wrong with the request has been said by now, in one line and with nothing written.
        for line in asked.lines:
            say_line(run.say, line)
        if cut := sum(one.cut for one in texts):
            say_line(run.say, f"cut {cut:,} answers at {room:,} tokens")
        if len(predictions):
            say_line(run.say, f"going on behind the {len(predictions):,} lines of {settings.output}")
        work = partial(outcomes, model, answerer.tokenizer, needs=asked.needs, max_new_tokens=new_tokens)
        found = {column.name: _ask(run, column, work, predictions) for column in columns}
        lines = _compare(run, others, predictions)
        predictions.finish()
    sampling: dict[str, int] = {"times": settings.bootstrap, "seed": settings.seed}
    return Evaluation(
        title=title_of(model, settings),
        columns=tuple(found),
        items=asked.items,
        labels=asked.labels,
        outcomes=found,
        metrics=score_all(with_keys(asked.metrics, asked.items), asked.items, found, asked.labels, **sampling),
        costs={column.name: _cost(column, found[column.name]) for column in columns},
        unrelated=unrelated_scores(lines, **sampling) if lines else None,
        facts=tuple(facts_of(answerer, asked, settings, telling, columns=columns, new_tokens=new_tokens)),
    )


# ---- asking ----------------------------------------------------------------------------------------------------------


def _ask(run: _Run, column: Column, work: Callable[..., list[Outcome]], predictions: Predictions) -> list[Outcome]:
    """What a column makes of every item; what `predictions` hold is not asked again."""
    items = run.asked.items
    todo = [at for at in range(len(items)) if _outcome(predictions, column.name, at, run.asked) is None]
    with progress_bar(TITLES[column.name], len(items), len(items) - len(todo), run.say) as advance:
        for numbers in column.batches(todo, run.settings.batch_size):
            made = zip(numbers, work(column, numbers), strict=True)
            predictions.add({**_line_of(items[at], at, column.name), **one.to_dict()} for at, one in made)
            advance(len(numbers))
    found = [_outcome(predictions, column.name, number, run.asked) for number in range(len(items))]
    return [one for one in found if one is not None]


def _line_of(item: Item, number: int, column: str) -> dict[str, Any]:
    """What a line says of an item."""
    said = {"question": item.question, "references": list(item.references)}
    return {"row": number, "column": column, "source": item.source, **said}


def _outcome(predictions: Predictions, column: str, number: int, asked: AskedRows) -> Outcome | None:
    """The outcome that a line tells; None where there is no such line, or none that can be used."""
    if (column, number) not in predictions:
        return None
    try:
        found = Outcome.of(predictions[column, number])
    except (KeyError, TypeError, ValueError):
        return None
    complete = len(found.labels or ()) == len(asked.needs.labels) and (found.answer is not None) == asked.needs.answers
    return found if complete else None


def _compare(run: _Run, texts: Sequence[ItemTexts], predictions: Predictions) -> list[dict[str, Any]]:
    """The lines of the unrelated rows."""
    if not texts:
        return []
    model, items, size = run.answerer.model, run.asked.unrelated, run.settings.batch_size
    todo = [number for number in range(len(texts)) if (UNRELATED, number) not in predictions]
    with progress_bar("unrelated rows", len(texts), len(texts) - len(todo), run.say) as advance:
        for start in range(0, len(todo), size):
            numbers = todo[start : start + size]
            made = zip(numbers, compared(model, [texts[at] for at in numbers], model.active_prompt), strict=True)
            predictions.add({**_line_of(items[at], at, UNRELATED), **one} for at, one in made)
            advance(len(numbers))
    return [predictions[UNRELATED, number] for number in range(len(texts))]


# ---- sizes -----------------------------------------------------------------------------------------------------------


def _room(limit: int | None, width: int, max_length: int | None) -> int | None:
    """Tokens that a row may have."""
    there = None if limit is None else limit - width
    return min((one for one in (there, max_length) if one is not None), default=None)


def _new_tokens(asked: AskedRows, texts: Sequence[ItemTexts], width: int, limit: int | None, wanted: int | None) -> int:
    """Tokens that an answer may have.

    Raises:
        ModelError: The context has no room for them.
    """
    expected = max(one.longest_answer for one in texts)
    count = wanted or min(NEW_TOKENS, expected + expected // 4 + 1)
    longest = max(texts, key=lambda one: len(one.question))
    room = count if limit is None else limit - width - len(longest.question)
    if asked.needs.answers and room < (wanted or 1):
        raise ModelError(
            f"{longest.source}: prompt and question leave {max(room, 0)} of the model's context of {limit} tokens for "
            "the answer.",
            hint="Leave the row out, or lower max_new_tokens.",
        )
    return min(count, max(room, 1))


def _cost(column: Column, found: Sequence[Outcome]) -> Cost:
    return Cost(column.prompt_tokens, sum(one.seconds for one in found) / max(len(found), 1))
