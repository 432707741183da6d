"""An upstream that does as a test says, for the gateway: it answers in numbered words, or fails in some way."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

SECONDS = 30


class ScriptedUpstream:
    """A server in a thread.

    Args:
        script: What it does with each request for a completion in turn, and then always the last: `answer`; `cut` (the
            connection ends after two words), `abort` (vLLM's word for it), `noise` (no JSON), `hang` (after two
            words); `other` (other words); or a status, such as `500`.
        tokens: What `/tokenize` says; None is without it.
        words: How many an answer has.
    """

    def __init__(self, *script: str, tokens: list[int] | None = None, words: int = 6) -> None:
        self.script, self.tokens, self.words = list(script or ["answer"]), tokens, words
        self.healthy, self.delay = True, 0.0
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.gone = 0
        """Clients that left before their answer was complete."""
        self.port = 0
        self._server: uvicorn.Server | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> ScriptedUpstream:
        """Listen, where it did before if it did."""
        at = socket.create_server(("127.0.0.1", self.port))
        self.port = at.getsockname()[1]
        config = uvicorn.Config(self._app(), log_config=None, lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [at]}, daemon=True)
        self._thread.start()
        until = time.monotonic() + SECONDS
        while not self._server.started and time.monotonic() < until:
            time.sleep(0.01)
        return self

    def kill(self) -> None:
        """Close every connection, in whatever it is."""
        assert self._server is not None
        self._server.force_exit = self._server.should_exit = True
        loop = self._server.servers[0].get_loop()
        for protocol in list(self._server.server_state.connections):
            loop.call_soon_threadsafe(protocol.transport.abort)
        self._thread.join(SECONDS)

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/health")
        async def health() -> Response:
            return Response(status_code=200 if self.healthy else 503)

        @app.get("/v1/models")
        async def models(request: Request) -> JSONResponse:
            self.keys.add(request.headers.get("authorization"))
            return JSONResponse({"data": [{"id": "served"}, {"id": "another"}]})

        @app.post("/tokenize")
        async def tokenize() -> Response:
            return Response(status_code=404) if self.tokens is None else JSONResponse({"tokens": self.tokens})

        @app.post("/v1/completions")
        async def completions(request: Request) -> Response:
            body = await request.json()
            self.bodies.append(body)
            act = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            if act.isdecimal():
                fault = {"error": {"message": f"scripted {act}"}}
                return JSONResponse(fault, int(act), {"Retry-After": "0"} if act == "429" else {})
            return StreamingResponse(self._stream(act, body), media_type="text/event-stream")

        return app

    async def _stream(self, act: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
        complete = False
        try:
            for number in range(self.words):
                if number == 2 and act == "cut":
                    raise ConnectionAbortedError("scripted")
                if number == 2 and act == "hang":
                    await asyncio.sleep(SECONDS)
                if number == 2 and act == "noise":
                    yield b"data: {broken\n\n"
                last = number == self.words - 1
                reason = "abort" if number == 2 and act == "abort" else "length" if last else None
                word = f"{'x' if act == 'other' else 'w'}{number} "
                for at in range(body["n"]):
                    yield _event({"choices": [_choice(at, word, number, body, reason)]})
                await asyncio.sleep(self.delay)
            written = self.words * body["n"]
            yield _event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": written}})
            yield b"data: [DONE]\n\n"
            complete = True
        finally:
            self.gone += not complete


def _choice(at: int, word: str, number: int, body: dict[str, Any], reason: str | None) -> dict[str, Any]:
    told = None
    if "logprobs" in body:
        top = {word: -0.5, "a": -1.0, "b": -2.0, "c": -3.0}
        told = {"tokens": [word], "token_logprobs": [-0.5], "top_logprobs": [top], "text_offset": [3 * number]}
    return {"index": at, "text": word, "logprobs": told, "finish_reason": reason}


def _event(value: Any) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()
