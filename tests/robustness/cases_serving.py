"""Servers that cannot be started, and prompts that they cannot serve."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable

from commands import Ran, run
from robustness.workshop import Case, Place, Words

_G = "serving"
_NEEDS = "fastapi"


def _serve(*more: object) -> Callable[[Place], Words]:
    """The words of a server that would be fine but for these."""
    return lambda at: ["serve", "--model", at.kit.model, "--port", 0, *more]


def _with(folder: Callable[[Place], object]) -> Callable[[Place], Words]:
    return lambda at: ["serve", "--model", at.kit.model, "--port", 0, "--prompts", folder(at)]


def _keys(content: str | bytes) -> Callable[[Place], Words]:
    return lambda at: ["serve", "--model", at.kit.model, "--api-key-file", at.file("keys", content)]


def _twice(at: Place) -> Words:
    return ["serve", "--model", at.kit.model, "--prompts", at.prompt(), f"prompt={at.kit.prompt}"]


def _taken(at: Place) -> Callable[[], Ran]:
    def serve() -> Ran:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            return run("serve", "--model", at.kit.model, "--port", other.getsockname()[1])

    return serve


def _upstream(url: str, *more: object) -> Callable[[Place], Words]:
    return _serve("--upstream", url, *more)


def _upstream_keys(content: str) -> Callable[[Place], Words]:
    return lambda at: [*_upstream("http://h")(at), "--upstream-key-file", at.file("keys", content)]


def _exported(content: str) -> Callable[[Place], Words]:
    """A gateway to a model whose list of prompts holds this."""

    def words(at: Place) -> Words:
        folder = at.at / "exported"
        shutil.copytree(at.kit.model, folder)
        (folder / "soft_prompts.json").write_text(content, encoding="utf-8")
        return ["serve", "--model", folder, "--port", 0, "--upstream", "http://127.0.0.1:1"]

    return words


SERVING = (
    Case(_G, "no model and no prompt", lambda _at: ["serve"], ("there is no model", "--prompts"), needs=_NEEDS),
    Case(_G, "a port that is none", _serve("--port", 99999), ("from 0 to 65535, not 99999",), needs=_NEEDS),
    Case(_G, "a port that is taken", _taken, ("cannot listen", "--port"), needs=_NEEDS),
    Case(_G, "a host that is none", _serve("--host", "a host"), ("cannot listen on a host",), needs=_NEEDS),
    Case(_G, "no time at all", _serve("--timeout", "nan"), ("must be at least 0.1, not nan",), needs=_NEEDS),
    Case(_G, "no place for a request", _serve("--max-concurrency", 0), ("must be at least 1",), needs=_NEEDS),
    Case(
        _G,
        "a root folder that is not there",
        _serve("--prompts-root", "none"),
        ("no folder none", "--prompts-root"),
        needs=_NEEDS,
    ),
    Case(_G, "no keys in the file of keys", _keys("# none\n"), ("holds no API key",), needs=_NEEDS),
    Case(_G, "a key that is too short", _keys("abc123\n"), ("key 1", "16 characters"), needs=_NEEDS),
    Case(_G, "keys that are no text", _keys(b"\xff\xfe\x00"), ("cannot read the API keys",), needs=_NEEDS),
    Case(_G, "no file of keys", _serve("--api-key-file", "none"), ("cannot read the API keys",), needs=_NEEDS),
    Case(_G, "two prompts of one name", _twice, ("two prompts are called 'prompt'",), needs=_NEEDS),
    Case(_G, "a prompt that is not there", _with(lambda at: at.at / "none"), ("no prompt folder",), needs=_NEEDS),
    Case(
        _G,
        "a name that leads upwards",
        _with(lambda at: f"../up={at.kit.prompt}"),
        ("'../up' cannot name a prompt",),
        needs=_NEEDS,
    ),
    Case(
        _G,
        "a prompt of another model",
        _with(lambda at: at.prompt(base_fingerprint="0" * 32)),
        ("was made for another model",),
        needs=_NEEDS,
    ),
    Case(_G, "an upstream that is no URL", _upstream("h:8000"), ("'h:8000' is no URL", "http://HOST"), needs=_NEEDS),
    Case(_G, "an upstream of no such port", _upstream("http://h:99999"), ("is no URL of a server",), needs=_NEEDS),
    Case(
        _G,
        "a dtype where no model is loaded",
        _upstream("http://h", "--dtype", "float32"),
        ("--dtype has no effect: no model is loaded",),
        needs=_NEEDS,
    ),
    Case(
        _G,
        "an upstream's model without an upstream",
        _serve("--upstream-model", "x"),
        ("--upstream-model has no effect",),
        needs=_NEEDS,
    ),
    Case(_G, "two keys for the upstreams", _upstream_keys("one\ntwo\n"), ("holds 2 keys",), needs=_NEEDS),
    Case(
        _G,
        "a list of prompts in the vocabulary that is none",
        _exported("[1]"),
        ("soft_prompts.json is no list of prompts", "Export the model again"),
        needs=_NEEDS,
    ),
    Case(
        _G,
        "a prompt whose tokens the model does not have",
        _exported('{"prompts": {"a": {"virtual_tokens": 9, "first_id": 99999999, "template": "tutorial"}}}'),
        ("has the tokens 99999999 to 100000007",),
        needs=_NEEDS,
    ),
)
