"""What an evaluation says of itself: as values that tell one from another, and as sentences for its report."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from ptune.answering import Answerer
from ptune.evaluation.asked_rows import AskedRows, items_digest
from ptune.evaluation.columns import Column
from ptune.evaluation.evaluate_settings import EvaluateSettings
from ptune.evaluation.told_in_words import Telling
from ptune.frozen.fingerprint import fingerprint, tokenizer_fingerprint
from ptune.memory.machine import machine, versions
from ptune.model.holds_prompts import HoldsPrompts

_FORMAT = 1


def what_is_asked(
    answerer: Answerer,
    asked: AskedRows,
    settings: EvaluateSettings,
    telling: Telling,
    *,
    room: int | None,
    new_tokens: int,
) -> dict[str, Any]:
    """Everything that a prediction depends on: with the same values, lines of an earlier run are taken up."""
    model = answerer.model
    shown = hashlib.sha256(repr([one.content() for one in telling.pool]).encode("utf-8", "surrogatepass")).hexdigest()
    return {
        "format": _FORMAT,
        "frozen model": fingerprint(model.base),
        "dtype": str(model.base.dtype),
        "tokenizer": tokenizer_fingerprint(answerer.tokenizer),
        "prompt": prompt_digest(model),
        "template": answerer.template.fingerprint,
        "data": items_digest(asked.items),
        "metrics": asdict(asked.needs),
        "written prompt": telling.words,
        "shots": telling.shots,
        "examples": shown,
        "unrelated rows": items_digest(asked.unrelated),
        "max_length": room,
        "max_new_tokens": new_tokens if asked.needs.answers else None,
        "batch_size": settings.batch_size,
    }


def prompt_digest(model: HoldsPrompts) -> str | None:
    """A name for the numbers of the active prompt, those of its head among them."""
    name = model.active_prompt
    if name is None:
        return None
    digest = hashlib.sha256()
    for key, value in sorted(model.prompts[name].state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def title_of(model: HoldsPrompts, settings: EvaluateSettings) -> str:
    """The heading of the report."""
    return f"{_model_name(model)} on {_source(settings.data)}"


def _model_name(model: HoldsPrompts) -> str:
    return str(getattr(model.base.config, "_name_or_path", "") or type(model.base).__name__)


def _source(data: str | Sequence[str]) -> str:
    return data if isinstance(data, str) else ", ".join(data)


def facts_of(
    answerer: Answerer,
    asked: AskedRows,
    settings: EvaluateSettings,
    telling: Telling,
    *,
    columns: Sequence[Column],
    new_tokens: int,
) -> Iterator[str]:
    """Sentences on what was measured and how."""
    model = answerer.model
    yield from (f"{line[:1].upper()}{line[1:]}." for line in asked.lines)
    yield f"Template: {answerer.template.text}"
    if len(columns) > 2:
        words = f"the written prompt “{telling.words}”" if telling.words else "no written prompt"
        where = settings.shots_data or "the data themselves, never the row's own question"
        count = max(len(telling.shown(item)) for item in asked.items)
        examples = f"{count} example{'s' * (count > 1)} from {where}" if count else "no examples"
        yield f"Told in words: {words}, and {examples}."
    if asked.labels:
        yield (
            "Accuracy: the likeliest label is chosen; by length: its log-likelihood is divided by its letters. No "
            "answer is generated for it."
        )
    if asked.needs.answers:
        yield f"Answers: greedy, up to {new_tokens} tokens, {settings.batch_size} questions at a time."
    if asked.needs.tokens:
        yield "Loss, perplexity and token accuracy: over the tokens of all right answers, end tokens included."
    yield f"Intervals: {settings.bootstrap:,} resamples of the questions, seed {settings.seed}."
    yield machine_fact(model)


def machine_fact(model: HoldsPrompts) -> str:
    """What it ran on."""
    place = machine()
    return (
        f"Machine: {model.base.device.type}, {place['cpu']}, {place['cores']} cores; "
        f"{str(model.base.dtype).removeprefix('torch.')}; "
        + ", ".join(f"{name} {version}" for name, version in versions().items())
        + "."
    )
