"""A small model with prompts of several lengths, the engine on it, and a server that the official client talks to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from architectures import build
from ptune.model.wrapper import PTunedModel
from ptune.serving.engine.engine import Bounds
from ptune.serving.engine.scheduler import Scheduler
from ptune.serving.prompt_registry import PromptRegistry
from ptune.serving.serve_settings import ServeSettings
from running_servers import KEY, SECONDS, Engine, Running, prompts_on, save_prompt


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
    from ptune.loading.load import load_model, load_tokenizer
    from ptune.serving.web.server import make_parts

    made: list[Running] = []

    def make(folders: Path | None = None, *, model_dir: Path = tiny_model_dir, **values: Any) -> Running:
        settings = replace(ServeSettings(port=0, keys=(KEY,), watch_seconds=0), **values)
        model = PTunedModel(load_model(str(model_dir), dtype="float32"), self_check=False).eval()
        tokenizer = load_tokenizer(str(model_dir))
        registry = PromptRegistry(model, tokenizer, base_name="tiny")
        for folder in sorted(folders.iterdir()) if folders else ():
            registry.add(folder.name, folder)
        made.append(Running.of(make_parts(model, tokenizer, registry, settings)))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture(scope="session")
def running(serve: Callable[..., Running], prompt_folders: Path) -> Running:
    """A server of the prompts `p0` to `p5`; tests leave it as it is."""
    return serve(prompt_folders)
