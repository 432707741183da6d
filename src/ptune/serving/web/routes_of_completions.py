"""`/v1/completions`: a text goes on, behind the prompt's virtual tokens, as it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ptune.serving.web.api_answers import Completion, CompletionChoice, completion_logprobs
from ptune.serving.web.api_requests import CompletionRequest
from ptune.serving.web.asked_texts import completion_ids
from ptune.serving.web.asking import (
    begin_answers,
    chunks_of,
    frame_of,
    ids_in_a_thread,
    prompt_named,
    unless_gone,
    usage_of,
    whole_answers,
)
from ptune.serving.web.front_door import GONE, NOTE
from ptune.serving.web.server_parts import Parts
from ptune.serving.web.sse import streamed
from ptune.serving.web.under_way import AnswersUnderWay


def routes_of_completions(parts: Parts) -> APIRouter:
    """The route; `parts` is what the server is made of."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    @router.post("/completions", response_model=Completion)
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        """Go on with a text, which stands behind the prompt's virtual tokens as it is."""
        note = request.scope[NOTE]
        note["model"] = asked.model
        prompt = prompt_named(parts, asked.model)
        texts = [
            await ids_in_a_thread(completion_ids, text, prompt, parts.tokenizer, parts.vocabulary)
            for text in asked.texts
        ]
        under_way = begin_answers(parts, asked, prompt, texts, longest=asked.max_tokens, logprobs=asked.logprobs)
        frame = frame_of("cmpl", "text_completion", asked.model, parts)
        if asked.stream:
            choices = _choices(under_way, asked.logprobs)
            return streamed(chunks_of(choices, under_way, frame, asked, note), under_way.cancel)
        answers = await unless_gone(request, whole_answers(under_way))
        if answers is None:
            return Response(status_code=GONE)
        whole = [
            CompletionChoice(
                index=at,
                text=one.text,
                logprobs=None if asked.logprobs is None else completion_logprobs(one.tokens, asked.logprobs),
                finish_reason=one.finish_reason,
            )
            for at, one in enumerate(answers)
        ]
        return JSONResponse(Completion(**frame, choices=whole, usage=usage_of(under_way, note)).model_dump())

    return router


async def _choices(under_way: AnswersUnderWay, count: int | None) -> AsyncIterator[dict[str, Any]]:
    """The pieces of all answers; with `count` of the likeliest tokens at each place."""
    async for at, piece in under_way.pieces():
        logprobs = None
        if count is not None and piece.tokens:
            logprobs = completion_logprobs(list(piece.tokens), count).model_dump()
        yield {"index": at, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish_reason}
