"""One run of the prompt an optimizer step: the gradient of separate runs, whatever way the micro-batches take."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from architectures import build
from prompting import checkpoint_activations, draw, encoder_prompt, padded, relative_error, supervised, texts
from ptune.data.collate import PackingCollator
from ptune.encoders import PromptEncoder, build_encoder
from ptune.model.wrapper import PTunedModel
from ptune.prefix.across_micro_batches import SharedPrefix

KINDS = ("MLP", "LSTM", "RESIDUAL", "EMBEDDING")
LENGTHS = ((5, 9, 3), (7, 4), (6, 2, 8))
"""Rows of each micro-batch."""


def micro_batches(side: str | None = None, first: int = 0) -> list[dict[str, Any]]:
    """Packed, or padded on a side; the first `first` tokens of a row are not supervised."""
    made = []
    for number, lengths in enumerate(LENGTHS):
        rows = texts(lengths, seed=number)
        if side is not None:
            ids, mask = padded(rows, side)
            batch = {"input_ids": ids, "attention_mask": mask, "labels": supervised(ids, mask)}
        else:
            batch = PackingCollator()([{"input_ids": row, "labels": row.clone()} for row in rows])
            for start in [sum(lengths[:index]) for index in range(len(lengths))]:
                batch["labels"][0, start : start + first] = -100
        made.append(batch)
    return made


def gradients(model: PTunedModel, batches: Sequence[dict[str, Any]], *, shared: bool) -> list[torch.Tensor]:
    """The gradient of every parameter of the prompt encoders that train, after some micro-batches."""
    model.train().zero_grad()
    for number, batch in enumerate(batches):
        if shared:
            with model.prefix_scope(last=number == len(batches) - 1):
                model(**batch, num_items_in_batch=40, return_logits=False).loss.backward()
        else:
            model(**batch, num_items_in_batch=40, return_logits=False).loss.backward()
    found = []
    for one in model.prompts.parameters():
        if one.requires_grad:
            assert one.grad is not None
            found.append(one.grad.clone())
    return found


def assert_same(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], tolerance: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert float(other.norm()) > 0
        assert relative_error(one, other) <= tolerance


def moved(model: PTunedModel) -> PTunedModel:
    """The encoder's parameters away from their start, where a residual encoder's first layers have no gradient."""
    with torch.no_grad():
        for parameter in model.prompts["default"].parameters():
            parameter.add_(torch.linspace(-0.1, 0.1, parameter.numel(), dtype=parameter.dtype).view_as(parameter))
    return model


class Runs:
    """How often an encoder was run."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        self.count = 0
        encoder.register_forward_hook(self.note)

    def note(self, *_: object) -> None:
        self.count += 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["packed", "prefix", "concatenated"])
def test_gradient_is_that_of_separate_runs(kind: str, way: str) -> None:
    model = moved(encoder_prompt(build("gpt2").double(), kind))
    model.pack_batches = False
    if way == "concatenated":
        checkpoint_activations(model.base)
    batches = micro_batches(None if way == "packed" else "right")
    wanted = gradients(model, batches, shared=False)
    runs = Runs(model.prompts["default"])
    assert_same(gradients(model, batches, shared=True), wanted, 1e-12)
    assert runs.count == 1
    # Nothing is left from one step to the next.
    assert_same(gradients(model, batches, shared=True), wanted, 1e-12)
    assert runs.count == 2


@pytest.mark.parametrize("inside", [2, 6])
@pytest.mark.parametrize("way", ["packed", "prefix", "concatenated"])
def test_with_virtual_tokens_inside_the_text(way: str, inside: int) -> None:
    """They are reached by every micro-batch beside the keys and values; with six inside, nothing stands before."""
    model = moved(encoder_prompt(build("gpt2").double(), "LSTM", tokens_in_text=inside))
    model.pack_batches = way == "packed"
    if way == "concatenated":
        checkpoint_activations(model.base)
    batches = micro_batches("right", first=1)
    for batch in batches:
        ids = -1 - torch.arange(6 - inside, 6).expand(len(batch["input_ids"]), -1)
        batch["input_ids"] = torch.cat([ids, batch["input_ids"]], dim=1)
        batch["attention_mask"] = torch.cat([torch.ones_like(ids), batch["attention_mask"]], dim=1)
        batch["labels"] = torch.cat([torch.full_like(ids, -100), batch["labels"]], dim=1)
    wanted = gradients(model, batches, shared=False)
    runs = Runs(model.prompts["default"])
    assert_same(gradients(model, batches, shared=True), wanted, 1e-12)
    assert runs.count == 1


@pytest.mark.parametrize("supervises_first", [(True, False, False), (False, True, False), (False, False, True)])
def test_what_the_last_micro_batch_does_not_reach(supervises_first: tuple[bool, ...]) -> None:
    """The prefix's logits are reached where a row's first token is supervised."""
    model = encoder_prompt(build("gpt2").double())
    kinds = (micro_batches(first=0), micro_batches(first=1))
    batches = [kinds[0 if first else 1][number] for number, first in enumerate(supervises_first)]
    assert_same(gradients(model, batches, shared=True), gradients(model, batches, shared=False), 1e-12)


@pytest.mark.parametrize("sides", ["right left right", "left right left", "right right left", "left left right"])
def test_ways_may_change_within_a_step(sides: str) -> None:
    """A sliding window sends rows padded on the left by concatenation, the others by keys and values."""
    model = encoder_prompt(build("mistral"))
    model.pack_batches = False
    batches = [micro_batches(side)[number] for number, side in enumerate(sides.split())]
    wanted = gradients(model, batches, shared=False)
    runs = Runs(model.prompts["default"])
    assert_same(gradients(model, batches, shared=True), wanted, 1e-5)
    assert runs.count == 1


def test_activation_checkpointing_keeps_the_prompt_before_packed_rows() -> None:
    model = encoder_prompt(build("llama"))
    wanted = gradients(model, micro_batches(), shared=False)
    checkpoint_activations(model.base)
    assert_same(gradients(model, micro_batches(), shared=True), wanted, 1e-5)


def test_single_micro_batch_is_a_plain_one() -> None:
    model = encoder_prompt(build("gpt2").double())
    batches = micro_batches()[:1]
    assert_same(gradients(model, batches, shared=True), gradients(model, batches, shared=False), 1e-12)


def test_others_do_not_see_what_is_shared() -> None:
    """Answers, evaluations and other threads get the prompt as it is, and the step goes on as if they had not been."""
    model, batches = encoder_prompt(build("gpt2").double(), encoder_dropout=0.0), micro_batches()
    wanted = gradients(model, batches, shared=False)
    fresh = model.eval().generate(draw(1, 4), max_new_tokens=3, do_sample=False)
    loss = model(**batches[0]).loss.item()
    model.train().zero_grad()
    answers: list[torch.Tensor] = []

    def answer() -> None:
        answers.append(model.generate(draw(1, 4), max_new_tokens=3, do_sample=False))

    for number, batch in enumerate(batches):
        with model.prefix_scope(last=number == 2):
            total = model(**batch, num_items_in_batch=40, return_logits=False).loss
            thread = threading.Thread(target=answer)
            thread.start()
            thread.join()
            with torch.no_grad():
                model(**batch)
            total.backward()
        model.eval()
        answer()
        assert model(**batches[0]).loss.item() == pytest.approx(loss, rel=1e-12)
        model.train()
    assert all(torch.equal(one, fresh) for one in answers)
    assert len(answers) == 6
    found = [parameter.grad for parameter in model.prompts["default"].parameters()]
    assert_same(found, wanted, 1e-12)


def test_error_drops_what_was_shared() -> None:
    model, batches = encoder_prompt(build("gpt2").double()), micro_batches()
    wanted = gradients(model, batches, shared=False)
    with model.prefix_scope(last=False):
        model(**batches[0], num_items_in_batch=40).loss.backward()
    with pytest.raises(KeyboardInterrupt), model.prefix_scope(last=False):
        raise KeyboardInterrupt
    assert_same(gradients(model, batches, shared=True), wanted, 1e-12)


def test_changed_parameters_drop_what_was_shared() -> None:
    model, batches = encoder_prompt(build("gpt2").double(), "EMBEDDING"), micro_batches()
    with model.prefix_scope(last=False):
        model(**batches[0], num_items_in_batch=40).loss.backward()
    with torch.no_grad():
        model.prompts["default"].embedding.weight.mul_(0.5)
    found = gradients(model, batches, shared=True)
    assert_same(found, gradients(model, batches, shared=False), 1e-12)


@pytest.mark.parametrize("way", ["packed", "prefix", "concatenated"])
def test_a_prompt_of_earlier_micro_batches_alone_gets_its_gradient(way: str) -> None:
    model = moved(encoder_prompt(build("gpt2").double(), "LSTM"))
    model.add_prompt("other", model.prompt_configs["default"])
    model.to(torch.float64).train_prompts(["default", "other"])
    model.pack_batches = False
    if way == "concatenated":
        checkpoint_activations(model.base)
    batches = micro_batches(None if way == "packed" else "right")
    names = (("default", "other", None), ("default", "other"), ("other", None, "other"))
    batches = [{**batch, "prompt_names": each} for batch, each in zip(batches, names, strict=True)]
    wanted = gradients(model, batches, shared=False)
    assert len(wanted) == sum(1 for _ in model.prompts.parameters())
    for _ in range(2):
        assert_same(gradients(model, batches, shared=True), wanted, 1e-12)


def test_other_active_prompt_gets_its_own_gradient() -> None:
    model, batches = encoder_prompt(build("gpt2").double()), micro_batches()
    model.add_prompt("other", model.prompt_configs["default"])
    model.to(torch.float64)
    with model.prefix_scope(last=False):
        model(**batches[0], num_items_in_batch=40).loss.backward()
    model.set_prompt("other")
    assert_same(gradients(model, batches, shared=True), gradients(model, batches, shared=False), 1e-12)
    assert all(parameter.grad is None for parameter in model.prompts["default"].parameters())


def test_a_prompt_that_was_changed_before_the_last_micro_batch_gets_none() -> None:
    model, batches = encoder_prompt(build("gpt2").double()), micro_batches()
    model.add_prompt("other", model.prompt_configs["default"])
    model.to(torch.float64).train().train_prompts(["default", "other"])
    with model.prefix_scope(last=False):
        model(**batches[0], prompt_names="default", num_items_in_batch=40).loss.backward()
    with torch.no_grad():
        model.prompts["default"].embedding.weight.mul_(0.5)
    with model.prefix_scope(last=True):
        model(**batches[1], prompt_names="other", num_items_in_batch=40).loss.backward()
    assert all(parameter.grad is None for parameter in model.prompts["default"].parameters())
    assert all(parameter.grad is not None for parameter in model.prompts["other"].parameters())


def test_rows_of_other_prompts_in_the_same_batches() -> None:
    """Prompts that do not train, and rows without any, go on as before beside the one that is shared."""
    model, batches = encoder_prompt(build("gpt2").double()), micro_batches()
    model.add_prompt("other", replace(model.prompt_configs["default"], inference_mode=True))
    model.to(torch.float64)
    names = (("default", "other", None), ("other", "default"), (None, "default", "default"))
    batches = [{**batch, "prompt_names": each} for batch, each in zip(batches, names, strict=True)]
    assert_same(gradients(model, batches, shared=True), gradients(model, batches, shared=False), 1e-12)


def test_one_dropout_mask_a_step() -> None:
    model = encoder_prompt(build("gpt2"), encoder_dropout=0.5).train()
    torch.manual_seed(0)
    seen = []
    for last in (False, True, False, True):
        with model.prefix_scope(last=last):
            seen.append(model(**micro_batches()[0]).loss.item())
    assert seen[0] == pytest.approx(seen[1], rel=1e-6)
    assert seen[0] != pytest.approx(seen[2], rel=1e-3)


def test_only_training_inside_a_scope_and_in_its_thread_shares() -> None:
    shared, encoder = SharedPrefix(), build_encoder("mlp", num_virtual_tokens=2, token_dim=4, hidden_size=4)
    runs = Runs(encoder)

    def get() -> torch.Tensor:
        return shared.vectors("one", encoder, torch.float32)

    others: list[torch.Tensor] = [get()]
    with shared.scope(last=False):
        leaf = get()
        assert get() is leaf
        assert runs.count == 2
        thread = threading.Thread(target=lambda: others.append(get()))
        thread.start()
        thread.join()
        with torch.no_grad():
            others.append(get())
        encoder.eval()
        others.append(get())
        encoder.train()
        assert get() is leaf
    others.append(get())
    assert runs.count == 2 + 4
    assert all(not other.is_leaf or not other.requires_grad for other in others)


class Scaled:
    """A shared embedding of one vector in bfloat16, whose gradient is the sum of what it is multiplied by."""

    def __init__(self) -> None:
        self.shared = SharedPrefix()
        self.encoder: PromptEncoder = build_encoder("embedding", num_virtual_tokens=1, token_dim=1)

    def step(self, factors: Sequence[float]) -> float:
        for number, factor in enumerate(factors):
            with self.shared.scope(last=number == len(factors) - 1):
                (self.shared.vectors("one", self.encoder, torch.bfloat16) * factor).sum().backward()
        grad = self.encoder.embedding.weight.grad
        assert grad is not None
        return float(grad)


def test_gradients_are_summed_in_float32() -> None:
    # In bfloat16 each 256 + 1 is 256 again.
    assert Scaled().step([256.0, *[1.0] * 8]) == 264.0
