"""A running engine and a running server, for the tests of serving."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from ptune.config import PromptTuningConfig
from ptune.data.template import get_template
from ptune.deep_config import PrefixTuningConfig
from ptune.model.wrapper import PTunedModel
from ptune.serving.engine.requested import Failed, Job, Piece, Sampling
from ptune.serving.engine.scheduler import Scheduler
from ptune.serving.prompt_registry import PromptRegistry
from ptune.serving.serve_settings import ServeSettings
from ptune.serving.served_prompt import ServedPrompt

KEY = "a-key-of-more-than-sixteen-characters"
SECONDS = 60
"""The longest that a test waits for what should come at once."""


def prompts_on(
    model: PTunedModel, tokenizer: Any, lengths: dict[str, int], *, seed: int = 0
) -> dict[str | None, ServedPrompt | None]:
    """Random prompts of some lengths by name, wide enough to change answers; None for the frozen model alone.

    The one called `deep` is keys and values of every layer.
    """
    found: dict[str | None, ServedPrompt | None] = {None: None}
    for number, (name, length) in enumerate(lengths.items(), start=seed):
        deep = name == "deep"
        model.add_prompt(name, (PrefixTuningConfig if deep else PromptTuningConfig)(num_virtual_tokens=length))
        with torch.no_grad():
            weight = model.prompts[name].embedding.weight
            drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
            weight.copy_((1.0 if deep else 0.2) * drawn)
        template = get_template("tutorial", tokenizer)
        found[name] = ServedPrompt(name, name, Path(), model.prompts[name], model.prompt_configs[name], template)
    return found


@dataclass
class Engine:
    """A running engine, and what it said to each job."""

    model: PTunedModel
    tokenizer: Any
    prompts: dict[str | None, ServedPrompt | None]
    scheduler: Scheduler
    said: dict[int, list[Any]] = field(default_factory=dict)
    events: queue.Queue[tuple[int, Any]] = field(default_factory=queue.Queue)

    def job(self, ids: Any, prompt: str | None = None, /, *, sampling: Sampling | None = None, **fields: Any) -> Job:
        """A job, greedy and of 8 tokens unless told otherwise."""
        number = len(self.said)
        self.said[number] = []
        fields = {"max_new_tokens": 8, **fields}
        job = Job(
            ids=list(ids),
            prompt=self.prompts[prompt],
            sampling=sampling or Sampling(),
            emit=lambda event: self.events.put((number, event)),
            **fields,
        )
        job.number = number  # type: ignore[attr-defined]
        return job

    def ask(self, *jobs: Job) -> list[list[str]]:
        """Submit jobs at once; the texts of each one's choices."""
        for job in jobs:
            self.scheduler.submit(job)
        return [self.texts(job) for job in jobs]

    def pieces(self, job: Job) -> list[Piece]:
        """What was said to a job, complete; raises what it failed with."""
        said = self.said[job.number]  # type: ignore[attr-defined]
        until = time.monotonic() + SECONDS
        while sum(isinstance(one, Failed) or one.finish_reason is not None for one in said) < job.choices:
            if said and isinstance(said[-1], Failed):
                raise said[-1].error
            number, event = self.events.get(timeout=until - time.monotonic())
            self.said[number].append(event)
        if isinstance(said[-1], Failed):
            raise said[-1].error
        return said

    def texts(self, job: Job) -> list[str]:
        """The text of each choice."""
        pieces = self.pieces(job)
        return ["".join(one.text for one in pieces if one.choice == at) for at in range(job.choices)]

    def tokens(self, job: Job) -> list[int]:
        """The tokens of a job of one choice that asked for log-probabilities."""
        return [token.token for piece in self.pieces(job) for token in piece.tokens]

    def generated(self, job: Job, prompt: str | None = None) -> str:
        """What `generate` of ptune gives for it, alone."""
        ids = torch.tensor([list(job.ids)])
        out = self.model.generate(
            ids, prompt_names=[prompt], max_new_tokens=job.max_new_tokens, do_sample=False, pad_token_id=0
        )
        return str(self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def save_prompt(model_dir: Path, folder: Path, *, length: int = 4, seed: int = 0, template: str = "tutorial") -> Path:
    """A prompt folder for the small model."""
    from transformers import AutoModelForCausalLM

    from ptune.frozen.fingerprint import tokenizer_fingerprint

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = PTunedModel(AutoModelForCausalLM.from_pretrained(model_dir), self_check=False)
    prompts_on(model, tokenizer, {"default": length}, seed=seed)
    details = {"template": template, "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer)}
    model.save_pretrained(folder, **details)
    return folder


@dataclass
class Running:
    """A server in this process."""

    url: str
    parts: Any
    server: Any
    thread: threading.Thread

    @classmethod
    def of(cls, parts: Any) -> Running:
        """Start one."""
        from ptune.serving.web.server import listen, server_of

        at = listen(parts.settings.host, parts.settings.port)
        server = server_of(parts)
        parts.engine.start()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [at]}, daemon=True)
        thread.start()
        until = time.monotonic() + SECONDS
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        return cls("http://{}:{}".format(*at.getsockname()), parts, server, thread)

    def end(self) -> None:
        """Stop it, whatever runs."""
        self.server.stop(force=True)
        self.thread.join(SECONDS)
        self.parts.engine.stop(seconds=0)

    def client(self, key: str = KEY, **options: Any) -> Any:
        """The official client."""
        import openai

        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key, **{"max_retries": 0, "timeout": SECONDS, **options}
        )

    def http(self, **options: Any) -> Any:
        """A plain client with the key."""
        import httpx

        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=SECONDS, trust_env=False, **options
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)


def start_server(model_dir: Path, folders: Path | None = None, **values: Any) -> Running:
    """A server of the small model and the prompt folders in a folder, with a key unless told otherwise."""
    from ptune.loading.load import load_model, load_tokenizer
    from ptune.serving.web.server import make_parts

    settings = replace(ServeSettings(port=0, keys=(KEY,), watch_seconds=0), **values)
    model = PTunedModel(load_model(str(model_dir), dtype="float32"), self_check=False).eval()
    tokenizer = load_tokenizer(str(model_dir))
    registry = PromptRegistry(model, tokenizer, base_name="tiny")
    for folder in sorted(folders.iterdir()) if folders else ():
        registry.add(folder.name, folder)
    return Running.of(make_parts(model, tokenizer, registry, settings))
