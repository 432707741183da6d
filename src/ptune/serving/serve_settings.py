"""What a server is told beside its model and prompts. Free of heavy libraries: the command line reads the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Where it listens, and its limits."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free one."""
    keys: tuple[str, ...] = ()
    """API keys; none lets everybody in."""
    upstreams: tuple[str, ...] = ()
    """Servers of the frozen model that answer in its place."""
    upstream_model: str | None = None
    """What they call it; None takes what each one lists first."""
    upstream_key: str | None = None
    prompts_root: Path | None = None
    """The folder that is watched, and below which prompts can be posted."""
    watch_seconds: float = 2.0
    """Between two looks at it; 0 for one look at the start."""
    max_concurrency: int = 32
    """Answers that are written at the same time."""
    max_waiting: int = 256
    """Texts that wait to be begun; more are sent away with 429."""
    max_tokens: int = 4096
    """Longest answer."""
    max_body_bytes: int = 2**20
    max_connections: int = 512
    """Open connections; beyond it the one that has been idle longest is closed."""
    timeout_seconds: float = 300.0
    """For the answer to a request."""
    idle_seconds: float = 15.0
    """For a connection without a request, a body that does not come, and a reader that does not read."""
    shutdown_seconds: float = 60.0
    """For what runs and waits, after SIGTERM."""
    cache_bytes: int = 4 * 2**30
    """Keys and values of the running batch."""
    prefix_bytes: int = 256 * 2**20
    """Prefixes of prompts that are kept between requests."""
