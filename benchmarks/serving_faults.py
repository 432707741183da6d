"""Faults of clients, of prompts and of the machine, against a running `ptune serve`: what happened to each.

After each fault the server must run, answer another request, and have nothing left of the one before.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from served import KEY, Served, chat

SECONDS = 60
LONG: dict[str, Any] = chat("p1", "Tell me all of it.", 400, ignore_eos=True)
Fault = Callable[["Scene"], tuple[str, bool]]
"""What happened, and whether it is what was wanted."""


class Scene:
    """A server, its prompts, and who asks it."""

    def __init__(self, server: Served, root: Path, store: Path) -> None:
        self.server, self.root, self.store = server, root, store

    def post(self, body: Any, **options: Any) -> Any:
        """A request, and its answer."""
        with self.server.http() as http:
            given = {"content": body} if isinstance(body, bytes) else {"json": body}
            return http.post("/v1/chat/completions", **given, headers={"Content-Type": "application/json"}, **options)

    def told(self, body: Any) -> tuple[str, int]:
        """The status of a request, and its error in short."""
        answer = self.post(body)
        error = answer.json().get("error", {})
        return f"{answer.status_code}: {error.get('message', 'answered')}"[:160], answer.status_code

    def raw(self, content: bytes, *, read: bool = True) -> bytes:
        """Bytes on a connection of their own, and what comes back until it ends."""
        with socket.create_connection(self.server.address, timeout=SECONDS) as connection:
            found = b""
            with suppress(ConnectionError):
                connection.sendall(content)
                while read and (part := connection.recv(65536)):
                    found += part
            return found

    def gauge(self, name: str) -> float:
        """A value of `/metrics`."""
        with self.server.http() as http:
            found = re.search(rf"^{name} (\S+)$", http.get("/metrics").text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    def idle(self) -> bool:
        """Whether nothing runs or waits, at once or soon."""
        return within(lambda: self.gauge("ptune_running_answers") + self.gauge("ptune_waiting_requests") == 0)

    def replace(self, name: str, by: Path) -> None:
        """Exchange a prompt's folder by renaming."""
        new, old = self.store / "new", self.store / "old"
        shutil.copytree(by, new)
        shutil.rmtree(old, ignore_errors=True)
        (self.root / name).rename(old)
        new.rename(self.root / name)

    def names(self) -> list[str]:
        """The prompts that are served."""
        with self.server.http() as http:
            return [one["name"] for one in http.get("/v1/prompts").json()["data"]]


def within(condition: Callable[[], bool], seconds: float = SECONDS) -> bool:
    """Whether something becomes true in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False


def head(length: int | None) -> bytes:
    """The head of a request whose body has a length, or comes in chunks."""
    said = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    first = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{first}Authorization: Bearer {KEY}\r\n{said}\r\n\r\n".encode()


def gone_mid_stream(scene: Scene) -> tuple[str, bool]:
    """The client goes away while its answer is streamed."""
    body = json.dumps({**LONG, "stream": True}).encode()
    with socket.create_connection(scene.server.address) as connection:
        connection.sendall(head(len(body)) + body)
        connection.recv(400)
    free = scene.idle()
    return f"its row left the batch: {free}", free


def gone_before_its_answer(scene: Scene) -> tuple[str, bool]:
    """The client goes away before its answer, which is not streamed, is complete."""
    body = json.dumps(LONG).encode()
    with socket.create_connection(scene.server.address) as connection:
        connection.sendall(head(len(body)) + body)
        within(lambda: scene.gauge("ptune_running_answers") == 1)
    free = scene.idle()
    return f"its row left the batch: {free}", free


def replaced_under_load(scene: Scene) -> tuple[str, bool]:
    """A prompt is replaced while requests of it run."""
    before = scene.post(LONG).json()["choices"][0]["message"]["content"]
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(scene.post, LONG) for _ in range(4)]
        within(lambda: scene.gauge("ptune_running_answers") == 4)
        scene.replace("p1", scene.root / "p2")
        texts = {one.result().json()["choices"][0]["message"]["content"] for one in asked}
    changed = within(lambda: scene.post(LONG).json()["choices"][0]["message"]["content"] != before)
    return f"those under way got the old prompt's answer: {texts == {before}}; new ones the new: {changed}", (
        texts == {before} and changed
    )


def deleted_under_load(scene: Scene) -> tuple[str, bool]:
    """A prompt is deleted over the API while requests of it run."""
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(scene.post, LONG) for _ in range(4)]
        within(lambda: scene.gauge("ptune_running_answers") == 4)
        with scene.server.http() as http:
            deleted = http.delete("/v1/prompts/p1").status_code
        statuses = {one.result().status_code for one in asked}
    after = scene.post(LONG).status_code
    with scene.server.http() as http:
        http.post("/v1/prompts", json={"name": "p1"})
    found = f"deletion {deleted}; those under way {statuses}; asked for afterwards {after}"
    return found, (deleted, statuses, after) == (200, {200}, 404)


def broken_folder(scene: Scene) -> tuple[str, bool]:
    """A damaged prompt folder appears."""
    shutil.copytree(scene.root / "p0", scene.store / "broken")
    (scene.store / "broken" / "adapter_model.safetensors").write_bytes(b"\x00" * 100)
    (scene.store / "broken").rename(scene.root / "broken")
    within(lambda: any(line.get("prompt") == "broken" for line in scene.server.log))
    line = next((one for one in scene.server.log if one.get("prompt") == "broken"), {"reason": "nothing"})
    shutil.rmtree(scene.root / "broken")
    served = "broken" in scene.names()
    reason = str(line["reason"]).replace(str(scene.root), "ROOT")[:120]
    return f"served: {served}; the log says: {reason}", not served and "reason" in line


def body_of_100_mb(scene: Scene) -> tuple[str, bool]:
    """A body of 100 MB, announced."""
    before = scene.server.resident_mib
    first = scene.raw(head(100_000_000) + b"x" * 1_000_000).split(b"\r\n")[0]
    grown = scene.server.resident_mib - before
    return f"{first.decode()}; memory grew by {grown:.0f} MiB", b" 413 " in first and grown < 8


def chunks_of_100_mb(scene: Scene) -> tuple[str, bool]:
    """A body of 100 MB in chunks, its length not announced."""
    before, sent = scene.server.resident_mib, 0
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with socket.create_connection(scene.server.address) as connection, suppress(OSError):
        connection.sendall(head(None))
        while sent < 1600:
            connection.sendall(chunk)
            sent += 1
    grown = scene.server.resident_mib - before
    return f"the connection ended after {sent / 16:.0f} MB; memory grew by {grown:.0f} MiB", sent < 1600 and grown < 16


def idle_connections(scene: Scene) -> tuple[str, bool]:
    """3,000 connections that send nothing, or half a head."""
    crowd = []
    for number in range(3000):
        connection = socket.create_connection(scene.server.address, timeout=SECONDS)
        connection.sendall(b"GET /health HT" if number % 2 else b"")
        crowd.append(connection)
    most = scene.gauge("process_open_fds")
    answered = scene.post(chat("p1", "a", 2)).status_code
    for connection in crowd:
        connection.close()
    return (
        f"at most {most:.0f} open files in the server; a request meanwhile: {answered}",
        most < 600 and answered == 200,
    )


def invalid_json(scene: Scene) -> tuple[str, bool]:
    """A body that is no JSON."""
    told, status = scene.told(b'{"model": "p1", ')
    return told, status == 400


def deep_json(scene: Scene) -> tuple[str, bool]:
    """A body of 100,000 opening brackets."""
    told, status = scene.told(b"[" * 100_000)
    return told, status == 400


def unknown_model(scene: Scene) -> tuple[str, bool]:
    """A model that is not there."""
    told, status = scene.told({**LONG, "model": "p11"})
    return told, status == 404


def path_as_model(scene: Scene) -> tuple[str, bool]:
    """A model called as a path is."""
    told, status = scene.told({**LONG, "model": "../../etc/passwd\x00"})
    return told, status == 404


def text_too_long(scene: Scene) -> tuple[str, bool]:
    """A text longer than the context."""
    told, status = scene.told(chat("p1", "word " * 5000, 4))
    return told, status == 400


def no_key(scene: Scene) -> tuple[str, bool]:
    """A request without a key."""
    with scene.server.http() as http:
        del http.headers["Authorization"]
        status = http.get("/v1/models").status_code
        health = http.get("/health").status_code
    return f"/v1/models {status}, /health {health}", (status, health) == (401, 200)


def too_many(scene: Scene) -> tuple[str, bool]:
    """More requests than may run and wait."""
    with ThreadPoolExecutor(80) as pool:
        found = list(pool.map(lambda _: scene.post(LONG), range(80)))
    counts = {status: sum(one.status_code == status for one in found) for status in {one.status_code for one in found}}
    told = all("retry-after" in one.headers for one in found if one.status_code == 429)
    return f"{counts}; Retry-After with each 429: {told}", set(counts) == {200, 429} and told


def no_http(scene: Scene) -> tuple[str, bool]:
    """Bytes that are no HTTP."""
    first = scene.raw(b"\x16\x03\x01\x02\x00\r\n\r\n").split(b"\r\n")[0]
    return first.decode(), b" 400 " in first


def stop_under_load(scene: Scene) -> tuple[str, bool]:
    """SIGTERM while 8 answers run and 16 requests wait; the last of the faults."""
    with ThreadPoolExecutor(24) as pool:
        asked = [pool.submit(scene.post, LONG) for _ in range(24)]
        within(lambda: scene.gauge("ptune_waiting_requests") == 16)
        began = time.monotonic()
        code = scene.server.stop()
        seconds = time.monotonic() - began
        found = [one.result().status_code for one in asked]
    complete = found == [200] * 24
    return f"{found.count(200)} of 24 answered whole; exit code {code} after {seconds:.1f} s", complete and code == 0


FAULTS: tuple[Fault, ...] = (
    gone_mid_stream, gone_before_its_answer, replaced_under_load, deleted_under_load, broken_folder, body_of_100_mb,
    chunks_of_100_mb, idle_connections, invalid_json, deep_json, unknown_model, path_as_model, text_too_long, no_key,
    too_many, no_http, stop_under_load,
)  # fmt: skip


def try_faults(model: Path, root: Path, store: Path, *, threads: int) -> list[dict[str, Any]]:
    """Each fault, what happened, and whether the server went on."""
    found = []
    flags = ("--max-concurrency", 8, "--max-waiting", 16, "--watch-seconds", 0.2, "--max-connections", 512)
    with Served("--model", model, "--prompts-root", root, *flags, threads=threads) as server:
        scene = Scene(server, root, store)
        for fault in FAULTS:
            said, wanted = fault(scene)
            last = fault is FAULTS[-1]
            goes_on = last or (scene.post(chat("p0", "a", 2)).status_code == 200 and scene.idle())
            what = (fault.__doc__ or "").strip()
            found.append({"fault": what, "happened": said, "goes_on": goes_on, "as_wanted": wanted and goes_on})
            print(f"{'ok' if wanted and goes_on else 'NOT AS WANTED'}  {what} {said}", flush=True)
    return found
