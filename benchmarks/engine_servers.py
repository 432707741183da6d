"""What the engines benchmark is made of: an engine's server in a process of its own, and requests to it.

Run by the Python of an environment that has xllamacpp, the file is llama.cpp's server:

    PYTHON engine_servers.py MODEL.gguf --port N [--context N] [--slots N] [--threads N] [--exact]

With `--quantize TYPE OUT` it is llama.cpp's quantization, out of the package cyllama; `--token-embedding-type f16` as
llama-quantize has it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

MIB = 2**20
START_SECONDS = 600
FILE_TYPES = {"F16": 1, "Q8_0": 7, "Q4_K_M": 15}
"""llama.cpp's enum llama_ftype."""
TENSOR_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
"""ggml's enum ggml_type."""


@dataclass(frozen=True)
class Request:
    """One question to a server, and what it is told with it."""

    path: str
    """`/v1/chat/completions` or `/v1/completions`."""
    body: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """An answer."""

    text: str
    ids: list[int]
    """Without the token that ends it."""


class Engine:
    """A server; a context, at whose end SIGTERM comes.

    Args:
        words: How it is started; its port follows, behind `--port`.
        log: Where its output goes.
        environment: Variables that it is given.
    """

    def __init__(self, words: Sequence[object], log: Path, environment: dict[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.log = log
        self.url = f"http://127.0.0.1:{port}"
        self._file = log.open("w", encoding="utf-8")
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            [*map(str, words), "--port", str(port)],
            stdout=self._file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        )

    def __enter__(self) -> Self:
        import httpx

        while time.perf_counter() - self.began < START_SECONDS:
            if self.process.poll() is not None:
                break
            try:
                if httpx.get(self.url + "/health", trust_env=False).status_code == 200:
                    self.start_seconds = time.perf_counter() - self.began
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        self.__exit__()
        raise SystemExit(f"the server did not start: {self.log}")

    def __exit__(self, *_exc: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._file.close()

    @property
    def resident_mib(self) -> float:
        """Resident memory of the server and its processes."""
        import psutil

        server = psutil.Process(self.process.pid)
        return float(sum(one.memory_info().rss for one in [server, *server.children(recursive=True)])) / MIB

    def refusal(self, request: Request) -> dict[str, Any]:
        """Status and message of a request that is refused."""
        import httpx

        answer = httpx.post(self.url + request.path, json=request.body, trust_env=False, timeout=600)
        said = answer.json().get("error", {})
        return {"status": answer.status_code, "message": str(said.get("message"))[:600]}

    def token_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """What the server of llama.cpp makes of a conversation: its chat template's text, cut as a request's is."""
        import httpx

        with httpx.Client(base_url=self.url, trust_env=False, timeout=600) as client:
            text = client.post("/apply-template", json={"messages": list(messages)}).json()["prompt"]
            body = {"content": text, "add_special": True, "parse_special": True}
            return list(client.post("/tokenize", json=body).json()["tokens"])

    def ask(self, requests: Sequence[Request], at_once: int, end: set[int]) -> list[Reply]:
        """The answers, in the order of the requests, so many being asked at once.

        Args:
            requests: Chat requests and completions.
            at_once: How many the server has at a time.
            end: Token ids that end an answer.
        """
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        async def run() -> list[Reply]:
            gate = asyncio.Semaphore(at_once)
            http = DefaultAsyncHttpxClient(trust_env=False, timeout=600)
            async with AsyncOpenAI(
                base_url=self.url + "/v1", api_key="none", max_retries=0, http_client=http
            ) as client:

                async def one(request: Request) -> Reply:
                    async with gate:
                        chat = request.path.endswith("chat/completions")
                        kind: Any = client.chat.completions if chat else client.completions
                        answer = await kind.create(**request.body)
                        return reply(answer.model_dump(), end)

                return list(await asyncio.gather(*map(one, requests)))

        return asyncio.run(run())


def reply(answer: dict[str, Any], end: set[int]) -> Reply:
    """Text and token ids of the first choice: vLLM says them on request, llama.cpp beside the log-probabilities."""
    choice = answer["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    ids = choice.get("token_ids")
    if ids is None:
        ids = [one["id"] for one in choice["logprobs"]["content"]]
    while ids and ids[-1] in end:
        ids = ids[:-1]
    return Reply(text or "", list(ids))


def serve_gguf(args: argparse.Namespace) -> None:
    """llama.cpp's server, out of the package xllamacpp."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.hostnames = ["127.0.0.1"]
    params.port, params.n_ctx, params.n_parallel = args.port, args.context, args.slots
    params.use_jinja = True
    if args.exact:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    server = xllamacpp.Server(params)
    print(server.listening_address, file=sys.stderr, flush=True)
    threading.Event().wait()


def quantize_gguf(args: argparse.Namespace) -> None:
    """llama_model_quantize, which llama-quantize is a command line for, out of the package cyllama."""
    from cyllama.llama import llama_cpp

    params = llama_cpp.LlamaModelQuantizeParams()
    params.ftype = FILE_TYPES[args.quantize[0]]
    params.nthread = args.threads
    if args.token_embedding_type:
        params.token_embedding_type = TENSOR_TYPES[args.token_embedding_type]
    llama_cpp.model_quantize(args.model, args.quantize[1], params)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--exact", action="store_true", help="a cache in float32, and no flash attention, which is not")
    parser.add_argument("--quantize", nargs=2, metavar=("TYPE", "OUT"))
    parser.add_argument("--token-embedding-type", choices=sorted(TENSOR_TYPES))
    args = parser.parse_args()
    if args.quantize:
        quantize_gguf(args)
    else:
        serve_gguf(args)


if __name__ == "__main__":
    main()
