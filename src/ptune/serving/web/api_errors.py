"""Errors as OpenAI's API writes them: `{"error": {"message", "type", "param", "code"}}`, whatever went wrong.

A message says what a user can do something about. What failed inside goes to the log, not to the client.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ptune.errors import DataError, PromptError, PTuneError, one_line, printable
from ptune.serving.engine.engine import BusyError, StoppedError, UnansweredError

_log = logging.getLogger("ptune.serve")
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_MOST_SHOWN = 300
_FIELD = re.compile(r"(?!(?:body|str|int|float|bool|list|dict)$)[a-z_]+")
"""Parts of a fault's place that a request has; the others are pydantic's names for kinds of values."""
STATUSES = {
    400: "the request cannot be used; `param` names the part",
    401: "no key, or a wrong one",
    403: "not allowed on this server",
    404: "no such path or model",
    405: "no such method here",
    408: "the request did not come in time",
    413: "the body is too large",
    429: "busy: try again after `Retry-After` seconds",
    500: "a fault of the server's",
    503: "the server is stopping, or no upstream answers",
    504: "the answer took too long",
}
"""What an error's status means."""


class ApiError(Exception):
    """An error that a client is told.

    Args:
        status: Of the response.
        message: What was found, and the way out.
        param: The part of the request.
        code: A short name for programs.
        headers: Of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """What the client reads."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole response."""
        return JSONResponse(self.body, self.status, self.headers)


def as_api_error(error: BaseException, *, retry_seconds: int = 1) -> ApiError:
    """The error that a client is told of what the engine or the registry raised.

    Args:
        error: What was raised.
        retry_seconds: When to try again, where the server is busy.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BusyError):
        headers = {"Retry-After": str(retry_seconds)}
        return ApiError(429, f"The server is busy: {error} Try again later.", code="busy", headers=headers)
    if isinstance(error, StoppedError):
        return ApiError(503, f"{str(error).capitalize()}", code="stopping", headers={"Retry-After": "5"})
    if isinstance(error, UnansweredError):
        headers = {"Retry-After": str(retry_seconds)}
        return ApiError(503, f"No answer: {error}.", code="upstream_unavailable", headers=headers)
    if isinstance(error, PTuneError):
        return ApiError(400, one_line(error), code=_CODES.get(type(error)))
    return ApiError(500, "The server failed to answer; its log says why.", code="internal_error")


_CODES: dict[type[PTuneError], str] = {PromptError: "prompt_error", DataError: "text_error"}


def install_handlers(app: FastAPI) -> None:
    """Let an app answer in this way whatever goes wrong in it."""

    @app.exception_handler(ApiError)
    async def of_api(_request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(PTuneError)
    async def of_ptune(_request: Request, error: PTuneError) -> JSONResponse:
        return as_api_error(error).response()

    @app.exception_handler(RequestValidationError)
    async def of_validation(_request: Request, error: RequestValidationError) -> JSONResponse:
        return _invalid(error).response()

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        shown = printable(request.url.path)[:_MOST_SHOWN]
        said = {404: f"There is no {shown} here.", 405: f"{request.method} is not allowed for {shown}."}
        message = said.get(error.status_code, f"{error.detail}.")
        return ApiError(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def of_anything(_request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()


def _invalid(error: RequestValidationError) -> ApiError:
    """What is wrong with a request: of all faults the one that says most."""
    # Where a value may be of several kinds there is a fault for each; that of the kind that was meant lies deepest.
    found = sorted(error.errors(), key=lambda fault: (str(fault["type"]).endswith("_type"), -len(fault["loc"])))
    first = found[0]
    if first["type"] == "json_invalid":
        return ApiError(
            400, f"The body is not JSON: {first['ctx']['error']} at {first['loc'][-1]}.", code="invalid_json"
        )
    place = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or _FIELD.fullmatch(part))
    message = f"{place or 'the body'}: {first['msg']}"
    if first["type"] == "extra_forbidden":
        message = f"{place}: this server does not know the parameter"
    elif place == "" and first["type"] in ("missing", "model_attributes_type", "model_type"):
        message = "the body is no JSON object; send one with Content-Type: application/json"
    return ApiError(
        400, f"{printable(message)[:_MOST_SHOWN]}.", param=printable(place)[:100] or None, code="invalid_value"
    )
