"""Limits on what a connection may cost: the size of a body, how long it may take to come, and to be read.

A body is counted while it comes. Once it is too large nothing more of it is taken, and the connection ends with the
response.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ptune.serving.web.api_errors import ApiError


class StalledReaderError(OSError):
    """The client does not read what it is sent."""


class Limits:
    """ASGI middleware.

    Args:
        app: What is inside.
        body_bytes: The most of a body.
        seconds: How long nothing may happen while a body is read, or while the client reads.
    """

    def __init__(self, app: ASGIApp, *, body_bytes: int, seconds: float) -> None:
        self._app, self._body_bytes, self._seconds = app, body_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        taken, complete, started = 0, False, False

        async def limited() -> Message:
            nonlocal taken, complete
            if complete:  # what comes now is that the client has gone
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._seconds)
            except TimeoutError:
                raise ApiError(
                    408, f"Nothing of the body came for {self._seconds:g} seconds.", code="timeout", headers=_CLOSE
                ) from None
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if taken > self._body_bytes:
                    raise self._too_large()
            else:
                complete = True
            return message

        async def timed(message: Message) -> None:
            nonlocal started
            started = True
            try:
                await asyncio.wait_for(send(message), self._seconds)
            except TimeoutError:
                raise StalledReaderError("the client does not read") from None

        try:
            said = Headers(scope=scope).get("content-length", "")
            if said.isdecimal() and (len(said) > 18 or int(said) > self._body_bytes):
                raise self._too_large()
            await self._app(scope, limited, timed)
        except ApiError as error:
            if started:
                raise
            await error.response()(scope, receive, timed)

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"The body is larger than {self._body_bytes:,} bytes.", code="body_too_large", headers=_CLOSE
        )


_CLOSE = {"Connection": "close"}
