"""What is studied: the questions, the template that writes them, and the text in windows with room for them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ptune.answering import Answerer
from ptune.compression.compress_settings import CompressSettings
from ptune.compression.excerpts import StudiedText, cut_text
from ptune.compression.reading import told
from ptune.compression.seed_questions import QUESTION_TOKENS, longest_named
from ptune.compression.self_study import Study, answer, ask
from ptune.compression.study_files import ROWS
from ptune.data.example import Example
from ptune.data.records import load_examples
from ptune.data.template import Template, get_template
from ptune.errors import ConfigError, DataError
from ptune.frozen.fingerprint import fingerprint, tokenizer_fingerprint

_ENDS = 4
"""Tokens by which pieces of text put together may be more than the sum of them."""


def given_questions(settings: CompressSettings, encoding: str | None) -> list[Example] | None:
    """The questions of DATA; None where the model asks its own.

    Raises:
        DataError: They cannot be read, or are whole texts.
    """
    if settings.data is None:
        return None
    found = list(load_examples(settings.data, require_output=False, encoding=encoding))[: settings.questions]
    for one in found:
        if one.document or one.history:
            raise DataError(
                f"{one.source} is no single question.", hint="Give rows with a question each (instruction, input)."
            )
    return [Example(instruction=one.instruction, input=one.input, source=one.source) for one in found]


def template_of_rows(settings: CompressSettings, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The one asked for; by default the chat template, where the model has one.

    Raises:
        ConfigError: It cannot be used.
    """
    found = get_template(settings.template or ("chat" if tokenizer.chat_template else "tutorial"), tokenizer)
    if found.blocks:
        raise ConfigError(
            "a compressed prompt stands before everything, and the template has places for virtual tokens.",
            hint="Leave {prompt:N} out of it.",
        )
    return found


def cut_for(
    text: str,
    answerer: Answerer,
    settings: CompressSettings,
    questions: Sequence[Example] | None,
    asked: Sequence[Example],
) -> StudiedText:
    """The text in windows, each with room for any of the questions and its answer behind it.

    Args:
        text: All of it.
        answerer: Writes them.
        settings: The longest answer.
        questions: What is studied; None where the model asks its own.
        asked: Questions with right answers for the report.
    """
    context, tokenizer = answerer.model.context_length, answerer.tokenizer
    window = None
    if context is not None:
        own = (Example(instruction="?"), Example(instruction=longest_named(text)))
        studied = [len(one.question) for one in told(answerer, ".", questions or own)]
        if not questions:  # what the model will ask is not known yet
            studied.append(studied[0] + QUESTION_TOKENS)
        longest = [max(studied) + settings.answer_tokens]
        for one in told(answerer, ".", asked) if asked else ():
            longest += [one.longest, len(one.question) + settings.answer_tokens]
        window = context - max(longest) - _ENDS
    return cut_text(text, tokenizer, excerpt_tokens=settings.excerpt_tokens, window_tokens=window)


def same_study(study: Study, text: str, questions: Sequence[Example] | None) -> dict[str, Any]:
    """What makes two studies the same; of a study that is named, what it must have been of."""
    settings = study.settings
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    of = {
        "text": digest,
        "model": fingerprint(study.model.base),
        "dtype": str(study.model.base.dtype),
        "tokenizer": tokenizer_fingerprint(study.answerer.tokenizer),
        "template": study.answerer.template.text,
        **({"windows": [len(window) for window in study.text.windows]} if len(study.text.windows) > 1 else {}),
    }
    if settings.study is not None:
        return of
    asked: Any = [one.question for one in questions] if questions is not None else list(settings.kinds)
    return {
        **of,
        "questions": hashlib.sha256(repr(asked).encode("utf-8", "surrogatepass")).hexdigest(),
        **{name: getattr(settings, name) for name in ("excerpt_tokens", "temperature", "answer_tokens", "top_k")},
        "number of questions": settings.questions,
        "seed": study.seed,
    }


def text_line(text: StudiedText) -> str:
    """How long the text is, and how it is read."""
    windows = len(text.windows)
    whole = "whole" if windows == 1 else f"in {windows} parts, since the model's context has no room for all of it"
    return f"the text has {text.tokens:,} tokens and is read {whole}; {len(text.excerpts):,} excerpts"


def study_rows(study: Study, questions: Sequence[Example] | None) -> Path:
    """Questions and answers; gives the file of rows."""
    if study.settings.study is not None:
        return study.folder / ROWS
    if questions is None:
        lines = ask(study)
        questions = [Example(instruction=str(line["instruction"])) for line in lines]
        windows = [study.text.excerpts[int(line["excerpt"])].window for line in lines]
    else:
        windows = [study.text.window_of(one.question) for one in questions]
    order = sorted(range(len(questions)), key=windows.__getitem__)
    return answer(study, [questions[at] for at in order], [windows[at] for at in order])
