"""The server: puts the parts together, listens, and stops without leaving an answer half said.

At SIGTERM or Ctrl-C no request is taken any more, those that run or wait are answered for as long as they may take, and
the process ends with code 0. A second Ctrl-C does not wait.
"""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from transformers import PreTrainedTokenizerBase

from ptune.errors import ConfigError
from ptune.frozen.fingerprint import fingerprint, unquantized_fingerprint
from ptune.frozen.parameters import has_weights
from ptune.frozen.parts import embedding_table
from ptune.frozen.quantized import is_quantized
from ptune.model.wrapper import PTunedModel
from ptune.serving.engine.engine import Bounds, Engine
from ptune.serving.engine.position_bytes import position_bytes
from ptune.serving.engine.scheduler import Scheduler
from ptune.serving.gateway.open_gateway import make_gateway
from ptune.serving.prompt_registry import PromptRegistry
from ptune.serving.prompt_watch import PromptWatch
from ptune.serving.serve_settings import ServeSettings
from ptune.serving.web.app import make_app
from ptune.serving.web.connections import bounded
from ptune.serving.web.measurements import Measurements
from ptune.serving.web.server_parts import Parts

_log = logging.getLogger("ptune.serve")
_HEAD_BYTES = 64 * 1024


def make_parts(
    model: PTunedModel, tokenizer: PreTrainedTokenizerBase, prompts: PromptRegistry, settings: ServeSettings
) -> Parts:
    """What a server is made of; the engine does not run yet, and the root folder has been looked at once."""
    measured = Measurements()
    engine: Engine
    if settings.upstreams:
        engine = make_gateway(model, tokenizer, prompts, settings, measured.done)
        measured.watch_upstreams(engine.upstreams.all)
    else:
        model.prefixes.limit_bytes = settings.prefix_bytes
        each = position_bytes(model)
        most = None if each is None else settings.cache_bytes // each
        bounds = Bounds(rows=settings.max_concurrency, waiting=settings.max_waiting, cache_positions=most)
        engine = Scheduler(model, tokenizer, bounds, measured.done)
    watch = None
    if settings.prompts_root is not None:
        watch = PromptWatch(prompts, settings.prompts_root, seconds=settings.watch_seconds)
        watch.look()
    measured.watch_over(engine, prompts, model)
    return Parts(
        settings=settings,
        model=model,
        tokenizer=tokenizer,
        engine=engine,
        prompts=prompts,
        watch=watch,
        measured=measured,
        fingerprint=f"fp_{_name_of(model)[:16]}",
        vocabulary=len(embedding_table(model.base)),
    )


def _name_of(model: PTunedModel) -> str:
    if not has_weights(model.base):
        return model.base.config.model_type  # a gateway to a model whose prompts are its own needs none of them
    return unquantized_fingerprint(model.base) if is_quantized(model.base) else fingerprint(model.base)


class Server(uvicorn.Server):
    """uvicorn's server, which tells the engine when it is to stop, and ends without raising the signal again."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None], on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start, self._on_stop = on_start, on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets=sockets)
        self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # uvicorn's own signature
        """A signal has come."""
        self.stop(force=self.should_exit and sig == signal.SIGINT)

    def stop(self, *, force: bool = False) -> None:
        """Take no request any more, and end when all are answered; with `force` at once."""
        self.force_exit = self.force_exit or force
        self.should_exit = True
        self._on_stop()


def listen(host: str, port: int) -> socket.socket:
    """A socket that is listened on.

    Raises:
        ConfigError: The address cannot be used.
    """
    made = None
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, number)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except (OSError, UnicodeError) as error:
        if made is not None:
            made.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot listen on {host}:{port}: {reason}.", hint="Choose another --host or --port."
        ) from error
    return made


def server_of(parts: Parts, on_start: Callable[[], None] = lambda: None) -> Server:
    """The server of these parts, not yet started; `on_start` is called when it listens."""
    settings = parts.settings
    config = uvicorn.Config(
        make_app(parts),
        http=bounded(settings.max_connections, settings.idle_seconds),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=max(int(settings.idle_seconds), 1),
        timeout_graceful_shutdown=max(int(settings.shutdown_seconds), 1),
        h11_max_incomplete_event_size=_HEAD_BYTES,
    )
    return Server(config, on_start, parts.engine.drain)


def run_server(parts: Parts, at: socket.socket) -> None:
    """Serve until a signal comes."""
    parts.engine.start()
    if parts.watch is not None and parts.settings.watch_seconds > 0:
        parts.watch.start()
    try:
        server_of(parts, lambda: _say_where(parts, at)).run(sockets=[at])
    finally:
        if parts.watch is not None:
            parts.watch.stop()
        finished = parts.engine.stop(seconds=1)
        _log.info("stopped", extra={"complete": finished})


def _say_where(parts: Parts, at: socket.socket) -> None:
    host, port = at.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    numbers = {"prompts": len(parts.prompts.prompts), "keys": len(parts.settings.keys)}
    _log.info("serving", extra={"url": f"http://{address}:{port}", **numbers})
