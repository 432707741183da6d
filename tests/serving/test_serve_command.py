"""`ptune serve` as a user starts it, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from commands import SOURCES, run
from running_servers import KEY, SECONDS

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
LONG = {"model": "p0", "messages": [{"role": "user", "content": "a"}], "max_tokens": 110, "ignore_eos": True}


@contextmanager
def served(*words: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], Any, list[dict[str, Any]]]]:
    """The process, a client with a key, and the lines of its log so far."""
    settings = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "ptune", "serve", "--port", "0", *map(str, words)]
    process = subprocess.Popen(command, env=settings, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines: list[dict[str, Any]] = []
    try:
        for text in process.stderr:
            lines.append(json.loads(text))
            if lines[-1]["message"] == "serving":
                break
        else:
            raise AssertionError(lines)
        rest = threading.Thread(target=lambda: lines.extend(map(json.loads, process.stderr)), daemon=True)
        rest.start()
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=lines[-1]["url"], headers=headers, timeout=SECONDS, trust_env=False) as client:
            yield process, client, lines
        rest.join(SECONDS)
    finally:
        process.kill()
        process.wait(SECONDS)
        process.stderr.close()


def wait_for_arrivals(client: Any, count: int, *, waiting: int) -> None:
    """Come back when so many requests have arrived, answered or not, and so many of them are still to be begun."""
    names = (
        r'ptune_requests_total\{path="/v1/chat/completions",status="200"\}',
        "ptune_running_answers",
        "ptune_waiting_requests",
    )
    until = time.monotonic() + SECONDS
    while True:
        text = client.get("/metrics").text
        # Read by the server in this order: what moves on meanwhile is missed, and nothing is counted twice.
        found = [re.search(rf"^{name} ([0-9]+)", text, re.MULTILINE) for name in names]
        numbers = [int(one[1]) if one else 0 for one in found]
        if sum(numbers) == count and numbers[-1] >= waiting:
            return
        assert time.monotonic() < until, numbers


def test_a_server_from_start_to_end(tiny_model_dir: Path, prompt_folders: Path, tmp_path: Path) -> None:
    """Keys from a file, a root folder, and SIGTERM under load: everything that was asked is answered, with code 0."""
    keys = tmp_path / "keys"
    keys.write_text(f"# ours\n{KEY}\n\n")
    words = (
        "--model",
        tiny_model_dir,
        "--prompts-root",
        prompt_folders,
        "--api-key-file",
        keys,
        "--max-concurrency",
        2,
    )
    with served(*words) as (process, client, lines):
        assert client.get("/v1/models").json()["data"][0]["id"] == tiny_model_dir.name
        assert next(one for one in lines if one["message"] == "serving")["prompts"] == 6
        with ThreadPoolExecutor(24) as pool:
            asked = [pool.submit(client.post, "/v1/chat/completions", json=LONG) for _ in range(24)]
            wait_for_arrivals(client, 24, waiting=3)
            process.send_signal(signal.SIGTERM)
            answers = [one.result(SECONDS) for one in asked]
        assert [one.status_code for one in answers] == [200] * 24
        assert process.wait(SECONDS) == 0
    assert lines[-1]["message"] == "stopped"
    assert lines[-1]["complete"] is True
    requests = [one for one in lines if one["message"] == "request" and one["method"] == "POST"]
    assert [one["completion_tokens"] for one in requests] == [110] * 24


def test_what_takes_too_long_to_stop_is_given_up(tiny_model_dir: Path, prompt_folders: Path) -> None:
    words = ("--prompts", f"p0={prompt_folders / 'p0'}", "--model", tiny_model_dir, "--max-concurrency", 1)
    with served(*words, "--shutdown-timeout", 1, PTUNE_API_KEYS=KEY) as (process, client, lines):
        with ThreadPoolExecutor(60) as pool:
            asked = [pool.submit(client.post, "/v1/chat/completions", json=LONG) for _ in range(60)]
            wait_for_arrivals(client, 60, waiting=40)
            process.send_signal(signal.SIGTERM)
            answers = [one.result(SECONDS) for one in asked]
        assert {one.status_code for one in answers} == {200, 503}
        assert process.wait(SECONDS) == 0
    assert lines[-1]["message"] == "stopped"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "there is no model. Name it with --model"),
        (("--model", "x", "--port", 70000), "argument --port: must be from 0 to 65535, not 70000"),
        (("--model", "x", "--host", "no.such.host.invalid"), "cannot listen on no.such.host.invalid:8000"),
        (("--model", "x", "--prompts-root", "/nowhere"), "there is no folder /nowhere"),
        (("--model", "x", "--api-key-file", "/nowhere"), "cannot read the API keys in /nowhere"),
        (("--model", "x", "--max-waiting", 0), "must be at least 1, not 0"),
        (("--model", "x", "--prompts", "a/p0", "b/p0"), "two prompts are called 'p0'"),
        (("--modle", "x"), "did you mean --model?"),
    ],
)
def test_command_lines_that_cannot_be_used(words: tuple[object, ...], said: str) -> None:
    ran = run("serve", *words)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert ran.err.count("\n") == 1


def test_prompts_that_cannot_be_served(tiny_model_dir: Path, prompt_folders: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ran = run("serve", "--model", tiny_model_dir, "--port", taken.getsockname()[1])
        assert (ran.code, "Address already in use" in ran.err) == (2, True)
    folder = tmp_path / "no name"
    folder.symlink_to(prompt_folders / "p0")
    for words, said in (
        ([tmp_path / "none"], "--prompts"),
        ([tmp_path], "is not a prompt folder"),
        ([f"no name={prompt_folders / 'p0'}"], "'no name' cannot name a prompt. Use 1 to 64 letters"),
        ([f"{tiny_model_dir.name}={prompt_folders / 'p0'}"], "what the frozen model is called"),
    ):
        ran = run("serve", "--port", 0, "--model", tiny_model_dir, "--prompts", *words)
        # A server of another test may still log a request of its own, as JSON.
        own = [line for line in ran.err.splitlines() if not line.startswith("{")]
        assert (ran.code, said in ran.err, len(own)) == (2, True, 1), ran.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no API key"),
        ("5hort", "key 1: an API key of 5 characters"),
        ("a key of many words", "letters, digits"),
    ],
    ids=["none", "one", "several"],
)
def test_keys_that_are_none(content: str, said: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(content)
    ran = run("serve", "--model", "x", "--api-key-file", keys)
    assert (ran.code, said in ran.err) == (2, True)
    assert not content or content not in ran.err


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptune.cli.serve.find_spec", lambda name: None if name == "uvicorn" else object())
    ran = run("serve", "--model", "x")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        'ptune serve: error: ptune serve needs packages that are not installed: uvicorn. pip install "ptune[serve]".\n'
    )
