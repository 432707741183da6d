"""The model studies a text: it asks about it, answers with the text in front, and says what else it held likely.

After Eyuboglu et al. 2025, "Cartridges": training on the text itself teaches a prompt to recite, training on questions
and answers about it teaches it to be used. Each part goes on where it was interrupted, and draws what it draws from the
seed and the number of a batch alone.

Shapes: `S` supervised tokens of a row, `K` likeliest tokens of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ptune.answering import Answerer
from ptune.compression.compress_settings import CompressSettings
from ptune.compression.excerpts import StudiedText
from ptune.compression.reading import Reading, reading
from ptune.compression.row_labels import labels_of_rows
from ptune.compression.seed_questions import ASKED, QUESTION_TOKENS, Seed, cleaned, named, seeds
from ptune.compression.study_files import (
    QUESTIONS,
    ROWS,
    LinesFile,
    read_labels,
    tokens_digest,
    write_labels,
)
from ptune.compression.study_progress import progress
from ptune.data.example import Example
from ptune.data.labels import IGNORE_INDEX
from ptune.data.soft_labels import SoftLabels
from ptune.evaluation.answers import generate_answers
from ptune.evaluation.columns import Row
from ptune.model.wrapper import PTunedModel

_TOP_P = 0.95
_ROWS_A_FILE = 64


@dataclass(frozen=True)
class Study:
    """What a study works with."""

    answerer: Answerer
    text: StudiedText
    settings: CompressSettings
    folder: Path
    seed: int
    say: Console

    @property
    def model(self) -> PTunedModel:
        """The frozen model, in eval mode."""
        return self.answerer.model


def ask(study: Study) -> list[dict[str, Any]]:
    """Have the model ask about the excerpts; what it asks, each once, with the excerpt and kind of it."""
    settings, excerpts = study.settings, study.text.excerpts
    coming = seeds(tuple(settings.kinds), len(excerpts), settings.questions)
    file = LinesFile(study.folder / QUESTIONS)
    if len(file.lines) < len(coming):  # a batch that was cut off is drawn again, as it was
        file.keep(len(file.lines) - len(file.lines) % settings.study_batch_size)
    done = len(file.lines)
    with progress("questions", len(coming), done, study.say) as advance:
        for start in range(done, len(coming), settings.study_batch_size):
            batch = coming[start : start + settings.study_batch_size]
            written = _written(study, batch, start)
            file.add(
                [
                    {"seed": number, "instruction": question, "kind": seed.kind, "excerpt": seed.excerpt}
                    for number, (seed, question) in enumerate(zip(batch, written, strict=True), start)
                ]
            )
            advance(len(batch))
    found: dict[str, dict[str, Any]] = {}
    for line in file.lines:
        found.setdefault(str(line["instruction"]), line)
    return list(found.values())


def _written(study: Study, batch: Sequence[Seed], start: int) -> list[str]:
    """A question for each seed; where the model writes none, one that names a part of the excerpt."""
    settings, excerpts, answerer = study.settings, study.text.excerpts, study.answerer
    asked = [seed for seed in batch if seed.kind in ASKED]
    ids = [answerer.encode(f"{excerpts[seed.excerpt].text}\n\n{ASKED[seed.kind]}")[0].tolist() for seed in asked]
    found: list[str] = []
    if asked:
        with torch.random.fork_rng():
            torch.manual_seed(study.seed + start)
            found = generate_answers(
                study.model,
                answerer.tokenizer,
                ids,
                prompt_names=[None] * len(ids),
                batch_size=settings.study_batch_size,
                max_new_tokens=QUESTION_TOKENS,
                do_sample=True,
                temperature=settings.temperature,
                top_p=_TOP_P,
            )
    written = iter(found)
    questions = []
    for seed in batch:
        own = cleaned(next(written)) if seed.kind in ASKED else None
        part = Seed("passage" if seed.kind in ASKED else seed.kind, seed.excerpt, seed.place)
        questions.append(own or named(part, excerpts[seed.excerpt]))
    return questions


def answer(study: Study, questions: Sequence[Example], windows: Sequence[int]) -> Path:
    """Have the model answer questions with the text in front; gives the file of rows.

    Args:
        study: The study.
        questions: What is asked.
        windows: The window that each is about.
    """
    file, settings = LinesFile(study.folder / ROWS), study.settings
    done = len(file.lines)
    with progress("answers", len(questions), done, study.say) as advance:
        for window, numbers in _by_window(windows):
            if numbers[-1] < done:
                continue
            rows = [questions[number] for number in numbers]
            place = {"window": window} if len(study.text.windows) > 1 else {}
            with reading(study.answerer, study.text.windows[window], rows, new_tokens=settings.answer_tokens) as read:
                for start in range(0, len(numbers), settings.study_batch_size):
                    part = slice(start, start + settings.study_batch_size)
                    missing = sum(number >= done for number in numbers[part])
                    if not missing:
                        continue
                    # A batch that was cut off is answered again as a whole: in other company it might be rounded
                    # otherwise.
                    lines = [
                        {"instruction": row.instruction, "input": row.input, "output": text, **place}
                        for row, text in zip(rows[part], _answers(study, read, part), strict=True)
                    ]
                    file.add(lines[-missing:])
                    advance(missing)
    return file.path


def _answers(study: Study, read: Reading, part: slice) -> list[str]:
    asked = [one.question for one in read.texts[part]]
    return generate_answers(
        study.model,
        study.answerer.tokenizer,
        asked,
        prompt_names=[read.name] * len(asked),
        batch_size=len(asked),
        max_new_tokens=study.settings.answer_tokens,
    )


def _by_window(windows: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Numbers of neighbours with one window; they stay in order, so that what is there already is the beginning."""
    start = 0
    for number in range(1, len(windows) + 1):
        if number == len(windows) or windows[number] != windows[start]:
            yield windows[start], list(range(start, number))
            start = number


def label(study: Study, rows: Sequence[Example], windows: Sequence[int]) -> list[SoftLabels]:
    """What the model holds likely at every answer token of rows, with the text in front.

    Args:
        study: The study.
        rows: Questions with answers.
        windows: The window that each is about.
    """
    found: list[SoftLabels] = []
    with progress("soft labels", len(rows), 0, study.say) as advance:
        for window, numbers in _by_window(windows):
            with reading(study.answerer, study.text.windows[window], [rows[number] for number in numbers]) as read:
                learned = [one.rows[0] for one in read.texts]
                for start in range(0, len(numbers), _ROWS_A_FILE):
                    part = learned[start : start + _ROWS_A_FILE]
                    found += _kept_labels(study, read.name, part, numbers[start])
                    advance(len(part))
    return found


def _kept_labels(study: Study, name: str | None, rows: Sequence[Row], number: int) -> list[SoftLabels]:
    """The soft labels of some rows, read where they were written before."""
    digest = tokens_digest([[*ids, IGNORE_INDEX, *labels] for ids, labels in rows])
    kept = read_labels(study.folder, number, digest)
    if kept is not None:
        return kept
    made = labels_of_rows(study.answerer, rows, name, study.settings.top_k)
    write_labels(study.folder, number, digest, made)
    return made
