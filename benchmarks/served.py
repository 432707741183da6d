"""What the serving benchmark is made of: prompts on a model, `ptune serve` in a process of its own, and clients."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import torch

from ptune.config import PromptTuningConfig
from ptune.frozen.fingerprint import keep_fingerprints, tokenizer_fingerprint
from ptune.loading.load import load_model, load_tokenizer
from ptune.model.wrapper import PTunedModel

REAL = "builtin:smollm2-135m"
KEY = "the-benchmarks-own-key"
MIB = 2**20
_THINGS = ("lamp", "kettle", "chair", "bicycle", "tent", "camera", "clock", "coat")
_FAULTS = ("arrived broken", "never came", "has the wrong colour", "makes a noise", "is too small", "has stopped")
_WISHES = ("a refund", "another one", "a call", "to know what to do", "a part of the money back")


def texts(count: int, seed: int = 0) -> list[str]:
    """Messages of customers, of 20 to 60 tokens."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        one = f"Order {draw.randrange(10_000, 99_999)}: the {draw.choice(_THINGS)} {draw.choice(_FAULTS)}, and I want "
        made.append(one + " and ".join(draw.sample(_WISHES, 1 + number % 4)) + ".")
    return made


def tiny_model(folder: Path) -> Path:
    """A random Llama of two layers with SmolLM2's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(REAL)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_prompts(model: str | Path, root: Path, count: int, *, lengths: Sequence[int]) -> Path:
    """Prompt folders `p0`, `p1`, …: vectors of random tokens of the vocabulary, moved a little; lengths in turn."""
    base, tokenizer = load_model(str(model), dtype="float32"), load_tokenizer(str(model))
    keep_fingerprints(base)
    wrapped = PTunedModel(base, self_check=False)
    wrapped.add_prompt("default", PromptTuningConfig(num_virtual_tokens=1))
    table = base.get_input_embeddings().weight
    details = {"template": "tutorial", "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer)}
    for number in range(count):
        draw = torch.Generator().manual_seed(number)
        length = lengths[number % len(lengths)]
        vectors = table[torch.randint(len(table), (length,), generator=draw)]
        vectors = vectors + 0.1 * table.std() * torch.randn(vectors.shape, generator=draw)
        wrapped.add_prompt("made", PromptTuningConfig(num_virtual_tokens=length), start=vectors)
        wrapped.save_pretrained(root / f"p{number}", prompt_name="made", **details)
        wrapped.delete_prompt("made")
    return root


class Served:
    """`ptune serve` in a process of its own; a context, at whose end SIGTERM comes."""

    def __init__(self, *flags: object, threads: int, dtype: str | None = "float32") -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PTUNE_API_KEYS": KEY}
        self.began = time.perf_counter()
        loaded = [] if dtype is None else ["--dtype", dtype]
        words = [sys.executable, "-m", "ptune", "serve", "--port", "0", *loaded, *map(str, flags)]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, env=environment, text=True)
        self.log: list[dict[str, Any]] = []
        lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()
        while True:
            line = lines.get(timeout=600)
            if line is None:
                raise SystemExit(f"ptune serve did not start: {self.log[-3:]}")
            if line["message"] == "serving":
                self.start_seconds = time.perf_counter() - self.began
                self.url = line["url"]
                return

    def _read(self, lines: queue.Queue[dict[str, Any] | None]) -> None:
        assert self.process.stderr is not None
        for text in self.process.stderr:
            try:
                line = json.loads(text)
            except ValueError:
                line = {"message": "no JSON", "text": text}
            if line["message"] != "request":
                self.log.append(line)
            lines.put(line)
        lines.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    @property
    def resident_mib(self) -> float:
        """Resident memory of the server."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / MIB

    def http(self, **options: Any) -> httpx.Client:
        """A client."""
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, **{"timeout": 600, **options})


def chat(model: str, text: str, tokens: int, **options: Any) -> dict[str, Any]:
    """The body of a request, greedy."""
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0, **options}


def load(
    server: Served, bodies: Sequence[dict[str, Any]], clients: int, after: Callable[[int], None] = lambda _done: None
) -> tuple[float, list[dict[str, Any]], list[float]]:
    """All requests, by so many clients at once, each sending its next when it has its answer.

    Returns:
        Seconds for all, the answers in the order of the requests, and the seconds of each.
    """

    async def run() -> tuple[float, list[dict[str, Any]], list[float]]:
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
        headers = {"Authorization": f"Bearer {KEY}"}
        answers: list[dict[str, Any]] = [{}] * len(bodies)
        seconds = [0.0] * len(bodies)
        waiting = iter(enumerate(bodies))
        done = 0
        async with httpx.AsyncClient(
            base_url=server.url, headers=headers, limits=limits, timeout=600, trust_env=False
        ) as http:

            async def client() -> None:
                nonlocal done
                for at, body in waiting:
                    began = time.perf_counter()
                    answer = await http.post("/v1/chat/completions", json=body)
                    answer.raise_for_status()
                    seconds[at] = time.perf_counter() - began
                    answers[at] = answer.json()
                    done += 1
                    after(done)

            began = time.perf_counter()
            every: list[Awaitable[None]] = [client() for _ in range(clients)]
            await asyncio.gather(*every)
            return time.perf_counter() - began, answers, seconds

    return asyncio.run(run())


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
