"""One request to an upstream's `/v1/completions`, and what its stream says.

Every parameter is sent, its default too: a server may have others (vLLM takes them from `generation_config.json`). An
answer is streamed always, so that the upstream notices when nobody waits for it any more.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx

from ptune.errors import printable
from ptune.serving.engine.requested import Job

_DONE = "[DONE]"
_MOST_SHOWN = 300
_BUSY = (429, 503)
_OF_THE_SERVER = (*_BUSY, 401, 403, 404, 405, 408, 500, 502, 504)
"""Statuses that say something of the server, not of the request."""


class UnavailableError(Exception):
    """The upstream did not answer, or not to its end: another may.

    Args:
        message: What happened.
        down: Whether it is not to be asked before it has been found healthy again.
        reached: Whether it had the request; one that brings down whoever gets it is not to be sent round.
        retry_seconds: How long it is busy, where it is.
    """

    def __init__(
        self, message: str, *, down: bool = False, reached: bool = True, retry_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.down, self.reached, self.retry_seconds = down, reached, retry_seconds


class RefusedError(Exception):
    """The upstream cannot use the request; no other could."""


def body_of(job: Job, text: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The request.

    Args:
        job: What is asked.
        text: Its `prompt` or `prompt_embeds`.
        model: What the upstream calls its model.
    """
    sampling = job.sampling
    body = {
        **text,
        "model": model,
        "max_tokens": job.max_new_tokens,
        "n": job.choices,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "ignore_eos": job.ignore_eos,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    optional = {
        "seed": sampling.seed,
        "stop": list(job.stop) or None,
        "logprobs": job.logprobs,
        "logit_bias": {str(token): value for token, value in sampling.logit_bias.items()} or None,
    }
    return body | {name: value for name, value in optional.items() if value is not None}


async def chunks(client: httpx.AsyncClient, url: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any]]:
    """The chunks of an answer, to its end.

    Raises:
        UnavailableError: The upstream is away or busy, or its stream ends before `[DONE]`.
        RefusedError: The request is one that it cannot use.
    """
    try:
        async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                raise _fault(response, await response.aread())
            async for line in response.aiter_lines():
                kind, _, data = line.partition(":")
                if kind != "data":
                    continue
                if data.strip() == _DONE:
                    return
                yield _chunk(data)
    except httpx.HTTPError as error:
        away = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout))
        raise UnavailableError(f"{type(error).__name__}: {error}", down=True, reached=not away) from error
    raise UnavailableError("its stream ended before the answer was complete", down=True)


def _chunk(data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except ValueError as error:
        raise UnavailableError("its stream holds what is no JSON") from error
    if not isinstance(chunk, dict):
        raise UnavailableError("its stream holds no JSON object")
    if "error" in chunk:
        raise UnavailableError(f"it says: {_said(chunk)}")
    return chunk


def _fault(response: httpx.Response, content: bytes) -> Exception:
    status = response.status_code
    try:
        said = _said(json.loads(content))
    except ValueError:
        said = printable(content.decode("utf-8", "replace"))[:_MOST_SHOWN]
    if status not in _OF_THE_SERVER:
        return RefusedError(said or f"status {status}")
    if status not in _BUSY:
        return UnavailableError(f"status {status}: {said}")
    wait = response.headers.get("retry-after", "")
    return UnavailableError(
        f"status {status}: {said}", reached=False, retry_seconds=float(wait) if wait.isdecimal() else 1.0
    )


def _said(fault: Any) -> str:
    """The message of an error in OpenAI's form, or in another."""
    inner = fault.get("error", fault) if isinstance(fault, dict) else fault
    message = inner.get("message", inner) if isinstance(inner, dict) else inner
    return printable(str(message))[:_MOST_SHOWN]
