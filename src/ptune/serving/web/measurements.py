"""What Prometheus is told: counters of what was done, gauges of what is, read when it asks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from ptune.model.wrapper import PTunedModel
from ptune.serving.engine.engine import Engine
from ptune.serving.gateway.upstreams import Upstream
from ptune.serving.prompt_registry import PromptRegistry

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_NEWEST = 0.1
"""Weight of the newest answer in the average time of one."""


class Measurements:
    """A registry of its own for each app."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        ProcessCollector(registry=own)
        self._requests = Counter("ptune_requests", "HTTP requests", ("path", "status"), registry=own)
        self._duration = Histogram("ptune_request_seconds", "Of answered requests", buckets=_SECONDS, registry=own)
        self._first = Histogram("ptune_first_token_seconds", "To the first token", buckets=_SECONDS, registry=own)
        self._prompt_tokens = Counter("ptune_prompt_tokens", "Tokens of answered texts", registry=own)
        self._done = {
            "step_rows": Histogram("ptune_step_rows", "Rows of a step", buckets=_ROWS, registry=own),
            "step_seconds": Histogram("ptune_step_seconds", "One token of every row", buckets=_SECONDS, registry=own),
            "read_seconds": Histogram("ptune_read_seconds", "Texts read together", buckets=_SECONDS, registry=own),
        }
        self._counted = {
            "read_tokens": Counter("ptune_read_tokens", "Tokens of texts that were read", registry=own),
            "written_tokens": Counter("ptune_written_tokens", "Tokens that were written", registry=own),
        }
        self._average_seconds = 1.0

    def watch_over(self, engine: Engine, prompts: PromptRegistry, model: PTunedModel) -> None:
        """Tell what is running and held, as it is when it is asked for."""
        now = {
            "ptune_running_answers": ("Answers under way", lambda: engine.running),
            "ptune_waiting_requests": ("Texts that wait to be begun", lambda: engine.waiting),
            "ptune_prompts": ("Prompts that are served", lambda: len(prompts.prompts)),
            "ptune_kept_prefixes_bytes": ("Prefixes of prompts", lambda: model.prefixes.held_bytes),
            "ptune_batch_cache_bytes": ("Keys and values of the running batch", lambda: engine.cache_bytes),
        }
        for name, (about, value) in now.items():
            Gauge(name, about, registry=self.registry).set_function(value)

    def watch_upstreams(self, upstreams: Iterable[Upstream]) -> None:
        """Tell which servers behind a gateway can be asked, and what each one has under way."""
        up = Gauge("ptune_upstream_up", "Whether it can be asked", ("url",), registry=self.registry)
        running = Gauge("ptune_upstream_running", "Its requests under way", ("url",), registry=self.registry)
        for one in upstreams:
            up.labels(one.url).set_function(partial(_is_up, one))
            running.labels(one.url).set_function(partial(getattr, one, "running"))

    def done(self, what: str, amount: float) -> None:
        """What the engine has done; see `Watch`."""
        if what in self._counted:
            self._counted[what].inc(amount)
        else:
            self._done[what].observe(amount)

    def first_token(self, seconds: float) -> None:
        """A request has its first piece of text."""
        self._first.observe(seconds)

    def answered(self, seconds: float, prompt_tokens: int) -> None:
        """A request is answered."""
        self._duration.observe(seconds)
        self._prompt_tokens.inc(prompt_tokens)
        self._average_seconds += _NEWEST * (seconds - self._average_seconds)

    def responded(self, path: str, status: int) -> None:
        """A response is complete; `path` is one of the app's own."""
        self._requests.labels(path, str(status)).inc()

    def retry_seconds(self, engine: Engine) -> int:
        """When a place in the queue is likely to be free, in whole seconds from 1 to 60."""
        rounds = (engine.waiting + engine.running) / engine.bounds.rows
        return min(max(math.ceil(self._average_seconds * rounds / 2), 1), 60)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


def _is_up(upstream: Upstream) -> float:
    return float(upstream.state == "up")
