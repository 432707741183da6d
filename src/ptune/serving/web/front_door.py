"""Around every request: a number, the time it takes, a line in the log, a count; and 503 while the server stops.

The log holds no texts: method, path, status, times, the model's name and numbers of tokens.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Collection
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ptune.serving.web.api_errors import ApiError
from ptune.serving.web.measurements import Measurements

_log = logging.getLogger("ptune.serve")
NOTE = "ptune.note"
"""Where a route puts what the log line is to say, in the ASGI scope."""
GONE = 499
"""The status that is noted when the client has gone before its answer."""
_MOST_PATH = 200


class FrontDoor:
    """ASGI middleware, the outermost.

    Args:
        app: What is inside.
        measured: Counts responses.
        stopping: Whether the server is stopping.
        paths: Those that are counted by name.
    """

    def __init__(
        self, app: ASGIApp, *, measured: Measurements, stopping: Callable[[], bool], paths: Collection[str]
    ) -> None:
        self._app, self._measured, self._stopping, self._paths = app, measured, stopping, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
                return
            await self._app(scope, receive, send)
            return
        number, began, status = uuid.uuid4().hex, time.monotonic(), 0
        note: dict[str, Any] = scope.setdefault(NOTE, {})
        note["request_id"] = number

        async def numbered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", number.encode())]}
            await send(message)

        try:
            if self._stopping() and scope["path"] not in ("/health", "/metrics"):
                await _stopping().response()(scope, receive, numbered)
            else:
                await self._app(scope, receive, numbered)
        except asyncio.CancelledError:
            # The server has waited as long as it may. Whoever has got nothing yet is told.
            note["cancelled"] = True
            if not status:
                await _stopping().response()(scope, receive, numbered)
        except Exception as error:  # noqa: BLE001  # the client has been told, or has gone; the log gets the reason
            gone = isinstance(error, OSError)
            note["failed"] = type(error).__name__
            status = status or (GONE if gone else 500)
            if not gone:
                _log.error("a request failed", extra={"request_id": number}, exc_info=error)
        finally:
            path = scope["path"]
            self._measured.responded(path if path in self._paths else "other", note.pop("status", status))
            took = {"status": status, "seconds": round(time.monotonic() - began, 4)}
            _log.info("request", extra={"method": scope["method"], "path": path[:_MOST_PATH], **took, **note})


def _stopping() -> ApiError:
    return ApiError(503, "The server is stopping.", code="stopping", headers={"Retry-After": "5"})
