"""A job: one method with one seed. It goes to a process of its own as JSON, and its result comes back as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ptune.recipe import TrainRecipe

BASE = "base"
"""The job that trains nothing: the frozen model's own held-out loss."""
OK, OUT_OF_MEMORY, FAILED = "ok", "out of memory", "failed"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of one method."""

    method: str
    seed: int
    folder: str
    """Where what it trains is kept; its result lies beside it, with `.json`."""
    recipe: Mapping[str, Any]
    """`TrainRecipe`'s fields."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """`TrainingArguments` that the user gave."""
    learning_rate: float | None = None
    """The method's own when None."""
    lora_r: int = 8
    lora_alpha: int = 16

    @property
    def name(self) -> str:
        """As files are called."""
        return self.method if self.method == BASE else f"{self.method}-seed{self.seed}"

    @property
    def result_file(self) -> Path:
        """Where its result lies."""
        return Path(self.folder).with_name(f"{self.name}.json")

    def train_recipe(self) -> TrainRecipe:
        """The recipe as a value."""
        return TrainRecipe(**self.recipe)

    def key(self) -> str:
        """Says whether a result found on disk is this job's: a digest of everything that shapes it."""
        shaping = {**asdict(self), "folder": None}
        shaping["recipe"] = {name: value for name, value in self.recipe.items() if name not in ("output", "overwrite")}
        return hashlib.sha256(json.dumps(shaping, sort_keys=True, default=str).encode()).hexdigest()

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """From text."""
        return cls(**json.loads(text))


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What a job gave. Memory in GiB (2^30 bytes) above the process before the model; losses in nats a token."""

    method: str
    seed: int
    status: str
    key: str
    error: str | None = None
    trainable_parameters: int | None = None
    all_parameters: int | None = None
    loaded_gib: float | None = None
    """With the model and what the method adds, before training."""
    peak_gib: float | None = None
    """At peak in training: resident memory on the CPU, what tensors took on CUDA."""
    reserved_gib: float | None = None
    """CUDA: what the allocator held."""
    device_gib: float | None = None
    """CUDA: what the driver had given away, contexts and all."""
    steps: int | None = None
    step_seconds: float | None = None
    """Median time of an optimizer step, the first left out."""
    step_cpu_seconds: float | None = None
    """The same in processor time of the process."""
    tokens: int | None = None
    """Text tokens trained on; neither padding nor virtual tokens."""
    tokens_per_second: float | None = None
    losses: tuple[tuple[int, float], ...] = ()
    """(step, training loss)."""
    held_out_loss: float | None = None
    held_out_tokens: int | None = None
    bytes_on_disk: int | None = None
    """What is needed to use it, beside the base model."""
    bytes_to_train_on: int | None = None
    """Beyond that, what is needed to go on training it (a prompt's encoder)."""
    rows_digest: str | None = None
    """Of the training rows in the order they came: equal where two methods saw the same."""
    packed: bool | None = None
    learning_rate: float | None = None

    @property
    def ok(self) -> bool:
        """Whether it came to its end."""
        return self.status == OK

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> JobResult:
        """From plain values; unknown ones are left out."""
        known = {item.name for item in fields(cls)}
        given = {name: value for name, value in values.items() if name in known}
        return cls(**{**given, "losses": tuple((step, loss) for step, loss in given.get("losses", ()))})
