"""API keys: without one nothing but `/health` answers.

A key is compared by its SHA-256, with all of them and in constant time: how long it takes says nothing of how much of
it is right.

A program sends its key as `Authorization: Bearer KEY`. A browser has a person type it: `/`, the playground, asks for
HTTP Basic authentication, and any user name with the key as its password is good. A browser then sends it along by
itself, also when a page of another site makes it ask. So what it sends so reads and asks for answers, and nothing else;
and asks only in JSON, and only where the browser does not say that another site's page is behind it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ptune.serving.web.api_errors import ApiError

OPEN_PATH = "/health"
PAGE_PATH = "/"
"""Where a browser is asked for a key."""
_BEARER, _BASIC = "bearer", "basic"
_READS = ("GET", "HEAD")
_ASKS = ("/v1/chat/completions", "/v1/completions")


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
        if scope["type"] == "http" and self._digests and scope["path"] != OPEN_PATH:
            error = self._refusal(scope)
            if error is not None:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        """Why a request is not let in; None where it is."""
        headers = Headers(scope=scope)
        kind, _, value = headers.get("authorization", "").partition(" ")
        kind, value = kind.lower(), value.strip()
        given = value.encode("utf-8", "surrogateescape") if kind != _BASIC else _password(value)
        if not self._is_good(given) or kind not in (_BEARER, _BASIC):
            return _without_key(scope)
        if kind == _BASIC and not _a_browser_may(scope, headers):
            return ApiError(
                403,
                "A key in Basic authentication reads, and asks for answers in JSON from the playground's own page; "
                "for anything else send it as Authorization: Bearer KEY.",
                code="bearer_needed",
            )
        return None

    def _is_good(self, key: bytes) -> bool:
        given = _digest(key)
        found = False
        for one in self._digests:  # all of them, whichever it is
            found |= hmac.compare_digest(one, given)
        return found


def _without_key(scope: Scope) -> ApiError:
    if scope["path"] == PAGE_PATH and scope["method"] in _READS:
        said = "This page wants an API key: any user name, and the key as the password."
        challenge = 'Basic realm="ptune serve: any user name, an API key as the password", charset="UTF-8"'
    else:
        said, challenge = "This server wants an API key: Authorization: Bearer KEY.", "Bearer"
    return ApiError(401, said, code="invalid_api_key", headers={"WWW-Authenticate": challenge})


def _a_browser_may(scope: Scope, headers: Headers) -> bool:
    """Whether a request is one that a browser's stored key is good for, and not another site's doing."""
    if scope["method"] in _READS:  # other sites' pages cannot read the response
        return True
    if scope["method"] != "POST" or scope["path"] not in _ASKS:
        return False
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return False
    site = headers.get("sec-fetch-site")  # absent over plain HTTP from another machine, and in old browsers
    if site is not None:
        return site == "same-origin"
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2].lower() == headers.get("host", "").lower()


def _password(value: str) -> bytes:
    """The password of Basic credentials; nothing where they are none."""
    try:
        _, _, password = base64.b64decode(value, validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return b""
    return password


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
