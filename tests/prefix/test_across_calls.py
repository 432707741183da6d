"""A kept prefix: used again when nothing changed, never when anything did."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from architectures import build
from prompting import add_tokens_as_prompt, draw, encoder_prompt, tokens_as_prompt
from ptune.batch import row_prompts as rows
from ptune.config import PromptEncoderConfig
from ptune.model import running
from ptune.model.wrapper import PTunedModel
from ptune.prefix.across_calls import LIMIT_BYTES, PrefixCache, encoder_stamp

TEXT = draw(1, 5, seed=3)
KINDS = ("MLP", "LSTM", "RESIDUAL", "EMBEDDING")


class Counter:
    """Counts how often a prompt runs through the model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs = 0
        original = rows.encode_prefix

        def encode(*args: Any, **options: Any) -> Any:
            self.runs += 1
            return original(*args, **options)

        monkeypatch.setattr(rows, "encode_prefix", encode)
        monkeypatch.setattr(running, "has_weights", lambda _base: False)  # no self-check, which runs prompts too

    def during(self, call: Callable[[], Any]) -> int:
        before = self.runs
        call()
        return self.runs - before


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


def answer(model: PTunedModel, **options: Any) -> torch.Tensor:
    """The scores of two new tokens: they show any change of the prefix."""
    found = model.generate(
        TEXT,
        **{
            "max_new_tokens": 2,
            "do_sample": False,
            "eos_token_id": None,
            "output_logits": True,
            "return_dict_in_generate": True,
            **options,
        },
    )
    return torch.stack(found.logits)


def fresh(model: PTunedModel, **options: Any) -> torch.Tensor:
    """The answer of a copy, which has kept nothing."""
    return answer(copy.deepcopy(model), **options)


def assert_new_answer(model: PTunedModel, counter: Counter, before: torch.Tensor) -> None:
    """The prefix is computed once more, for an answer that differs and is that of a model which never kept any."""
    runs = counter.runs
    found = answer(model)
    assert counter.runs - runs == 1
    assert not torch.equal(found, before)
    assert torch.equal(found, fresh(model))


def encoder_of(model: PTunedModel) -> nn.Module:
    return model.prompts[model.active_prompt]


# ---- used again ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_runs_once_for_all_calls(kind: str, counter: Counter) -> None:
    model = encoder_prompt(build("llama"), kind)
    first = answer(model)
    assert counter.runs == 1
    assert counter.during(lambda: [answer(model), model.generate(TEXT.repeat(3, 1), num_beams=2)]) == 0
    assert torch.equal(answer(model), first)
    assert model.prefixes.names == ["default"]


def test_evaluation_uses_it_and_training_does_not(counter: Counter) -> None:
    model = encoder_prompt(build("llama"))
    with torch.no_grad():
        logits = model(TEXT).logits
    assert counter.runs == 1
    with torch.no_grad():
        assert torch.equal(model(TEXT).logits, logits)
    assert counter.runs == 1
    model.pack_batches = False  # a packed batch runs the prompt inside itself
    model(TEXT, labels=TEXT).loss.backward()
    assert counter.runs == 2
    assert all(parameter.grad is not None for parameter in encoder_of(model).parameters())
    assert not any(part.requires_grad for part in _kept(model))


def _kept(model: PTunedModel) -> list[torch.Tensor]:
    with torch.no_grad():
        prefix = model.prefixes.prefix("default", model.base, encoder_of(model), lambda: pytest.fail("it is not kept"))
    return [prefix.logits, *(part for layer in prefix.layers for part in layer)]


def test_what_was_kept_in_inference_mode_serves_training_code_later() -> None:
    model = encoder_prompt(build("llama"))
    with torch.inference_mode():
        wanted = answer(model)
    assert not any(part.is_inference() for part in _kept(model))
    assert torch.equal(answer(model), wanted)


def test_weights_loaded_in_inference_mode(counter: Counter) -> None:
    with torch.inference_mode():
        model = encoder_prompt(build("llama"))
        first = answer(model)
        encoder_of(model).embedding.weight.mul_(1.5)
        assert_new_answer(model, counter, first)


def test_nothing_is_written_into_it() -> None:
    model = encoder_prompt(build("llama"))
    answer(model)
    before = [part.clone() for part in _kept(model)]
    model.generate(TEXT, max_new_tokens=20, do_sample=False)
    model.generate(TEXT.repeat(2, 1), num_beams=3, max_new_tokens=8)
    assert all(torch.equal(*pair) for pair in zip(_kept(model), before, strict=True))


# ---- what makes it stale -------------------------------------------------------------------------------------------


def _load(model: PTunedModel, *, assign: bool) -> None:
    state = {name: value * 1.5 for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=assign)


def _step(model: PTunedModel, optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
    optimizer = optimizer(encoder_of(model).parameters())
    model(TEXT, labels=TEXT).loss.backward()
    optimizer.step()


def _swap_rows(model: PTunedModel) -> None:
    weight = encoder_of(model).embedding.weight
    weight.data[[0, 1]] = weight.data[[1, 0]]


@torch.no_grad()
def _in_place(model: PTunedModel) -> None:
    encoder_of(model).embedding.weight[2, 3] += 1


def _by_data(model: PTunedModel) -> None:
    encoder_of(model).embedding.weight.data[2, 3] += 1


def _new_parameter(model: PTunedModel) -> None:
    encoder = encoder_of(model)
    encoder.embedding.weight = nn.Parameter(encoder.embedding.weight.detach() * 2)


def _adam(**options: Any) -> Callable[[PTunedModel], None]:
    return lambda model: _step(model, lambda parameters: torch.optim.AdamW(parameters, lr=0.1, **options))


ENCODER_CHANGES: dict[str, Callable[[PTunedModel], Any]] = {
    "in place": _in_place,
    "through data": _by_data,
    "rows swapped through data": _swap_rows,
    "another parameter": _new_parameter,
    "load_state_dict": lambda model: _load(model, assign=False),
    "load_state_dict, assigned": lambda model: _load(model, assign=True),
    "AdamW, loops": _adam(foreach=False),
    "AdamW, foreach": _adam(foreach=True),
    "AdamW, fused": _adam(fused=True),
    "SGD, fused": lambda model: _step(model, lambda parameters: torch.optim.SGD(parameters, lr=1.0, fused=True)),
}


@pytest.mark.parametrize("change", ENCODER_CHANGES)
def test_a_change_of_the_encoder(change: str, counter: Counter) -> None:
    model = encoder_prompt(build("llama"))
    before = answer(model)
    ENCODER_CHANGES[change](model)
    assert_new_answer(model, counter, before)


def test_fused_optimizers_count_no_write() -> None:
    """Why versions alone do not do; should this fail one day, the sum over the bits may go."""
    model = encoder_prompt(build("llama"))
    versions = [parameter._version for parameter in encoder_of(model).parameters()]
    _adam(fused=True)(model)
    assert versions == [parameter._version for parameter in encoder_of(model).parameters()]


@torch.no_grad()
def _base_in_place(model: PTunedModel) -> None:
    model.base.model.layers[1].self_attn.k_proj.weight[0, 0] += 5


def _merge(model: PTunedModel) -> None:
    # As adapters are merged: every number of some weights changes, through `.data`.
    weight = model.base.model.layers[0].self_attn.v_proj.weight
    weight.data += torch.randn(len(weight), 1) @ torch.randn(1, weight.shape[1])


def _move_base(model: PTunedModel) -> None:
    other = build("llama", seed=5)
    model.base.load_state_dict(other.state_dict())


def _steer(model: PTunedModel) -> None:
    model.base.model.layers[0].register_forward_hook(lambda _module, _args, output: output * 1.5)


def _exchange_layer(model: PTunedModel) -> None:
    layer = model.base.model.layers[0].mlp
    layer.up_proj = nn.Linear(layer.up_proj.in_features, layer.up_proj.out_features, bias=False).requires_grad_(False)


BASE_CHANGES: dict[str, Callable[[PTunedModel], Any]] = {
    "in place": _base_in_place,
    "an adapter merged": _merge,
    "load_state_dict": _move_base,
    "a steering hook": _steer,
    "a layer exchanged": _exchange_layer,
    "base.to another dtype": lambda model: model.base.to(torch.bfloat16),
    "base.to and back, rounded": lambda model: model.base.to(torch.bfloat16).to(torch.float32),
    "model.to another dtype": lambda model: model.to(torch.float64),
}


@pytest.mark.parametrize("change", BASE_CHANGES)
def test_a_change_of_the_frozen_model(change: str, counter: Counter) -> None:
    model = encoder_prompt(build("llama"))
    before = answer(model)
    BASE_CHANGES[change](model)
    assert_new_answer(model, counter, before)


def test_a_buffer_of_the_frozen_model(counter: Counter) -> None:
    model = encoder_prompt(build("llama"))
    before = answer(model)
    model.base.model.rotary_emb.inv_freq.mul_(0.5)
    assert_new_answer(model, counter, before)


def test_a_hook_that_is_gone_again(counter: Counter) -> None:
    model = encoder_prompt(build("llama"))
    before = answer(model)
    handle = model.base.model.layers[0].register_forward_hook(lambda _module, _args, output: output * 1.5)
    steered = answer(model)
    handle.remove()
    assert torch.equal(answer(model), before)
    assert not torch.equal(steered, before)
    assert counter.runs == 3


def test_autocast(counter: Counter) -> None:
    model = encoder_prompt(build("llama"))
    before = answer(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = answer(model)
        assert torch.equal(inside, fresh(model))
    assert torch.equal(answer(model), before)
    assert not torch.equal(inside, before)


def test_clear_prefixes(counter: Counter) -> None:
    model = encoder_prompt(build("llama"))
    answer(model)
    # One number that is not looked at, written without being counted: the one case that has to be told.
    model.base.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    assert counter.during(lambda: answer(model)) == 0
    model.clear_prefixes()
    assert model.prefixes.names == []
    assert counter.during(lambda: answer(model)) == 1


# ---- prompts that come and go --------------------------------------------------------------------------------------


def test_each_prompt_has_its_own(counter: Counter) -> None:
    model = encoder_prompt(build("llama"))
    first = answer(model)
    add_tokens_as_prompt(model, "other", draw(1, 9, seed=11)[0])
    model.set_prompt("other")
    second = answer(model)
    assert torch.equal(second, fresh(model))
    model.set_prompt("default")
    assert torch.equal(answer(model), first)
    assert torch.equal(answer(model, prompt_names="other"), second)
    assert not torch.equal(first, second)
    assert counter.runs == 3, "one for each prompt, and the copy's"


def test_a_deleted_prompt_leaves_nothing_and_its_name_may_come_again(counter: Counter) -> None:
    model = encoder_prompt(build("llama"))
    before = answer(model)
    model.delete_prompt("default")
    assert model.prefixes.names == []
    assert model.prefixes.held_bytes == 0
    model.add_prompt("default", PromptEncoderConfig(num_virtual_tokens=6))
    assert_new_answer(model, counter, before)


def test_another_encoder_with_the_same_numbers_is_another() -> None:
    model = encoder_prompt(build("llama"))
    twin = copy.deepcopy(encoder_of(model))
    assert encoder_stamp(encoder_of(model)) == encoder_stamp(encoder_of(model))
    assert encoder_stamp(encoder_of(model)) != encoder_stamp(twin)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_model_keeps_its_own(again: Callable[[PTunedModel], PTunedModel], counter: Counter) -> None:
    model = encoder_prompt(build("llama"))
    model.prefixes.limit_bytes = 12345
    first = answer(model)
    twin = again(model)
    assert twin.prefixes.names == []
    assert twin.prefixes.limit_bytes == 12345
    assert torch.equal(answer(twin), first)
    with torch.no_grad():
        encoder_of(twin).embedding.weight.mul_(2)
    assert torch.equal(answer(model), first)
    assert not torch.equal(answer(twin), first)


# ---- dropout -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["MLP", "LSTM", "RESIDUAL"])
def test_dropout_in_training_is_drawn_each_time(kind: str, counter: Counter) -> None:
    model = encoder_prompt(build("llama"), kind, encoder_dropout=0.5, encoder_num_layers=2)
    with torch.no_grad():
        for parameter in encoder_of(model).parameters():
            parameter.add_(0.1)  # a residual encoder's last layer starts at zero
    model.prompts.train()
    assert not torch.equal(answer(model), answer(model))
    assert counter.runs == 2
    assert model.prefixes.names == []
    model.eval()
    assert torch.equal(answer(model), answer(model))
    assert counter.runs == 3
    model.prompts.train()
    assert counter.during(lambda: answer(model)) == 1


def test_an_encoder_without_dropout_is_kept_while_training(counter: Counter) -> None:
    model = encoder_prompt(build("llama"))
    model.prompts.train()
    answer(model)
    assert counter.during(lambda: answer(model)) == 0


def test_a_frozen_model_in_training_mode_draws_its_own_dropout(counter: Counter) -> None:
    model = encoder_prompt(build("gpt2", resid_pdrop=0.3))
    model.train()
    assert not torch.equal(answer(model), answer(model))
    assert counter.runs == 2


# ---- bytes ---------------------------------------------------------------------------------------------------------


def _many(count: int) -> PTunedModel:
    model = tokens_as_prompt(build("llama"), draw(1, 4, seed=0)[0])
    for number in range(1, count):
        add_tokens_as_prompt(model, f"p{number}", draw(1, 4, seed=number)[0])
    return model


def test_the_prompts_used_longest_ago_are_dropped(counter: Counter) -> None:
    model = _many(4)
    answer(model)
    one = model.prefixes.held_bytes
    # Keys and values of two layers with two heads of eight numbers, and the logits.
    assert one == 4 * (2 * 2 * 2 * 4 * 8 + 128)
    model.prefixes.limit_bytes = 3 * one
    for name in ("p1", "p2"):
        answer(model, prompt_names=name)
    assert counter.during(lambda: answer(model, prompt_names="default")) == 0
    answer(model, prompt_names="p3")
    assert model.prefixes.names == ["p2", "default", "p3"]
    assert model.prefixes.held_bytes == 3 * one
    assert counter.during(lambda: answer(model, prompt_names="p1")) == 1
    assert model.prefixes.names == ["default", "p3", "p1"]


def test_the_last_one_stays_though_it_be_larger_than_the_limit(counter: Counter) -> None:
    model = _many(2)
    model.prefixes.limit_bytes = 1
    answer(model)
    assert counter.during(lambda: answer(model)) == 0
    answer(model, prompt_names="p1")
    assert model.prefixes.names == ["p1"]


def test_a_batch_of_more_prompts_than_are_kept(counter: Counter) -> None:
    model = _many(5)
    names = model.prompt_names
    wanted = model.generate(TEXT.repeat(5, 1), prompt_names=names, max_new_tokens=6, do_sample=False)
    model.prefixes.limit_bytes = 1
    model.clear_prefixes()
    found = model.generate(TEXT.repeat(5, 1), prompt_names=names, max_new_tokens=6, do_sample=False)
    assert torch.equal(found, wanted)
    assert len(model.prefixes.names) == 1


def test_the_default_limit() -> None:
    assert PrefixCache().limit_bytes == LIMIT_BYTES == 256 * 1024 * 1024


# ---- threads -------------------------------------------------------------------------------------------------------


def _together(jobs: int, job: Callable[[int], Any]) -> list[Any]:
    """What `job(number)` gives in as many threads, all started at once."""
    start, found = threading.Barrier(jobs), [None] * jobs

    def run(number: int) -> None:
        start.wait()
        found[number] = job(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_one_of_several_threads_computes_a_prompt(counter: Counter) -> None:
    model = encoder_prompt(build("llama"))
    wanted = fresh(model)
    runs = counter.runs
    found = _together(8, lambda _number: answer(model))
    assert counter.runs - runs == 1
    assert all(torch.equal(one, wanted) for one in found)


def test_threads_with_different_prompts_and_little_room() -> None:
    model = _many(4)
    wanted = [answer(model, prompt_names=name) for name in model.prompt_names]
    model.prefixes.limit_bytes = 1
    names = model.prompt_names
    found = _together(
        8, lambda number: [(at, answer(model, prompt_names=names[at])) for at in (number % 4, (number + 1) % 4) * 3]
    )
    assert all(torch.equal(one, wanted[at]) for answers in found for at, one in answers)


def test_a_hook_that_generates_in_turn() -> None:
    model = encoder_prompt(build("llama"))
    seen = []

    def ask(_module: nn.Module, _args: Any, _output: Any) -> None:
        if not seen:
            seen.append(True)
            seen.append(answer(model))

    model.base.model.layers[0].register_forward_hook(ask)
    found = answer(model)
    assert torch.equal(seen[1], found)
