"""Prompts come, change and go while a server runs; names from outside lead nowhere else."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptune.errors import PromptError
from ptune.serving.prompt_registry import folder_below
from running_servers import SECONDS, Running, save_prompt

pytest.importorskip("openai")
Serve = Callable[..., Running]


@pytest.fixture
def root(tmp_path: Path, prompt_folders: Path) -> Path:
    """A root folder of a test's own, with `p0`."""
    shutil.copytree(prompt_folders / "p0", tmp_path / "root" / "p0")
    return tmp_path / "root"


def answer(running: Running, name: str, **options: Any) -> str:
    asked = {"model": name, "messages": [{"role": "user", "content": "green red"}], "temperature": 0, "max_tokens": 12}
    return str(running.client().chat.completions.create(**{**asked, **options}).choices[0].message.content)


def names(running: Running) -> list[str]:
    return [one.id for one in running.client().models.list()][1:]


def test_a_watched_folder(serve: Serve, root: Path, prompt_folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    running = serve(prompts_root=root)
    watch = running.parts.watch
    first = answer(running, "p0")
    shutil.copytree(prompt_folders / "p3", root / "new")
    watch.look()
    assert names(running) == ["p0", "new"]
    shutil.copytree(prompt_folders / "p4", root.parent / "p0")  # another one, exchanged by renaming
    (root / "p0").rename(root.parent / "old")
    (root.parent / "p0").rename(root / "p0")
    watch.look()
    assert answer(running, "p0") != first
    assert answer(running, "new") == answer(serve(prompt_folders), "p3")
    shutil.rmtree(root / "new")
    watch.look()
    assert names(running) == ["p0"]
    assert running.parts.model.prefixes.names == [running.parts.prompts.prompts["p0"].key]


def test_a_broken_folder_is_told_once_and_leaves_what_was(
    serve: Serve, root: Path, prompt_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = serve(prompts_root=root)
    lines: list[Any] = []
    monkeypatch.setattr("ptune.serving.prompt_watch._log.error", lambda text, extra: lines.append((text, extra)))
    first, watch = answer(running, "p0"), running.parts.watch
    for name, content in (("adapter_model.safetensors", b"\x00" * 9), ("ptune.json", b"{")):
        damaged = root / "p0" / name
        good = damaged.read_bytes()
        damaged.write_bytes(content)
        watch.look()
        watch.look()
        assert answer(running, "p0") == first
        damaged.write_bytes(good)
        watch.look()
    (root / "half").mkdir()
    (root / "half" / "ptune.json").write_bytes((root / "p0" / "ptune.json").read_bytes())
    (root / "no name").mkdir()
    (root / "no name" / "ptune.json").write_text("{}")
    (root / "nothing").mkdir()
    (root / "away").symlink_to(prompt_folders / "p1")
    for _ in range(3):
        watch.look()
    assert names(running) == ["p0"]
    told = sorted((extra["prompt"], text.split("; ")[1]) for text, extra in lines)
    goes_on, not_served = "the one before goes on", "it is not served"
    assert told == [("away", not_served), ("half", not_served), ("no name", not_served), *[("p0", goes_on)] * 2]


def test_prompts_over_the_api(serve: Serve, root: Path, prompt_folders: Path) -> None:
    running = serve(prompts_root=root)
    with running.http() as http:
        shutil.copytree(prompt_folders / "p5", root / "store" / "v1")
        made = http.post("/v1/prompts", json={"name": "mine", "folder": "store/v1"})
        assert (made.status_code, made.json()["name"], made.json()["virtual_tokens"]) == (201, "mine", 8)
        assert [one["name"] for one in http.get("/v1/prompts").json()["data"]] == ["p0", "mine"]
        old = answer(running, "mine")
        assert http.post("/v1/prompts", json={"name": "mine", "folder": "p0"}).status_code == 201
        assert answer(running, "mine") == answer(running, "p0") != old
        assert http.delete("/v1/prompts/mine").json() == {"name": "mine", "object": "prompt.deleted", "deleted": True}
        assert http.delete("/v1/prompts/mine").status_code == 404
        running.parts.watch.look()
        assert names(running) == ["p0"]
        assert http.delete("/v1/prompts/p0").status_code == 200
        running.parts.watch.look()
        assert names(running) == []  # deleted, though its folder is there
        os.utime(root / "p0" / "ptune.json")
        running.parts.watch.look()
        assert names(running) == ["p0"]  # it has changed since


def test_replaced_and_deleted_under_load(serve: Serve, root: Path, prompt_folders: Path) -> None:
    """Each answer is that of one version, whole: of the first or of the second."""
    running = serve(prompts_root=root)
    first = answer(running, "p0", max_tokens=60)
    found: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            found.append(answer(running, "p0", max_tokens=60))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(6):
        shutil.copytree(prompt_folders / f"p{4 * (number % 2 == 0)}", root.parent / "next")
        shutil.rmtree(root.parent / "old", ignore_errors=True)
        (root / "p0").rename(root.parent / "old")
        (root.parent / "next").rename(root / "p0")
        running.parts.watch.look()
        time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join(SECONDS)
    second = answer(serve(prompt_folders), "p4", max_tokens=60)
    assert set(found) == {first, second}
    stream = running.client().chat.completions.create(
        model="p0", messages=[{"role": "user", "content": "green red"}], temperature=0, max_tokens=60, stream=True
    )
    begun = next(iter(stream))
    running.parts.watch.delete("p0")
    rest = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert begun.choices[0].delta.role == "assistant"
    assert rest == first
    with pytest.raises(Exception, match="unknown model"):
        answer(running, "p0")


OUTSIDE = (
    "../secret", "..", ".", "/etc", "a/../../secret", "p0/../../secret", "..%2fsecret", "%2e%2e/secret", "p0\x00",
    "\x00", "link", "deep/link", "p0/", "//p0", "p0//x", "-p0", ".hidden", "a" * 2000, "p0\n",
    "p\u202e0", "~root", "C:\\x",
)  # fmt: skip


@pytest.fixture
def trapped(root: Path, prompt_folders: Path) -> Path:
    """A root with links that lead out of it, beside a folder that a name must not reach."""
    shutil.copytree(prompt_folders / "p1", root.parent / "secret")
    (root / "link").symlink_to(root.parent / "secret")
    (root / "deep").mkdir()
    (root / "deep" / "link").symlink_to(root.parent / "secret")
    return root


@pytest.mark.parametrize("name", OUTSIDE, ids=ascii)
def test_no_name_leads_out_of_the_root(trapped: Path, name: str) -> None:
    with pytest.raises(PromptError):
        folder_below(trapped, name)


def test_no_request_leads_out_of_the_root(serve: Serve, trapped: Path) -> None:
    running = serve(prompts_root=trapped)
    with running.http() as http:
        for name in OUTSIDE:
            for asked in ({"name": "x", "folder": name}, {"name": name}, {"name": name, "folder": "p0"}):
                answered = http.post(
                    "/v1/prompts", content=json.dumps(asked), headers={"Content-Type": "application/json"}
                )
                # A link's name alone may name a prompt; the folder that it leads to is not read.
                wanted = 201 if asked == {"name": "link", "folder": "p0"} else 400
                assert answered.status_code == wanted, (asked, answered.text)
                assert "secret" not in answered.text.replace(repr(name)[1:-1], ""), answered.text
        for path in ("..%2fp0", "%2e%2e%2fsecret", "p0%00", "..%5cp0", "%252e%252e", "a%2fb", "%ff"):
            assert http.delete(f"/v1/prompts/{path}").status_code == 404, path
            assert http.get(f"/v1/models/{path}").status_code == 404, path
            assert http.get(f"/{path}").status_code in (404, 405), path
    assert names(running) == ["p0", "link"]
    assert running.parts.prompts.prompts["link"].folder == trapped / "p0"


def test_prompts_are_changed_only_where_that_is_allowed(serve: Serve, root: Path, running: Running) -> None:
    with running.http() as http:
        refused = http.post("/v1/prompts", json={"name": "a"})
        assert (refused.status_code, "--prompts-root" in refused.text) == (403, True)
        assert http.delete("/v1/prompts/p0").status_code == 403
    with serve(prompts_root=root, keys=()).http() as http:
        refused = http.delete("/v1/prompts/p0")
        assert (refused.status_code, "--api-key-file" in refused.text) == (403, True)


def test_what_does_not_fit_is_refused(serve: Serve, root: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    from architectures import build
    from ptune.config import PromptTuningConfig
    from ptune.model.wrapper import PTunedModel

    running = serve(prompts_root=root)
    other = PTunedModel(build("llama", seed=5), PromptTuningConfig(num_virtual_tokens=3), self_check=False)
    other.save_pretrained(root / "other")
    save_prompt(tiny_model_dir, root / "chats", template="chat")  # the small tokenizer has no chat template
    with running.http() as http:
        for name, words in (("other", "another model"), ("chats", "no chat template"), ("none", "no folder 'none'")):
            refused = http.post("/v1/prompts", json={"name": name})
            assert (refused.status_code, words in refused.text) == (400, True), refused.text
        named = http.post("/v1/prompts", json={"name": "tiny", "folder": "p0"})
        assert (named.status_code, "frozen model" in named.text) == (400, True)
