"""`/`: the playground, a page that asks two prompts at once. Its few files are read at the start, and served so.

The page needs nothing from anywhere else, and may load and run nothing else: a browser that obeys its Content Security
Policy runs its own script alone, and takes no text for HTML.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ptune.serving.web.keys import PAGE_PATH

_FOLDER = "playground"
_FILES = {
    PAGE_PATH: ("index.html", "text/html; charset=utf-8"),
    "/playground/page.css": ("page.css", "text/css; charset=utf-8"),
    "/playground/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/playground/panel.js": ("panel.js", "text/javascript; charset=utf-8"),
    "/playground/ask.js": ("ask.js", "text/javascript; charset=utf-8"),
    "/playground/card.js": ("card.js", "text/javascript; charset=utf-8"),
    "/playground/loss_curve.js": ("loss_curve.js", "text/javascript; charset=utf-8"),
    "/playground/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Every path of the page, and the file behind it."""
_POLICY = "; ".join((
    "default-src 'self'",
    "object-src 'none'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
))  # fmt: skip
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept by the browser alone, and asked for each time whether it is still the same.
    "Cache-Control": "private, no-cache",
}


@dataclass(frozen=True)
class _Page:
    """A file of the page."""

    content: bytes
    kind: str
    tag: str

    def response(self, known: str) -> Response:
        """The file, or 304 where the browser has it; `known` is what it says that it has (`If-None-Match`)."""
        headers = {**_HEADERS, "ETag": self.tag}
        if self.tag in (one.strip().removeprefix("W/") for one in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.kind)


def routes_of_playground() -> APIRouter:
    """The routes; they are no part of the API's description."""
    router = APIRouter(include_in_schema=False)
    folder = files("ptune.serving.web") / _FOLDER
    for path, (name, kind) in _FILES.items():
        content = (folder / name).read_bytes()
        page = _Page(content, kind, f'"{sha256(content).hexdigest()[:32]}"')
        router.add_api_route(path, _answering(page), methods=["GET", "HEAD"], response_class=Response)
    return router


def _answering(page: _Page) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return page.response(request.headers.get("if-none-match", ""))

    return answer
