"""What a method will take, before anything is loaded: parameters, memory by kind, and the largest batch that fits.

All of it from the model's configuration: parameters are counted on a model without weights, activations and logits come
from a simulated step (see `simulate`), AdamW keeps two float32 numbers for each one that trains. GiB are 2^30 bytes.

What is forecast is what `ptune compare` measures: on the CPU the process's resident memory above what it held before
the model, on CUDA what tensors take. Beside tensors a process holds scratch space and what its allocator has not given
back: `OVERHEAD_GIB` and the two slacks, from the measured runs in `benchmarks/results/forecast.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from ptune.config import TaskType
from ptune.errors import ConfigError
from ptune.frozen.capability import context_length
from ptune.frozen.parameters import count_parameters
from ptune.loading.load import load_config
from ptune.loading.place import DTYPES
from ptune.loading.skeleton import skeleton
from ptune.memory.measure import GIB
from ptune.methods.apply import MethodSettings
from ptune.methods.names import DEFAULT_METHODS, METHODS, check_checkpointing, find_method
from ptune.packed.chunked_loss import positions_at_once
from ptune.planning.batch_without_data import Shape
from ptune.planning.planned_config import planned_config
from ptune.planning.simulate import ROWS_APART, ROWS_SIMULATED, StepCost, body_of, encoder_cost, step_cost
from ptune.planning.without_data import adapted

OVERHEAD_GIB = {"cpu": 0.06, "cuda": 0.0}
"""What comes with the first step: threads, kernels, scratch space."""
OWN_SLACK, TRAINER_SLACK = {"cpu": 0.11, "cuda": 0.0}, {"cpu": 0.25, "cuda": 0.0}
"""Share of what a step makes that the allocator holds besides, in fragments: ptune's packed steps, and others.

It differs with the sizes a model asks for. On a BLOOM of 123M parameters LoRA's step of 8 x 256 tokens takes 3.6 GiB
with glibc's allocator as it is, and 2.6 GiB with `MALLOC_MMAP_THRESHOLD_=4194304`, several times slower."""
ADAM_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class MemorySplit:
    """Memory at the fullest moment of training, in GiB."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    overhead: float

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(asdict(self).values()))


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What one method will take."""

    method: str
    title: str
    dtype: str
    device: str
    rows: int
    length: int
    target_length: int | None
    """Tokens of a text to write, where the task has one."""
    accumulation: int
    base_parameters: int
    trainable_parameters: int
    all_parameters: int
    loaded_gib: float
    memory: MemorySplit
    flops: float
    """Floating-point operations of an optimizer step."""
    moved_bytes: float
    operations: float
    packed: bool

    @property
    def trainable_percent(self) -> float:
        """Of all parameters."""
        return 100 * self.trainable_parameters / self.all_parameters

    @property
    def tokens(self) -> int:
        """Text tokens of an optimizer step."""
        return self.rows * (self.length + (self.target_length or 0)) * self.accumulation

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        found = asdict(self)
        found["memory"]["total"] = self.memory.total
        return {**found, "trainable_percent": self.trainable_percent, "tokens": self.tokens}


class Forecaster:
    """Forecasts for one model.

    Args:
        config: The model's.
        settings: Sizes of what the methods add.
        dtype: Of the frozen weights: float32, bfloat16 or float16.
        device: cpu or cuda.
        accumulation: Batches an optimizer step.
        checkpointing: Activations are computed again in the backward.
        supervised_share: Of a row's tokens, those that have labels; of a causal language model.
        task: What the model is for.
        num_labels: Classes or tags; None for two classes.
        target_length: Tokens of a text to write, of a model from sequence to sequence.

    Raises:
        ConfigError: A number of labels that the task cannot have.
        ModelError: No model for the task can be made of the configuration.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        settings: MethodSettings | None = None,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        accumulation: int = 1,
        checkpointing: bool = False,
        supervised_share: float = 0.6,
        task: TaskType = TaskType.CAUSAL_LM,
        num_labels: int | None = None,
        target_length: int = 128,
    ) -> None:
        self.config, self.settings = planned_config(config, task, num_labels), settings or MethodSettings()
        self.dtype, self.device, self.accumulation, self.checkpointing = dtype, device, accumulation, checkpointing
        self.supervised_share, self.task = supervised_share, task
        self.target_length = target_length if task is TaskType.SEQ_2_SEQ_LM else None
        base = skeleton(self.config, DTYPES[dtype], task=task)
        self.base_parameters = count_parameters(base)[1]
        self.context_length = context_length(base)
        self._step = lru_cache(maxsize=None)(self._simulated)
        self._encoder = lru_cache(maxsize=None)(
            lambda method: encoder_cost(self.config, method, self.settings, task=task)
        )
        self._adapted = lru_cache(maxsize=None)(self._counted)

    def forecast(self, method: str, rows: int, length: int, *, target_length: int | None = None) -> Forecast:
        """One method with batches of `rows` rows of `length` tokens.

        Args:
            method: Its name.
            rows: Of a batch.
            length: Tokens of each.
            target_length: Of a text to write, in place of the forecaster's.

        Raises:
            ConfigError: Rows and prompt exceed the model's context, or the method excludes activation checkpointing.
            ModelError: The architecture cannot be simulated, or not adapted.
        """
        if self.checkpointing:
            check_checkpointing([method])
        target = self.target_length if target_length is None else target_length
        self._check_length(method, length, target)
        counts = self._adapted(method)
        cost = self._cost(method, rows, length, target)
        optimizer = ADAM_BYTES * counts.trainable
        late = cost.late.total > cost.early.total
        moment = cost.late if late else cost.early
        slack = (OWN_SLACK if cost.packed else TRAINER_SLACK)[self.device] * moment.total
        memory = MemorySplit(
            weights=counts.weight_bytes / GIB,
            gradients=moment.gradients / GIB,
            optimizer=optimizer / GIB,
            activations=(moment.total - moment.gradients - moment.logits) / GIB,
            logits=moment.logits / GIB,
            overhead=OVERHEAD_GIB[self.device] + slack / GIB,
        )
        chosen = METHODS[method]
        return Forecast(
            method=method,
            title=chosen.title,
            dtype=self.dtype,
            device=self.device,
            rows=rows,
            length=length,
            target_length=target,
            accumulation=self.accumulation,
            base_parameters=self.base_parameters,
            trainable_parameters=counts.trainable,
            all_parameters=counts.total,
            loaded_gib=counts.weight_bytes / GIB,
            memory=memory,
            flops=cost.flops * self._batches,
            moved_bytes=cost.moved * self._batches,
            operations=cost.operations * self._batches,
            packed=cost.packed,
        )

    def largest_batch(self, method: str, length: int, memory_gib: float, *, most: int = 65536) -> int:
        """The most rows of `length` tokens that fit into `memory_gib`, up to `most`; 0 when not even one does.

        Memory is nearly affine in the rows, so the search starts where a line through two forecasts meets it.
        """

        def fits(rows: int) -> bool:
            return self.forecast(method, rows, length).memory.total <= memory_gib

        if not fits(1):
            return 0
        few, many = ROWS_SIMULATED - ROWS_APART, ROWS_SIMULATED
        one, two = (self.forecast(method, rows, length).memory.total for rows in (few, many))
        guess = few + (memory_gib - one) / max((two - one) / (many - few), 1e-9)
        low, reach = min(max(int(guess), 1), most), 1
        while not fits(low):
            low, reach = max(low - reach, 1), 2 * reach
        reach, high = 1, low + 1
        while high <= most and fits(high):
            low, high, reach = high, high + reach, 2 * reach
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if middle <= most and fits(middle) else (low, middle)
        return low

    def _cost(self, method: str, rows: int, length: int, target: int | None) -> StepCost:
        """A step of one batch; ptune's methods share the body of it."""
        body = body_of(method)
        if METHODS[method].is_ptune and method != body:
            return self._encoder(method).added_to(self._step(body, rows, length, target))
        return self._step(method, rows, length, target)

    @property
    def _batches(self) -> float:
        """Forward and backward passes of a step, over those simulated."""
        return self.accumulation / min(self.accumulation, 2)

    def _simulated(self, method: str, rows: int, length: int, target: int | None) -> StepCost:
        learned = 1 if self.task is TaskType.MASKED_LM else target
        shape = Shape(rows, length, self.supervised_share, learned)
        cost = step_cost(
            self.config,
            method,
            self.settings,
            shape,
            dtype=DTYPES[self.dtype],
            device=self.device,
            accumulation=self.accumulation,
            checkpointing=self.checkpointing,
            task=self.task,
        )
        if not cost.packed or self.task is not TaskType.CAUSAL_LM:
            return cost
        # It was simulated on the CPU, whose LM head takes fewer positions at once.
        vocabulary = int(self.config.get_text_config(decoder=True).vocab_size)
        here, there = (min(positions_at_once(vocabulary, one), shape.supervised) for one in ("cpu", self.device))
        return cost.with_logits(there / here)

    def _counted(self, method: str) -> _Counts:
        base = skeleton(self.config, DTYPES[self.dtype], task=self.task)
        model = adapted(method, base, self.settings, self.task)
        trainable, total = count_parameters(model)
        return _Counts(trainable, total, _bytes(model))

    def _check_length(self, method: str, length: int, target: int | None) -> None:
        chosen = METHODS[method]
        virtual = self.settings.num_virtual_tokens if chosen.encoder else 0
        # An encoder-decoder has keys and values before the text that it writes.
        writes = self.task is TaskType.SEQ_2_SEQ_LM and chosen.is_deep
        parts = [("rows", "max_length", length, 0 if writes else virtual)]
        if target is not None:
            parts.append(("texts to write", "target_length", target, virtual if writes else 0))
        for what, name, tokens, before in parts:
            if self.context_length is not None and before + tokens > self.context_length:
                raise ConfigError(
                    f"{before} virtual tokens and {what} of {tokens} tokens exceed the model's context of "
                    f"{self.context_length} tokens.",
                    hint=f"Use a {name} of at most {self.context_length - before}.",
                )


@dataclass(frozen=True)
class _Counts:
    trainable: int
    total: int
    weight_bytes: int


def _bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared ones once."""
    return sum(part.numel() * part.element_size() for part in {*model.parameters(), *model.buffers()})


def forecast_all(
    forecaster: Forecaster, methods: Sequence[str], batches: Sequence[int], lengths: Sequence[int]
) -> list[Forecast]:
    """Every method with every batch and length."""
    return [forecaster.forecast(method, rows, length) for method in methods for rows in batches for length in lengths]


def plan(
    model: str,
    *,
    methods: Sequence[str] = DEFAULT_METHODS,
    batch_sizes: Sequence[int] = (8,),
    max_lengths: Sequence[int] = (256,),
    settings: MethodSettings | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    trust_remote_code: bool = False,
    revision: str | None = None,
    task: TaskType = TaskType.CAUSAL_LM,
    num_labels: int | None = None,
    target_length: int = 128,
) -> list[Forecast]:
    """What each method will take, from a model's configuration alone.

    Args:
        model: Hub id, folder with a config.json, .gguf file, or `builtin:NAME`.
        methods: Names, as for `ptune plan --methods`.
        batch_sizes: Rows a forward pass.
        max_lengths: Tokens a row.
        settings: Sizes of what the methods add.
        dtype: Of the frozen weights.
        device: cpu or cuda.
        trust_remote_code: Run model code that comes from the hub.
        revision: Of the model on the hub.
        task: What the model is for.
        num_labels: Classes or tags; None for two classes.
        target_length: Tokens of a text to write, of a model from sequence to sequence.

    Returns:
        A forecast for every method, batch size and length, in this order.

    Raises:
        ModelError: No such model, none for the task, or it cannot be simulated.
        ConfigError: An unknown method, or rows and prompt that exceed the model's context.
    """
    config = load_config(model, trust_remote_code=trust_remote_code, revision=revision, task=task)
    names = [find_method(name).name for name in methods]
    of_task: dict[str, Any] = {"task": task, "num_labels": num_labels, "target_length": target_length}
    forecaster = Forecaster(config, settings, dtype=dtype, device=device, **of_task)
    return forecast_all(forecaster, names, batch_sizes, max_lengths)
