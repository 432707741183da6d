"""A training step without data: the real code of model, prompt and loss on tensors that have shapes and no values.

What such a step holds at its fullest is what a real one holds, for any architecture that transformers knows, because it
is the same code that decides what to keep. Two small copies of the model, of a few layers each, are enough where its
layers repeat: what a step holds grows by the same amount with each further layer, at each of the two moments when it
can be fullest,

- early: at the loss, or in the first layer's backward, when everything the forward kept is there;
- late: in the last layer's backward, when all gradients of what trains are there.

The bigger of the two is the peak. The moments are told apart by counting operations; where layers differ in kind (some
with a sliding window, the first without experts) the copies grow by a whole period of the pattern. Where layers share
keys and values, or no small copy can be made, all layers are simulated.

Padded methods see `B` rows of `T` tokens; packed ones one sequence of `B × T` tokens. A packed step is made of as many
pieces as there are rows, so beyond `ROWS_SIMULATED` rows it is extrapolated too.

ptune's methods differ in the encoder alone, those that give vectors from those that give keys and values apart, and an
encoder has its forward before the model's and its backward after it: what it keeps in between is added to both moments,
and its own backward may be a third one.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig

from ptune.errors import ModelError, PTuneError
from ptune.frozen.filler_ids import filler_of
from ptune.methods.apply import MethodSettings, apply_method
from ptune.methods.names import METHODS
from ptune.packed.attention import as_on_cuda
from ptune.planning.fewer_layers import layer_pattern, with_layers
from ptune.planning.tracker import LiveBytes
from ptune.planning.without_data import cannot_be_simulated, put_without_data, skeleton_for

ROWS_SIMULATED, ROWS_APART = 16, 4
"""Most rows of a packed batch that are simulated, and how many fewer the smaller of two batches has."""
BODY, DEEP_BODY = "prompt-tuning", "prefix"
"""The methods that add nothing to a prompt's own vectors, or keys and values: the step without an encoder."""


@dataclass(frozen=True)
class Shape:
    """A batch: `rows` of `length` tokens each, of which a share has labels."""

    rows: int
    length: int
    supervised_share: float = 0.6

    @property
    def supervised(self) -> int:
        """Positions that have labels."""
        return max(int(self.rows * self.length * self.supervised_share), 1)


@dataclass(frozen=True)
class Moment:
    """What lives at a moment beside weights and optimizer state, in bytes."""

    total: float
    logits: float
    gradients: float

    def grown(self, other: Moment, layers: float) -> Moment:
        """Extrapolated: this, and `layers` times the step to `other`."""
        return Moment(
            self.total + layers * (other.total - self.total),
            max(self.logits + layers * (other.logits - self.logits), 0.0),
            max(self.gradients + layers * (other.gradients - self.gradients), 0.0),
        )


@dataclass(frozen=True)
class StepCost:
    """A step's two fullest moments and its work."""

    early: Moment
    late: Moment
    flops: float
    moved: float
    """Bytes that operations other than products read and write."""
    operations: float
    packed: bool
    """Whether rows stand one after another, without padding."""

    def with_logits(self, factor: float) -> StepCost:
        """With so many times the logits."""
        early, late = (
            replace(one, total=one.total + (factor - 1) * one.logits, logits=factor * one.logits)
            for one in (self.early, self.late)
        )
        return replace(self, early=early, late=late)

    def grown(self, other: StepCost, layers: float) -> StepCost:
        """Extrapolated by layers."""

        def along(one: float, two: float) -> float:
            return one + layers * (two - one)

        return StepCost(
            self.early.grown(other.early, layers),
            self.late.grown(other.late, layers),
            along(self.flops, other.flops),
            along(self.moved, other.moved),
            along(self.operations, other.operations),
            self.packed,
        )


def body_of(method: str) -> str:
    """The method whose step is that of one of ptune's without its encoder."""
    return DEEP_BODY if METHODS[method].is_deep else BODY


def step_cost(
    config: PretrainedConfig,
    method: str,
    settings: MethodSettings,
    shape: Shape,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    accumulation: int = 1,
    checkpointing: bool = False,
) -> StepCost:
    """The cost of a step of a whole model, from two small copies of it.

    Raises:
        ModelError: The architecture cannot be simulated, or not adapted by the method.
    """
    options: dict[str, Any] = {"dtype": dtype, "device": device}
    options |= {"accumulation": accumulation, "checkpointing": checkpointing}
    if not (METHODS[method].is_ptune and settings.packing) or shape.rows <= ROWS_SIMULATED:
        return _whole(config, method, settings, shape, **options)
    fewer, more = (
        _whole(config, method, settings, replace(shape, rows=rows), **options)
        for rows in (ROWS_SIMULATED - ROWS_APART, ROWS_SIMULATED)
    )
    return fewer.grown(more, (shape.rows - ROWS_SIMULATED + ROWS_APART) / ROWS_APART)


def _whole(config: PretrainedConfig, method: str, settings: MethodSettings, shape: Shape, **options: Any) -> StepCost:
    """All layers, from copies with fewer."""
    layers = config.get_text_config(decoder=True).num_hidden_layers
    fewest, period = layer_pattern(config)
    if layers > fewest + period:
        with contextlib.suppress(ModelError, NotImplementedError):  # such as a pattern that needs all layers
            small = simulate(with_layers(config, fewest), method, settings, shape, **options)
            larger = simulate(with_layers(config, fewest + period), method, settings, shape, **options)
            tail = 2 * (larger.backward_operations - small.backward_operations)
            return small.cost(tail).grown(larger.cost(tail), (layers - fewest) / period)
    return simulate(config, method, settings, shape, **options).cost()


@dataclass(frozen=True)
class EncoderCost:
    """What a prompt encoder adds to a step, in bytes and operations."""

    kept: float
    """Alive between its forward and its backward: what the backward needs, and the virtual tokens."""
    backward: Moment
    """Its own backward at its fullest."""
    flops: float
    moved: float
    operations: float

    def added_to(self, body: StepCost) -> StepCost:
        """A step with this encoder, from one without any."""
        early, late = (replace(one, total=one.total + self.kept) for one in (body.early, body.late))
        return replace(
            body,
            early=early,
            late=max(late, self.backward, key=lambda moment: moment.total),
            flops=body.flops + self.flops,
            moved=body.moved + self.moved,
            operations=body.operations + self.operations,
        )


def encoder_cost(config: PretrainedConfig, method: str, settings: MethodSettings) -> EncoderCost:
    """The cost of one of ptune's encoders, forward and backward, alone."""
    with torch.device("meta"):
        model: Any = apply_method(method, skeleton_for(method, config), settings)
    (encoder,) = model.prompts.values()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    put_without_data(encoder, mode)
    tracker = LiveBytes(vocab_size=0, supervised=0)
    with mode, tracker:
        vectors = encoder()
        begin = len(tracker.live)
        vectors.backward(torch.empty_like(vectors))
    live = tracker.live
    fullest = float(max(live[begin:]))
    return EncoderCost(
        kept=float(live[begin - 1]),
        backward=Moment(fullest, 0.0, min(float(_gradient_bytes(encoder)), fullest)),
        flops=sum(tracker.flops),
        moved=float(sum(tracker.moved)),
        operations=float(len(live)),
    )


@dataclass(frozen=True)
class Simulated:
    """A simulated step of one model."""

    tracker: LiveBytes
    gradient_bytes: int
    accumulated: bool
    """Whether gradients of an earlier batch lie there all the time."""
    backward_from: int
    """Operation at which the last backward begins."""
    packed: bool
    """Whether rows stand one after another, without padding."""

    @property
    def backward_operations(self) -> int:
        """Operations of the last backward."""
        return len(self.tracker.live) - self.backward_from

    def cost(self, tail: int | None = None) -> StepCost:
        """Its cost; `tail` operations at the end are the late moment's (half of the backward when None)."""
        live = self.tracker.live
        split = len(live) - min(tail or self.backward_operations // 2, self.backward_operations - 1)
        early = max(range(split), key=live.__getitem__)
        late = max(range(split, len(live)), key=live.__getitem__)
        return StepCost(
            self._moment(early, gradients=float(self.gradient_bytes) if self.accumulated else 0.0),
            self._moment(late, gradients=float(self.gradient_bytes)),
            sum(self.tracker.flops),
            float(sum(self.tracker.moved)),
            float(len(live)),
            self.packed,
        )

    def _moment(self, at: int, *, gradients: float) -> Moment:
        logits = sum(size for size, is_logits in self.tracker.alive_at(at) if is_logits)
        total = self.tracker.live[at]
        return Moment(float(total), float(logits), min(gradients, float(total)))


def simulate(
    config: PretrainedConfig,
    method: str,
    settings: MethodSettings,
    shape: Shape,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    accumulation: int = 1,
    checkpointing: bool = False,
) -> Simulated:
    """Run a step of a model of this configuration, every layer of it, without data, as it runs on `cpu` or `cuda`.

    Raises:
        ModelError: An operation of the architecture needs data.
    """
    step = _Step(config, method, settings, shape, dtype, device, accumulation, checkpointing)
    if not METHODS[method].is_ptune:
        return step.run()
    # What the self-check finds out with a real model: rows that cannot be packed, virtual tokens that need a token id.
    fault: ModelError | None = None
    for ways in ({"packs": settings.packing}, {"packs": False}, {"packs": False, "filler": True}):
        try:
            return step.run(**ways)
        except ModelError as error:
            fault = fault or error
    assert fault is not None
    raise fault


@dataclass(frozen=True)
class _Step:
    """A step to run without data; the fields are the arguments of `simulate`."""

    config: PretrainedConfig
    method: str
    settings: MethodSettings
    shape: Shape
    dtype: torch.dtype
    device: str
    accumulation: int
    checkpointing: bool

    def run(self, *, packs: bool = False, filler: bool = False) -> Simulated:
        """Run it, with packed rows or padded ones, and with the prompt as embeddings alone or with a filler's id.

        Raises:
            ModelError: The model refuses, or an operation of it needs data.
        """
        base = skeleton_for(self.method, self.config, self.dtype)
        method, shape = METHODS[self.method], self.shape
        with torch.device("meta"):
            model: Any = apply_method(self.method, base, self.settings)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        put_without_data(model, mode)
        if self.checkpointing:
            model.gradient_checkpointing_enable()
        if filler:
            model.capability = replace(model.capability, prefix=False, filler_id=filler_of(base))
        packs = packs and model.packs
        if method.is_ptune:
            model.pack_batches = packs  # or it packs padded batches by itself
        vocabulary = int(self.config.get_text_config(decoder=True).vocab_size)
        tracker = LiveBytes(vocab_size=vocabulary, supervised=shape.supervised)
        mixed = method.name == "full" and self.dtype != torch.float32
        attention = as_on_cuda() if self.device == "cuda" else contextlib.nullcontext()
        begin = 0
        try:
            with mode, tracker, attention, torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
                for _ in range(min(self.accumulation, 2)):
                    # As in Trainer: the output, and the logits in it, are gone when the backward begins.
                    loss = model(**_batch(shape, packed=packs, prompt=method.is_ptune)).loss
                    begin = len(tracker.live)
                    loss.backward()
                    del loss
        except PTuneError:
            raise
        except Exception as error:  # whatever the model's own code raises
            raise cannot_be_simulated(base, error) from error
        return Simulated(tracker, _gradient_bytes(model), self.accumulation > 1, begin, packs)


def _gradient_bytes(model: nn.Module) -> int:
    grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return sum(grad.numel() * grad.element_size() for grad in grads)


def _batch(shape: Shape, *, packed: bool, prompt: bool) -> dict[str, Any]:
    """A batch without values."""
    size = (1, shape.rows * shape.length) if packed else (shape.rows, shape.length)
    batch: dict[str, Any] = {
        "input_ids": torch.zeros(size, dtype=torch.long),
        "labels": torch.zeros(size, dtype=torch.long),
    }
    if packed:
        batch["row_lengths"] = [shape.length] * shape.rows
    else:
        batch["attention_mask"] = torch.ones(size, dtype=torch.long)
    if prompt:
        batch["return_logits"] = False
    return batch
