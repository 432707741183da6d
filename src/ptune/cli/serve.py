"""`ptune serve`: prompts on one frozen model, over OpenAI's API."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ptune.cli.flags import Parser, number
from ptune.cli.session_flags import add_model_flags
from ptune.errors import ConfigError, ModelError, PTuneError, one_line, shown
from ptune.serving.key_file import UPSTREAM_VARIABLE, VARIABLE, read_keys, read_upstream_key
from ptune.serving.serve_settings import ServeSettings

if TYPE_CHECKING:
    from ptune.model.wrapper import PTunedModel
    from ptune.serving.prompt_registry import PromptRegistry
    from ptune.serving.served_prompt import ServedPrompt

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")
_MIB, _GIB = 2**20, 2**30
_DEFAULTS = ServeSettings()
_CACHES_OF_KERNELS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""oneDNN makes a kernel for each shape of a product, and oneDNN and PyTorch keep 1,024 each by default: a server, which
meets every number of rows and tokens, would grow by some hundred MiB. Read when PyTorch is loaded."""
_MOST_KERNELS = "256"
_OF_A_MODEL_HERE = (
    "dtype",
    "quantization",
    "device",
    "device_map",
    "attn_implementation",
    "no_self_check",
    "cache_gib",
    "prefix_gib",
)
_ROWS_WITH_UPSTREAMS = 512
_ROWS_HELP = (
    f"answers that are written at the same time (default: {_DEFAULTS.max_concurrency}; "
    f"{_ROWS_WITH_UPSTREAMS} with --upstream)"
)
_OF_UPSTREAMS = ("upstream_model", "upstream_key_file")
_MORE = """\
A request names a prompt, or the frozen model, as its `model`; requests of different prompts run in one batch:

  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d
    '{"model": "my-prompt", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}'

GET / is a page to try them on: two prompts asked at once, their timing, a prompt's card and loss curve. Also GET
/v1/models, /v1/prompts, /v1/prompts/NAME, /health, /metrics and /openapi.json; POST /v1/completions,
/v1/chat/completions and /v1/prompts; DELETE /v1/prompts/NAME. SIGTERM ends it when what runs is answered."""


def build_parser() -> Parser:
    """The command's flags."""
    parser = Parser(
        "serve",
        "Serve prompts on one frozen model over OpenAI's API.",
        usage="[--model MODEL] [--prompts DIR ...] [--prompts-root DIR] [flags]",
        more=_MORE,
    )
    prompts = parser.add_argument_group("prompts")
    prompts.add_argument(
        "--prompts",
        nargs="+",
        metavar="DIR",
        help="prompt folders or hub ids, each served under its folder's name; NAME=DIR gives it another",
    )
    prompts.add_argument(
        "--prompts-root",
        type=Path,
        metavar="DIR",
        help="serve every prompt folder in it; added, replaced, removed live",
    )
    prompts.add_argument(
        "--watch-seconds",
        type=number(float, least=0, most=3600),
        default=_DEFAULTS.watch_seconds,
        metavar="X",
        help="between two looks at that folder; 0: only at the start",
    )
    prompts.add_argument("--served-model-name", metavar="NAME", help="what requests call the frozen model")
    _add_upstream_flags(parser)
    _add_server_flags(parser)
    add_model_flags(parser, template=False)
    return parser


def _add_upstream_flags(parser: Parser) -> None:
    gateway = parser.add_argument_group("gateway to other servers of the model, such as vLLM's")
    gateway.add_argument(
        "--upstream",
        nargs="+",
        metavar="URL",
        help="they answer, and no model is loaded here. With a --model from `ptune export --to model` prompts are sent "
        "as its tokens, otherwise as embeddings (vLLM's --enable-prompt-embeds)",
    )
    gateway.add_argument(
        "--upstream-model", metavar="NAME", help="what they call the model; default: what they list first"
    )
    gateway.add_argument(
        "--upstream-key-file", type=Path, metavar="FILE", help=f"their API key; also ${UPSTREAM_VARIABLE}"
    )


def _add_server_flags(parser: Parser) -> None:
    where = parser.add_argument_group("where, and for whom")
    where.add_argument("--host", default=_DEFAULTS.host, help="address to listen on")
    where.add_argument("--port", type=number(int, least=0, most=65535), default=_DEFAULTS.port, help="0: any free one")
    where.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help=f"one API key a line; also ${VARIABLE}, with commas"
    )
    limits = parser.add_argument_group("limits")
    whole, seconds = number(int, least=1), number(float, least=0.1)
    size = number(float, least=0.001)
    for name, kind, default, metavar, text in (
        ("max-concurrency", whole, None, "N", _ROWS_HELP),
        ("max-waiting", whole, _DEFAULTS.max_waiting, "N", "texts that wait; beyond it 429 with Retry-After"),
        ("max-tokens", whole, _DEFAULTS.max_tokens, "N", "longest answer"),
        ("max-body-mib", size, _DEFAULTS.max_body_bytes / _MIB, "X", "largest body of a request"),
        ("max-connections", whole, _DEFAULTS.max_connections, "N", "open connections; the idlest makes place"),
        ("timeout", seconds, _DEFAULTS.timeout_seconds, "SECONDS", "for a request, waiting included"),
        ("idle-timeout", seconds, _DEFAULTS.idle_seconds, "SECONDS", "for a connection on which nothing happens"),
        ("shutdown-timeout", seconds, _DEFAULTS.shutdown_seconds, "SECONDS", "for what runs, after SIGTERM"),
        ("cache-gib", size, _DEFAULTS.cache_bytes / _GIB, "X", "keys and values of the running batch"),
        ("prefix-gib", size, _DEFAULTS.prefix_bytes / _GIB, "X", "prefixes of prompts, kept between requests"),
    ):
        limits.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=text)


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse(argv)
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"ptune serve needs packages that are not installed: {', '.join(missing)}.",
            hint='pip install "ptune[serve]".',
        )
    _check_upstream_flags(args)
    settings = _settings(args)
    named = _named(args.prompts or ())
    if not (args.model or named):
        raise ConfigError("there is no model.", hint="Name it with --model, or a prompt of it with --prompts.")
    if settings.prompts_root is not None and not settings.prompts_root.is_dir():
        raise ConfigError(
            f"there is no folder {settings.prompts_root}.", hint="Make it first, or leave out --prompts-root."
        )
    for name in _CACHES_OF_KERNELS:
        os.environ.setdefault(name, _MOST_KERNELS)
    from ptune.cli.quiet import quiet_libraries

    quiet_libraries(data=False)
    from ptune.serving.web.logs import set_up_logs
    from ptune.serving.web.server import listen, make_parts, run_server

    set_up_logs()
    with listen(settings.host, settings.port) as at:  # before minutes are spent on loading
        parts = make_parts(*_opened(args, named), settings)
        _say_who_may(settings)
        run_server(parts, at)
    return 0


def _settings(args: argparse.Namespace) -> ServeSettings:
    return ServeSettings(
        host=args.host,
        port=args.port,
        keys=read_keys(args.api_key_file, os.environ),
        upstreams=tuple(args.upstream or ()),
        upstream_model=args.upstream_model,
        upstream_key=read_upstream_key(args.upstream_key_file, os.environ) if args.upstream else None,
        prompts_root=args.prompts_root,
        watch_seconds=args.watch_seconds,
        max_concurrency=args.max_concurrency or (_ROWS_WITH_UPSTREAMS if args.upstream else _DEFAULTS.max_concurrency),
        max_waiting=args.max_waiting,
        max_tokens=args.max_tokens,
        max_body_bytes=int(args.max_body_mib * _MIB),
        max_connections=args.max_connections,
        timeout_seconds=args.timeout,
        idle_seconds=args.idle_timeout,
        shutdown_seconds=args.shutdown_timeout,
        cache_bytes=int(args.cache_gib * _GIB),
        prefix_bytes=int(args.prefix_gib * _GIB),
    )


def _named(prompts: Sequence[str]) -> dict[str, str]:
    """Name → folder or hub id."""
    named: dict[str, str] = {}
    for word in prompts:
        name, equals, folder = word.partition("=")
        if not equals or Path(word).exists():
            name, folder = Path(word).resolve().name, word
        if name in named:
            raise ConfigError(
                f"two prompts are called {name!r}: {shown(named[name])} and {shown(folder)}.", hint="Write NAME=DIR."
            )
        named[name] = folder
    return named


def _opened(args: argparse.Namespace, named: dict[str, str]) -> tuple[PTunedModel, Any, PromptRegistry]:
    """Model, tokenizer and prompts."""
    from ptune.saved.hub import prompt_folder
    from ptune.saved.opened_folder import open_folder
    from ptune.serving.prompt_registry import PromptRegistry

    folders = {name: prompt_folder(folder) for name, folder in named.items()}
    for prompt_name, folder in folders.items():
        _check_answers(named[prompt_name], folder)
    revision, name = None, args.model
    if name is None:
        opened = open_folder(next(iter(folders.values())))
        name, revision = opened.base_name(), opened.base_revision()
    called = args.served_model_name or (Path(name).name if Path(name).exists() else name)
    found = _gateway(args, name, revision) if args.upstream else (*_loaded(args, name, revision), [])
    model, tokenizer, in_vocabulary = found
    if in_vocabulary and (folders or args.prompts_root):
        raise ConfigError(
            f"{name} has its prompts in its vocabulary; others cannot be served beside them.",
            hint="Leave out --prompts and --prompts-root, or name the frozen model itself with --model.",
        )
    registry = PromptRegistry(model, tokenizer, base_name=called, force=args.force, elsewhere=bool(args.upstream))
    for prompt in in_vocabulary:
        registry.put(prompt)
    for prompt_name, folder in folders.items():
        try:
            registry.add(prompt_name, folder)
        except PTuneError as error:
            raise type(error)(f"--prompts {shown(named[prompt_name])}: {error.message}", hint=error.hint) from error
    return model, tokenizer, registry


def _check_answers(called: str, folder: Path) -> None:
    """Raise `PromptError` for a prompt of no causal language model, before one is loaded."""
    from ptune.answering import check_answers_texts
    from ptune.saved.opened_folder import open_folder

    try:
        check_answers_texts(open_folder(folder))
    except PTuneError as error:
        raise type(error)(f"--prompts {shown(called)}: {error.message}", hint=error.hint) from error


def _loaded(args: argparse.Namespace, name: str, revision: str | None) -> tuple[PTunedModel, Any]:
    """The model, with its weights, and its tokenizer."""
    from ptune.loading.load import check_tokenizer, load_model, load_tokenizer
    from ptune.model.wrapper import PTunedModel

    trusted = {"trust_remote_code": args.trust_remote_code, "revision": revision}
    tokenizer = load_tokenizer(name, **trusted)
    base = load_model(
        name,
        dtype=args.dtype,
        quantization=args.quantization,
        device=args.device,
        device_map=args.device_map,
        attn_implementation=args.attn_implementation,
        **trusted,
    )
    check_tokenizer(base, tokenizer)
    model = PTunedModel(base, self_check=not args.no_self_check).eval()
    if model.capability.answer_obstacle is not None:
        raise ModelError(f"{model.capability.answer_obstacle}.", hint="Choose another model to answer with.")
    return model, tokenizer


def _gateway(args: argparse.Namespace, name: str, revision: str | None) -> tuple[PTunedModel, Any, list[ServedPrompt]]:
    """The model as far as a gateway needs it, its tokenizer, and the prompts of its vocabulary."""
    from ptune.serving.gateway.open_gateway import gateway_model
    from ptune.serving.gateway.vocabulary_prompts import vocabulary_prompts

    model, tokenizer = gateway_model(name, trust_remote_code=args.trust_remote_code, revision=revision)
    return model, tokenizer, vocabulary_prompts(Path(name), model, tokenizer) or []


def _check_upstream_flags(args: argparse.Namespace) -> None:
    """Raise `ConfigError` for an upstream that is no URL, and for flags without a meaning beside it."""
    for url in args.upstream or ():
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            usable = usable and not (parts.query or parts.fragment)
        except ValueError:
            usable = False
        if not usable:
            raise ConfigError(f"--upstream {shown(url)} is no URL of a server.", hint="Write http://HOST:PORT.")
    plain = build_parser().parse([])
    if args.upstream:
        given = [name for name in _OF_A_MODEL_HERE if getattr(args, name) != getattr(plain, name)]
        reason = "no model is loaded beside --upstream"
    else:
        given = [name for name in _OF_UPSTREAMS if getattr(args, name) is not None]
        reason = "there is no --upstream"
    if given:
        raise ConfigError(f"--{given[0].replace('_', '-')} has no effect: {reason}.", hint="Leave it out.")


def _say_who_may(settings: ServeSettings) -> None:
    """Warn of a server that everybody may use."""
    if not settings.keys and settings.host not in ("127.0.0.1", "::1", "localhost"):
        said = "no API key is set, and the server listens beyond this machine: everybody who reaches it may use it."
        print(f"ptune serve: warning: {one_line(ConfigError(said))} See --api-key-file.", file=sys.stderr)
