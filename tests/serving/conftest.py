"""A small model with prompts of several lengths, the engine on it, and a server that the official client talks to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from architectures import build
from ptune.model.wrapper import PTunedModel
from ptune.serving.engine.engine import Bounds
from ptune.serving.engine.scheduler import Scheduler
from running_servers import SECONDS, Engine, Running, prompts_on, save_prompt, start_server


@pytest.fixture
def engine_of(tiny_tokenizer: Any) -> Iterator[Callable[..., Engine]]:
    """Makes a running engine on a small model of some architecture."""
    made: list[Engine] = []

    def make(name: str = "llama", *, model: Any = None, start: bool = True, **bounds: Any) -> Engine:
        wrapped = PTunedModel(build(name) if model is None else model).eval()
        lengths = {"short": 3, "middle": 6, "long": 11}
        if wrapped.capability.prefix:
            lengths["deep"] = 5
        prompts = prompts_on(wrapped, tiny_tokenizer, lengths)
        engine = Engine(wrapped, tiny_tokenizer, prompts, Scheduler(wrapped, tiny_tokenizer, Bounds(**bounds)))
        if start:
            engine.scheduler.start()
        made.append(engine)
        return engine

    yield make
    for engine in made:
        if engine.scheduler.alive:
            assert engine.scheduler.stop(seconds=SECONDS)


@pytest.fixture(scope="session")
def prompt_folders(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompt folders `p0` to `p5` in one place. Read only."""
    root = tmp_path_factory.mktemp("prompts")
    for number in range(6):
        save_prompt(tiny_model_dir, root / f"p{number}", length=3 + number, seed=number)
    return root


@pytest.fixture(scope="session")
def serve(tiny_model_dir: Path) -> Iterator[Callable[..., Running]]:
    """Makes a server of prompt folders, with a key unless told otherwise."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    made: list[Running] = []

    def make(folders: Path | None = None, *, model_dir: Path = tiny_model_dir, **values: Any) -> Running:
        made.append(start_server(model_dir, folders, **values))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture(scope="session")
def running(serve: Callable[..., Running], prompt_folders: Path) -> Running:
    """A server of the prompts `p0` to `p5`; tests leave it as it is."""
    return serve(prompt_folders)
