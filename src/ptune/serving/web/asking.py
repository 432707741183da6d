"""What both ways to ask have in common: from a request to the engine, and from its pieces to whole answers."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from ptune.errors import PromptError, PTuneError, one_line
from ptune.serving.engine.requested import FinishReason, Sampling, TokenLogprob
from ptune.serving.served_prompt import ServedPrompt
from ptune.serving.web.api_answers import Usage
from ptune.serving.web.api_errors import ApiError, as_api_error
from ptune.serving.web.api_requests import AnswerParameters
from ptune.serving.web.asked_texts import new_tokens
from ptune.serving.web.front_door import GONE, NOTE
from ptune.serving.web.server_parts import Parts
from ptune.serving.web.under_way import AnswersUnderWay, Asked

T = TypeVar("T")
P = ParamSpec("P")
COLDEST = 1e-3
"""A temperature below it takes the likeliest token: logits divided by it would overflow."""


@dataclass
class WholeAnswer:
    """An answer as far as it goes."""

    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None


def prompt_named(parts: Parts, name: str) -> ServedPrompt | None:
    """The prompt that a request names, None for the frozen model; an `ApiError` (404) where there is none."""
    try:
        return parts.prompts.get(name)
    except PromptError as error:
        raise ApiError(404, one_line(error), param="model", code="model_not_found") from None


async def ids_in_a_thread(work: Callable[P, list[int]], *args: P.args, **kwargs: P.kwargs) -> list[int]:
    """Token ids of a text; a long one takes longer than other requests should wait."""
    try:
        return await run_in_threadpool(work, *args, **kwargs)
    except PTuneError as error:
        raise as_api_error(error) from None


def begin_answers(
    parts: Parts,
    asked: AnswerParameters,
    prompt: ServedPrompt | None,
    texts: Sequence[list[int]],
    *,
    longest: int | None,
    logprobs: int | None,
) -> AnswersUnderWay:
    """Hand texts to the engine.

    Args:
        parts: The server.
        asked: The request.
        prompt: What the texts stand behind.
        texts: Token ids of each.
        longest: How many tokens an answer may have, where the request says.
        logprobs: How many of the likeliest tokens are told; None for no log-probabilities.

    Raises:
        ApiError: There is no room for it, the server is busy, or it is stopping.
    """
    temperature = 1.0 if asked.temperature is None else asked.temperature
    bias = {int(token): value for token, value in (asked.logit_bias or {}).items()}
    if bias and max(bias) >= parts.vocabulary:
        raise ApiError(400, f"There is no token {max(bias)}: the model knows {parts.vocabulary}.", param="logit_bias")
    sampling = Sampling(
        temperature=temperature if temperature >= COLDEST else 0.0,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        top_k=asked.top_k or 0,
        seed=asked.seed,
        repetition_penalty=asked.repetition_penalty or 1.0,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        logit_bias=bias,
    )
    shared = {
        "prompt": prompt,
        "sampling": sampling,
        "stop": asked.stops,
        "ignore_eos": bool(asked.ignore_eos),
        "logprobs": logprobs,
        "streamed": bool(asked.stream),
    }
    ready = []
    for ids in texts:
        most = new_tokens(
            ids, prompt, context=parts.context, asked=longest, most=parts.settings.max_tokens, part=asked.text_part
        )
        ready.append(Asked(ids=ids, fields={**shared, "max_new_tokens": most}))
    choices = asked.n or 1
    return AnswersUnderWay(parts.engine, ready, choices, parts.settings.timeout_seconds, parts.measured)


async def whole_answers(under_way: AnswersUnderWay) -> list[WholeAnswer]:
    """All answers, complete."""
    answers = [WholeAnswer() for _ in range(under_way.count)]
    async for at, piece in under_way.pieces():
        answers[at].text += piece.text
        answers[at].tokens += piece.tokens
        answers[at].finish_reason = piece.finish_reason
    return answers


async def unless_gone(request: Request, work: Awaitable[T]) -> T | None:
    """What the work gives; None when the client has gone before, and the work with it."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        request.scope[NOTE]["status"] = GONE
        return None
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.wait({doing, leaving})


async def chunks_of(
    choices: AsyncIterator[dict[str, Any]],
    under_way: AnswersUnderWay,
    frame: dict[str, Any],
    asked: AnswerParameters,
    note: dict[str, Any],
) -> AsyncIterator[dict[str, Any]]:
    """What a stream sends: a chunk for each piece of a choice, and how many tokens it was where that is wanted.

    Args:
        choices: The pieces, in the API's form.
        under_way: What they come from.
        frame: What stands around them.
        asked: The request.
        note: Its log line.
    """
    async for choice in choices:
        yield {**frame, "choices": [choice]}
    usage = usage_of(under_way, note)
    if asked.wants_usage:
        yield {**frame, "choices": [], "usage": usage.model_dump()}


def frame_of(prefix: str, kind: str, model: str, parts: Parts) -> dict[str, Any]:
    """What stands around the choices of a response and of each chunk."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": parts.fingerprint,
    }


def usage_of(under_way: AnswersUnderWay, note: dict[str, Any]) -> Usage:
    """The tokens of a request that is answered, which the log line is told too."""
    read, written = under_way.prompt_tokens, under_way.completion_tokens
    note |= {"prompt_tokens": read, "completion_tokens": written}
    return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
