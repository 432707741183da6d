"""What clients do wrong, and what the server makes of it: an answer in OpenAI's form, and nobody else is disturbed."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from running_servers import KEY, SECONDS, Running

pytest.importorskip("httpx")
Serve = Callable[..., Running]
CHAT = {"model": "p1", "messages": [{"role": "user", "content": "green"}], "temperature": 0}
LONG = {**CHAT, "max_tokens": 100, "ignore_eos": True}


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def idle(running: Running) -> bool:
    return not running.parts.engine.running and not running.parts.engine.waiting


def slow_down(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let answers take long enough that those asked for together run together, however late one of them comes."""
    batch = running.parts.engine._batch
    step = batch.step

    def slow_step(tokens: list[int]) -> torch.Tensor:
        time.sleep(0.02)
        return step(tokens)

    monkeypatch.setattr(batch, "step", slow_step)


def head(length: int | None, path: str = "/v1/chat/completions") -> bytes:
    said = f"Content-Length: {length}" if length is not None else "Transfer-Encoding: chunked"
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}", "Content-Type: application/json", said]
    return "\r\n".join([*lines, "", ""]).encode()


def answered(connection: socket.socket) -> bytes:
    """Everything up to where the server ends the connection."""
    connection.settimeout(SECONDS)
    whole = b""
    while part := connection.recv(65536):
        whole += part
    return whole


def still_answers(running: Running) -> None:
    with running.http() as http:
        assert http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 3}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"1", b'"a"', b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 50_000, b"NaN",
        b'{"model": "p1", "messages": [{"role": "user", "content": "a \\ud800"}]}',
        b'{"model": "p1", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
        b'{"model": "p1", "messages": [{"role": "user", "content": "a"}], "temperature": 1e999}',
        b'{"model": "p1", "messages": [{"role": "user", "content": "a"}], "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "p1", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1.5}',
        b'{"model": 5, "messages": "a"}', b'{"model": "p1"}',
    ],
    ids=lambda body: ascii(body[:24].decode("latin-1")),
)  # fmt: skip
def test_bodies_that_are_no_request(running: Running, body: bytes) -> None:
    with running.http() as http:
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/prompts"):
            found = http.post(path, content=body, headers={"Content-Type": "application/json"})
            assert found.status_code == 400, found.text
            error = found.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["type"] == "invalid_request_error"
            assert len(error["message"]) < 500


def test_paths_and_methods_that_are_not_there(running: Running) -> None:
    with running.http() as http:
        for method, path, status in (
            ("GET", "/nowhere", 404), ("POST", "/", 405), ("PUT", "/v1/models", 405), ("GET", "/v1/completions", 405),
            ("GET", "/docs", 404), ("POST", "/health", 405), ("GET", "/v1/models/", 404), ("GET", "//etc/passwd", 404),
        ):  # fmt: skip
            found = http.request(method, path)
            assert (found.status_code, found.json()["error"]["type"]) == (status, "invalid_request_error"), path
        assert http.get("/openapi.json").json()["info"]["title"] == "ptune serve"


def test_a_body_that_is_too_large_is_not_read(running: Running) -> None:
    """100 MB, announced or not: refused at the limit, and the connection ends."""
    with socket.create_connection(running.address) as connection:
        connection.sendall(head(100_000_000) + b'{"model": "')
        found = answered(connection)
    assert found.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in found
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with socket.create_connection(running.address) as connection:
        connection.sendall(head(None))
        sent = 0
        try:
            while sent < 1600:  # 100 MB, of which only some reach the server's buffers
                connection.sendall(chunk)
                sent += 1
        except OSError:
            pass
        assert sent < 1600
    for length in ("9" * 30, "1048577"):
        with socket.create_connection(running.address) as connection:
            connection.sendall(head(0).replace(b"Content-Length: 0", f"Content-Length: {length}".encode()))
            assert answered(connection).split(b" ")[1] in (b"413", b"400")
    still_answers(running)


def test_no_http_at_all(running: Running) -> None:
    for content in (b"\x16\x03\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"A" * 200_000, b"GET / HTTP/9.9\r\n\r\n"):
        with socket.create_connection(running.address) as connection:
            try:
                connection.sendall(content)
                assert answered(connection).startswith(b"HTTP/1.1 4")
            except ConnectionError:
                pass  # closed before all of it was read
    still_answers(running)


def test_a_client_that_goes_away_takes_its_rows_along(running: Running) -> None:
    for stream in (True, False):
        body = json.dumps({**LONG, "stream": stream, "n": 4}).encode()
        with socket.create_connection(running.address) as connection:
            connection.sendall(head(len(body)) + body)
            wait_for(lambda: running.parts.engine.running == 4)
        wait_for(lambda: idle(running))
    # Some go before their answer has begun.
    for _ in range(20):
        body = json.dumps({**LONG, "stream": True, "n": 8}).encode()
        with socket.create_connection(running.address) as connection:
            connection.sendall(head(len(body)) + body)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    wait_for(lambda: idle(running))
    with running.http() as http:
        metrics = http.get("/metrics").text
    assert 'ptune_requests_total{path="/v1/chat/completions",status="499"}' in metrics
    still_answers(running)


def test_busy(serve: Serve, prompt_folders: Path) -> None:
    """One runs, two wait, and the others are told when to come again; the official client does, by itself."""
    running = serve(prompt_folders, max_concurrency=1, max_waiting=2)
    with running.http() as http, ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda _: http.post("/v1/chat/completions", json=LONG), range(12)))
        busy = [one for one in found if one.status_code == 429]
        assert {one.status_code for one in found} == {200, 429}
        assert 1 <= len(busy) <= 9
        assert all(1 <= int(one.headers["retry-after"]) <= 60 for one in busy)
        assert {one.json()["error"]["type"] for one in busy} == {"rate_limit_error"}
        client = running.client(max_retries=8)
        asked = pool.map(lambda _: client.chat.completions.create(**CHAT, max_tokens=2), range(6))
        assert all(one.choices[0].message.content is not None for one in asked)
        whole = http.post("/v1/completions", json={"model": "p1", "prompt": ["a"] * 9, "max_tokens": 2})
        assert whole.status_code == 429
    wait_for(lambda: idle(running))  # of those nine none is left behind


def test_an_answer_that_takes_too_long(serve: Serve, prompt_folders: Path) -> None:
    running = serve(prompt_folders, timeout_seconds=0.05)
    with running.http() as http:
        found = http.post("/v1/chat/completions", json={**LONG, "n": 8})
        assert (found.status_code, found.json()["error"]["code"]) == (504, "timeout")
        streamed = http.post("/v1/chat/completions", json={**LONG, "n": 8, "stream": True})
        assert streamed.status_code == 200
        assert '"code":"timeout"' in streamed.text
        assert "[DONE]" not in streamed.text
    wait_for(lambda: idle(running))
    with pytest.raises(Exception, match=r"longer than the 0\.05 seconds"):
        list(running.client().chat.completions.create(**LONG_OF_CLIENT, stream=True))


LONG_OF_CLIENT = {**CHAT, "max_tokens": 100, "n": 8, "extra_body": {"ignore_eos": True}}


def test_connections_on_which_nothing_happens_are_bounded(serve: Serve, prompt_folders: Path) -> None:
    """Hundreds that send nothing, or half a head: only so many stay open, and requests are answered meanwhile."""
    running = serve(prompt_folders, max_connections=20, idle_seconds=SECONDS)
    crowd = []
    for number in range(200):
        connection = socket.create_connection(running.address)
        connection.sendall(b"GET /health HT" if number % 2 else b"")
        crowd.append(connection)
    still_answers(running)
    wait_for(lambda: len(running.server.server_state.connections) <= 20)
    for connection in crowd:
        connection.close()


def test_a_connection_without_a_request_is_closed(serve: Serve, prompt_folders: Path) -> None:
    """Before its first request and after it, whatever trickles in."""
    running = serve(prompt_folders, idle_seconds=0.4)
    for first in (b"", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"):
        with socket.create_connection(running.address, timeout=SECONDS) as connection:
            connection.sendall(first)
            if first:
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            with contextlib.suppress(OSError):
                while True:
                    connection.sendall(b"G")
                    connection.settimeout(0.05)
                    with contextlib.suppress(TimeoutError):
                        if not connection.recv(1):
                            break
            wait_for(lambda: not running.server.server_state.connections)


def test_those_at_work_keep_their_places(serve: Serve, prompt_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = serve(prompt_folders, max_connections=4, max_concurrency=4)
    slow_down(running, monkeypatch)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(running.client().chat.completions.create, **LONG_OF_CLIENT | {"n": 1}) for _ in range(3)]
        wait_for(lambda: running.parts.engine.running == 3)
        crowd = [socket.create_connection(running.address) for _ in range(30)]
        assert all(one.result(SECONDS).usage.completion_tokens == 100 for one in asked)
    for connection in crowd:
        connection.close()


def test_a_body_that_does_not_come(serve: Serve, prompt_folders: Path) -> None:
    running = serve(prompt_folders, idle_seconds=0.3)
    with socket.create_connection(running.address) as connection:
        connection.sendall(head(500) + b'{"model": ')
        found = answered(connection)
    assert found.startswith(b"HTTP/1.1 408 ")
    assert b"Nothing of the body came" in found


def test_a_client_that_does_not_read(serve: Serve, prompt_folders: Path) -> None:
    """Its connection is closed, and nobody else waits for it."""
    running = serve(prompt_folders, idle_seconds=0.5)
    body = json.dumps({**LONG, "stream": True, "n": 32, "logprobs": True, "top_logprobs": 20}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(running.address)
        connection.sendall(head(len(body)) + body)
        wait_for(lambda: bool(running.parts.engine.running))
        wait_for(lambda: idle(running))
        still_answers(running)
        wait_for(lambda: not [one for one in running.server.server_state.connections if not one.idle])


def test_without_a_key_nothing_but_health(running: Running) -> None:
    with running.http() as http:
        paths = http.get("/openapi.json").json()["paths"]
        asked = [
            (method, path.replace("{model}", "p1").replace("{name}", "p1")) for path in paths for method in paths[path]
        ]
        assert len(asked) >= 9
        for key in (None, "", "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", KEY, "Bearer \xff"):
            headers = {} if key is None else {"Authorization": key.encode("latin-1")}
            del http.headers["Authorization"]
            for method, path in [
                *asked,
                ("GET", "/openapi.json"),
                ("GET", "/"),
                ("GET", "/playground/page.js"),
                ("GET", "/nowhere"),
                ("POST", "/health/../v1/models"),
            ]:
                found = http.request(method, path, headers=headers)
                assert found.status_code == (200 if path == "/health" else 401), (method, path, key)
            http.headers["Authorization"] = "x"
        assert http.get("/health", headers={"Authorization": "Bearer wrong"}).json() == {"status": "ok"}


def test_a_server_without_keys_is_open(serve: Serve, prompt_folders: Path) -> None:
    import httpx

    running = serve(prompt_folders, keys=())
    assert httpx.get(f"{running.url}/v1/models", trust_env=False).status_code == 200


def test_metrics_count(serve: Serve, prompt_folders: Path) -> None:
    running = serve(prompt_folders)
    with running.http() as http:
        for _ in range(3):
            http.post("/v1/chat/completions", json={**LONG, "max_tokens": 5})
        http.get("/a/path/of/a/clients/making")
        text = http.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['ptune_requests_total{path="/v1/chat/completions",status="200"}']) == 3
    assert float(values['ptune_requests_total{path="other",status="404"}']) == 1
    assert float(values["ptune_written_tokens_total"]) == 15
    assert float(values["ptune_step_rows_count"]) == 12
    assert float(values["ptune_prompts"]) == 6
    assert float(values["ptune_kept_prefixes_bytes"]) > 0
    assert float(values["ptune_request_seconds_count"]) == 3
    assert not any("making" in name for name in values)


def test_the_log_tells_no_texts(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[dict[str, Any]] = []

    def note(_text: str, extra: dict[str, Any]) -> None:
        if extra["method"] == "POST":  # the line of an earlier test's last GET may still be to come
            lines.append(extra)

    monkeypatch.setattr("ptune.serving.web.front_door._log.info", note)
    with running.http() as http:
        secret = {"role": "user", "content": "a secret"}
        found = http.post("/v1/chat/completions?q=a+secret", json={**CHAT, "messages": [secret], "max_tokens": 4})
        assert found.status_code == 200
        refused = http.post("/v1/chat/completions", json={**CHAT, "messages": [secret], "max_tokens": 4000})
        assert refused.status_code == 400
    wait_for(lambda: len(lines) == 2)
    first, second = lines
    assert (first["status"], first["model"], first["completion_tokens"]) == (200, "p1", 4)
    assert first["request_id"] == found.headers["x-request-id"]
    assert (second["status"], second["model"]) == (400, "p1")
    assert "secret" not in json.dumps(lines)
    assert KEY not in json.dumps(lines)


def test_a_server_that_stops(serve: Serve, prompt_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs and waits is answered whole; what comes on an open connection is told to come again; then it ends."""
    running = serve(prompt_folders, max_concurrency=2)
    slow_down(running, monkeypatch)
    with ThreadPoolExecutor(6) as pool, running.http() as other:
        assert other.get("/health").json() == {"status": "ok"}
        with running.http() as http:
            asked = [pool.submit(http.post, "/v1/chat/completions", json=LONG) for _ in range(6)]
            wait_for(lambda: running.parts.engine.running + running.parts.engine.waiting == 6)
            running.parts.engine.drain()
            late = other.post("/v1/chat/completions", json=LONG)
            assert (late.status_code, late.json()["error"]["code"]) == (503, "stopping")
            assert late.headers["retry-after"] == "5"
            health = other.get("/health")
            assert (health.status_code, health.json()) == (503, {"status": "stopping"})
            running.server.stop()
            found = [one.result(SECONDS) for one in asked]
    assert [one.status_code for one in found] == [200] * 6
    assert {one.json()["usage"]["completion_tokens"] for one in found} == {100}
    running.thread.join(SECONDS)
    assert not running.thread.is_alive()
    assert running.parts.engine.stop(seconds=SECONDS)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(running.address)


def test_a_defect_is_told_in_the_log_alone(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("an inner secret")

    monkeypatch.setattr("ptune.serving.web.routes_of_models.prompt_named", fail)
    with running.http() as http:
        found = http.get("/v1/models/p1")
    assert (found.status_code, found.json()["error"]["type"]) == (500, "server_error")
    assert "secret" not in found.text
    still_answers(running)


def test_many_threads_of_a_client_and_one_engine(running: Running) -> None:
    """Clients that come and go at random leave nothing behind."""
    stop = threading.Event()

    def come_and_go(number: int) -> None:
        while not stop.is_set():
            body = json.dumps({**LONG, "stream": bool(number % 2), "max_tokens": 20 + number}).encode()
            with socket.create_connection(running.address) as connection:
                connection.sendall(head(len(body)) + body)
                time.sleep(0.02 + 0.01 * number)

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        still_answers(running)
    stop.set()
    for thread in threads:
        thread.join(SECONDS)
    wait_for(lambda: idle(running))
