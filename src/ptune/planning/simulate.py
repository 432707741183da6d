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

An encoder-decoder's layers are of two kinds, whose numbers differ, and so it is simulated whole.

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

from ptune.config import TaskType
from ptune.errors import ModelError, PTuneError
from ptune.frozen.filler_ids import filler_of
from ptune.loading.skeleton import skeleton
from ptune.methods.apply import MethodSettings
from ptune.methods.names import METHODS
from ptune.model.task_model import PTunedTaskModel
from ptune.packed.attention import as_on_cuda
from ptune.planning.batch_without_data import Shape, batch_for, logits_width
from ptune.planning.fewer_layers import layer_pattern, with_layers
from ptune.planning.tracker import LiveBytes
from ptune.planning.without_data import adapted, all_of, cannot_be_simulated, put_without_data

ROWS_SIMULATED, ROWS_APART = 16, 4
"""Most rows of a packed batch that are simulated, and how many fewer the smaller of two batches has."""
BODY, DEEP_BODY = "prompt-tuning", "prefix"
"""The methods that add nothing to a prompt's own vectors, or keys and values: the step without an encoder."""


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
    task: TaskType = TaskType.CAUSAL_LM,
) -> StepCost:
    """The cost of a step of a whole model, from two small copies of it.

    Raises:
        ModelError: The architecture cannot be simulated, or not adapted by the method.
    """
    options: dict[str, Any] = {"dtype": dtype, "device": device}
    options |= {"accumulation": accumulation, "checkpointing": checkpointing, "task": task}
    in_pieces = METHODS[method].is_ptune and (settings.packing or task is not TaskType.CAUSAL_LM)
    if not in_pieces or shape.rows <= ROWS_SIMULATED:
        return _whole(config, method, settings, shape, **options)
    fewer, more = (
        _whole(config, method, settings, replace(shape, rows=rows), **options)
        for rows in (ROWS_SIMULATED - ROWS_APART, ROWS_SIMULATED)
    )
    return fewer.grown(more, (shape.rows - ROWS_SIMULATED + ROWS_APART) / ROWS_APART)


def _whole(config: PretrainedConfig, method: str, settings: MethodSettings, shape: Shape, **options: Any) -> StepCost:
    """All layers, from copies with fewer."""
    if config.is_encoder_decoder:
        return simulate(config, method, settings, shape, **options).cost()
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


def encoder_cost(
    config: PretrainedConfig, method: str, settings: MethodSettings, *, task: TaskType = TaskType.CAUSAL_LM
) -> EncoderCost:
    """The cost of one of ptune's encoders, forward and backward, alone."""
    model: Any = adapted(method, skeleton(config, task=task), settings, task)
    (encoder,) = model.prompts.values()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    put_without_data([encoder], mode)
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
    task: TaskType = TaskType.CAUSAL_LM,
) -> Simulated:
    """Run a step of a model of this configuration, every layer of it, without data, as it runs on `cpu` or `cuda`.

    Raises:
        ModelError: An operation of the architecture needs data.
    """
    step = _Step(config, method, settings, shape, dtype, device, accumulation, checkpointing, task)
    if not METHODS[method].is_ptune:
        return step.run()
    # A model for a task packs by itself, and nobody turns that off.
    packs = settings.packing or task is not TaskType.CAUSAL_LM
    # What the self-check finds out with a real model: rows that cannot be packed, virtual tokens that need a token id.
    fault: ModelError | None = None
    for ways in ({"packs": packs}, {"packs": False}, {"packs": False, "filler": True}):
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
    task: TaskType

    def run(self, *, packs: bool = False, filler: bool = False) -> Simulated:
        """Run it, with packed rows or padded ones, and with the prompt as embeddings alone or with a filler's id.

        Raises:
            ModelError: The model refuses, or an operation of it needs data.
        """
        base = skeleton(self.config, self.dtype, task=self.task)
        method, shape = METHODS[self.method], self.shape
        model: Any = adapted(self.method, base, self.settings, self.task)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        put_without_data(all_of(model), mode)
        if self.checkpointing:
            model.gradient_checkpointing_enable()
        ways = model.decoder_layers if isinstance(model, PTunedTaskModel) else model if method.is_ptune else None
        packs = packs and ways is not None and ways.packs
        if ways is not None:
            ways.pack_batches = packs  # or it packs padded batches by itself
            if filler:
                ways.capability = replace(ways.capability, prefix=False, filler_id=filler_of(base))
        tracker = LiveBytes(vocab_size=logits_width(self.config, self.task), supervised=shape.supervised)
        mixed = method.name == "full" and self.dtype != torch.float32
        attention = as_on_cuda() if self.device == "cuda" else contextlib.nullcontext()
        begin = 0
        try:
            with mode, tracker, attention, torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
                for _ in range(min(self.accumulation, 2)):
                    # As in Trainer: the output, and the logits in it, are gone when the backward begins.
                    loss = model(**batch_for(self.task, shape, packed=packs, prompt=method.is_ptune)).loss
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
