"""Server-sent events: one JSON object each, and `[DONE]` at the end, as OpenAI's clients read them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ptune.serving.web.api_errors import ApiError


def event(value: Any) -> bytes:
    """One event."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


class _Events(StreamingResponse):
    """A response that says when it is over, however it ends: complete, given up, or never begun."""

    on_end: Callable[[], None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.on_end()


def streamed(chunks: AsyncIterator[dict[str, Any]], on_end: Callable[[], None]) -> StreamingResponse:
    """A response of events.

    A fault on the way is an event of its own, since the status has been sent; no `[DONE]` follows it.

    Args:
        chunks: What is sent.
        on_end: Called when nothing more is sent.
    """

    async def events() -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                yield event(chunk)
        except ApiError as error:
            yield event(error.body)
        else:
            yield b"data: [DONE]\n\n"

    response = _Events(
        events(), media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    response.on_end = on_end
    return response
