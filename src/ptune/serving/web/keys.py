"""API keys: without one nothing but `/health` answers.

A key is compared by its SHA-256, with all of them and in constant time: how long it takes says nothing of how much of
it is right.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ptune.serving.web.api_errors import ApiError

OPEN_PATH = "/health"


class KeyCheck:
    """ASGI middleware that sends away who has no key.

    Args:
        app: What is inside.
        keys: Those that are good; none lets everybody in.
    """

    def __init__(self, app: ASGIApp, *, keys: Iterable[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http" and self._digests and scope["path"] != OPEN_PATH and not self._is_good(scope):
            error = ApiError(
                401,
                "This server wants an API key: Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_good(self, scope: Scope) -> bool:
        kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        given = _digest(key.strip().encode("utf-8", "surrogateescape"))
        found = False
        for one in self._digests:  # all of them, whichever it is
            found |= hmac.compare_digest(one, given)
        return found and kind.lower() == "bearer"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
