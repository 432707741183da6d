"""A server on a small model that chats, and Debian's Chromium before it.

`make test-playground` installs the browser and what drives it. Every visit has a browser context of its own.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from browsing import Visit
from running_servers import SECONDS, Running, save_prompt, start_server

LOG = "".join(
    json.dumps({"step": step, "loss": 2 / step}) + "\n" + json.dumps({"step": step, "eval_loss": 2.5 / step}) + "\n"
    for step in range(1, 41, 3)
)
METRICS = {"train_loss": 0.5, "held_out_loss_before": 3.25, "held_out_loss_after": 0.125, "steps": 40}


@pytest.fixture(scope="session")
def chat_model_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with a chat template, so that it answers alone too."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("chatting") / "tiny"
    shutil.copytree(tiny_model_dir, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for one in messages %}{{ one.role }}: {{ one.content }}\n{% endfor %}assistant: "
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prompt_folders(chat_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`alpha` with a loss history, and `beta` without; `beta` says of itself what a page must not take for HTML."""
    root = tmp_path_factory.mktemp("prompts")
    for number, name in enumerate(("alpha", "beta")):
        save_prompt(chat_model_dir, root / name, length=5 + number, seed=number)
    (root / "alpha" / "metrics.jsonl").write_text(LOG)
    _say(root / "alpha", metrics=METRICS, data_report={"rows_read": 12}, tokens_report={"kept": 10})
    _say(root / "beta", encoder="<img src=/nowhere onerror=alert(1)>")
    return root


def _say(folder: Path, **changed: Any) -> None:
    path = folder / "ptune.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


@pytest.fixture(scope="session")
def serve(chat_model_dir: Path, prompt_folders: Path) -> Iterator[Callable[..., Running]]:
    """Makes a server of both prompts, without keys unless told otherwise."""
    made: list[Running] = []

    def make(folders: Path | None = prompt_folders, **values: Any) -> Running:
        made.append(start_server(chat_model_dir, folders, **{"keys": (), **values}))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture(scope="session")
def running(serve: Callable[..., Running]) -> Running:
    """A server without keys; tests leave it as it is."""
    return serve()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser. Without it these tests fail: they run only where they are asked for."""
    from playwright.sync_api import expect, sync_playwright

    found = os.environ.get("PTUNE_CHROMIUM") or shutil.which("chromium")
    assert found, "there is no chromium; on Debian: apt-get install --no-install-recommends chromium"
    # Chromium's sandbox cannot be set up by root; the only pages that it is shown are ptune's own.
    words = ["--no-sandbox"] if os.geteuid() == 0 else []
    expect.set_options(timeout=SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=words)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures of the page are put: the folder that PTUNE_SCREENSHOTS names, or a temporary one."""
    named = os.environ.get("PTUNE_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def visit(chromium: Any, running: Running) -> Iterator[Callable[..., Visit]]:
    """Begins a visit of the server, or of another."""
    made: list[Visit] = []

    def make(other: Running | None = None, **options: Any) -> Visit:
        made.append(Visit(chromium, other or running, **options))
        return made[-1]

    yield make
    for one in made:
        one.context.close()
