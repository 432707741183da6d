"""Server-sent events: one JSON object each, and `[DONE]` at the end, as OpenAI's clients read them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse

from ptune.serving.web.api_errors import ApiError


def event(value: Any) -> bytes:
    """One event."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def streamed(chunks: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    """A response of events.

    A fault on the way is an event of its own, since the status has been sent; no `[DONE]` follows it.
    """

    async def events() -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                yield event(chunk)
        except ApiError as error:
            yield event(error.body)
        else:
            yield b"data: [DONE]\n\n"

    return StreamingResponse(
        events(), media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
