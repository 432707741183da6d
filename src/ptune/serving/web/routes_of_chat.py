"""`/v1/chat/completions`: a conversation is answered, written with the template that the prompt was trained with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ptune.serving.engine.requested import Piece
from ptune.serving.web.api_answers import ChatChoice, ChatCompletion, ChatMessage, chat_logprobs
from ptune.serving.web.api_errors import ApiError
from ptune.serving.web.api_requests import ChatRequest
from ptune.serving.web.asked_texts import chat_ids
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


def routes_of_chat(parts: Parts) -> APIRouter:
    """The route; `parts` is what the server is made of."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    @router.post("/chat/completions", response_model=ChatCompletion)
    async def chat_completions(asked: ChatRequest, request: Request) -> Response:
        """Answer a conversation, written with the template that the prompt was trained with."""
        note = request.scope[NOTE]
        note["model"] = asked.model
        prompt = prompt_named(parts, asked.model)
        ids = await ids_in_a_thread(chat_ids, asked.messages, prompt, parts.tokenizer)
        if not ids:
            raise ApiError(400, "The conversation is empty.", param="messages")
        longest = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
        told = (asked.top_logprobs or 0) if asked.logprobs else None
        under_way = begin_answers(parts, asked, prompt, [ids], longest=longest, logprobs=told)
        frame = frame_of("chatcmpl", "chat.completion", asked.model, parts)
        if asked.stream:
            frame |= {"object": "chat.completion.chunk"}
            return streamed(chunks_of(_choices(under_way), under_way, frame, asked, note), under_way.cancel)
        answers = await unless_gone(request, whole_answers(under_way))
        if answers is None:
            return Response(status_code=GONE)
        choices = [
            ChatChoice(
                index=at,
                message=ChatMessage(content=one.text),
                logprobs=chat_logprobs(one.tokens) if asked.logprobs else None,
                finish_reason=one.finish_reason,
            )
            for at, one in enumerate(answers)
        ]
        return JSONResponse(ChatCompletion(**frame, choices=choices, usage=usage_of(under_way, note)).model_dump())

    return router


async def _choices(under_way: AnswersUnderWay) -> AsyncIterator[dict[str, Any]]:
    """The pieces of all answers, each answer's role before its first."""
    for at in range(under_way.count):
        yield _delta(at, {"role": "assistant", "content": ""})
    async for at, piece in under_way.pieces():
        if piece.text or piece.tokens:
            yield _delta(at, {"content": piece.text}, piece)
        if piece.finish_reason is not None:
            yield {**_delta(at, {}), "finish_reason": piece.finish_reason}


def _delta(at: int, delta: dict[str, str], piece: Piece | None = None) -> dict[str, Any]:
    told = None if piece is None or not piece.tokens else chat_logprobs(list(piece.tokens)).model_dump()
    return {"index": at, "delta": delta, "logprobs": told, "finish_reason": None}
