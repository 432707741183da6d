"""Limits on what a request's body may cost: how large it is, and how long it may take to come.

A body is counted while it comes. Once it is too large nothing more of it is taken, and the connection ends with the
response. What is inside gets it whole.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ptune.serving.web.api_errors import ApiError

_CLOSE = {"Connection": "close"}


class BodyLimits:
    """ASGI middleware.

    Args:
        app: What is inside.
        most_bytes: The most of a body.
        seconds: How long nothing of it may come.
    """

    def __init__(self, app: ASGIApp, *, most_bytes: int, seconds: float) -> None:
        self._app, self._most_bytes, self._seconds = app, most_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._body(scope, receive)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if body is None:
            return
        given = False

        async def whole() -> Message:
            nonlocal given
            if given:  # what comes now is that the client has gone
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, whole, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None when the client has gone before.

        Raises:
            ApiError: It is too large, or does not come.
        """
        said = Headers(scope=scope).get("content-length", "")
        if said.isdecimal() and (len(said) > 18 or int(said) > self._most_bytes):
            raise self._too_large()
        parts, taken = [], 0
        while True:
            try:
                async with asyncio.timeout(self._seconds):
                    message = await receive()
            except TimeoutError:
                raise ApiError(
                    408, f"Nothing of the body came for {self._seconds:g} seconds.", code="timeout", headers=_CLOSE
                ) from None
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            taken += len(parts[-1])
            if taken > self._most_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"The body is larger than {self._most_bytes:,} bytes.", code="body_too_large", headers=_CLOSE
        )
