"""Answers are the same from a prefix that was kept and from one computed for the call, on every way to generate."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from architectures import ARCHITECTURES, build
from prompting import add_tokens_as_prompt, draw, padded, relative_error, texts, tokens_as_prompt
from ptune.batch import row_prompts as rows
from ptune.model.wrapper import PTunedModel
from ptune.prefix.growing_cache import GrowingLayer

KEEPING = [name for name in ARCHITECTURES if name != "mamba"]
PROMPT = draw(1, 6, seed=7)[0]
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampling": {"do_sample": True, "temperature": 1.5, "top_k": 0},
    "several sampled": {"do_sample": True, "num_return_sequences": 3},
    "without a cache": {"do_sample": False, "use_cache": False},
}


def model_of(name: str) -> PTunedModel:
    model = tokens_as_prompt(build(name, tie_word_embeddings=False), PROMPT)
    add_tokens_as_prompt(model, "long", draw(1, 10, seed=9)[0])
    return model


def answers(model: PTunedModel, **options: Any) -> torch.Tensor:
    torch.manual_seed(11)
    return model.generate(**{"max_new_tokens": 7, **options})


@pytest.mark.parametrize("names", [None, ["long", None, "default", "long"]], ids=["one prompt", "mixed"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", KEEPING)
def test_kept_and_computed_alike(
    name: str, way: str, side: str, names: list[str | None] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(name)
    ids, mask = padded(texts((9, 3, 12, 5)), side)
    asked = {"input_ids": ids, "attention_mask": mask, "prompt_names": names, **WAYS[way]}
    first = answers(model, **asked)
    monkeypatch.setattr(rows, "encode_prefix", lambda *_args: pytest.fail("the prompt ran again"))
    assert torch.equal(answers(model, **asked), first)
    monkeypatch.undo()
    # Other texts, other rows, other calls in between leave no trace.
    answers(model, input_ids=ids[:2, :3], prompt_names="long")
    assert torch.equal(answers(model, **asked), first)
    assert torch.equal(answers(copy.deepcopy(model), **asked), first)


@pytest.mark.parametrize("name", KEEPING)
def test_a_long_answer_outgrows_the_spare_room(name: str) -> None:
    model = model_of(name)
    text = draw(2, 5, seed=3)
    options = {"max_new_tokens": 90, "do_sample": False, "eos_token_id": None}
    hard = torch.cat([PROMPT.expand(2, -1), text], dim=1)
    wanted = model.base.generate(hard, **options, output_logits=True, return_dict_in_generate=True)
    found = model.generate(text, **options, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(found.sequences[:, 5:], wanted.sequences[:, hard.shape[1] :])
    assert relative_error(found.logits[-1], wanted.logits[-1]) < 1e-4


def test_layers_with_spare_room_are_used_and_take_no_more_than_asked_for() -> None:
    model = model_of("llama")
    text = draw(2, 5, seed=3)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    cache = model.generate(text, **options).past_key_values
    assert all(type(layer) is GrowingLayer for layer in cache.layers)
    # 6 virtual, 5 text and 6 new tokens, of 2 rows with 2 heads of 8 numbers.
    assert cache.layers[0].keys.untyped_storage().nbytes() == 4 * 2 * 2 * 8 * (6 + 5 + 6)


def test_the_encoder_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    text = draw(1, 5, seed=3)
    first = model.generate(text, max_new_tokens=3, do_sample=False)
    monkeypatch.setattr(type(model.prompts["default"]), "forward", lambda _self: pytest.fail("the encoder ran"))
    assert torch.equal(model.generate(text, max_new_tokens=3, do_sample=False), first)


def test_without_padding_the_model_gets_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    model.generate(draw(2, 5, seed=3), max_new_tokens=1)
    seen: list[torch.Tensor | None] = []

    def note(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs.get("attention_mask"))

    model.base.register_forward_pre_hook(note, with_kwargs=True)
    model.prefixes.limit_bytes = 10**9
    ids, mask = padded(texts((5, 3)), "left")
    model.generate(draw(2, 5, seed=3), max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert seen[1:] == [None] * 4, "the prompt ran once more for the hook, then there were four steps"
    del seen[:]
    model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert [one.shape[1] for one in seen if one is not None] == [6 + 5, 6 + 6, 6 + 7, 6 + 8]


@pytest.mark.parametrize("name", ["llama", "bloom", "mistral", "mamba"])
def test_the_frozen_models_own_modules_are_not_changed(name: str) -> None:
    model = model_of(name)
    classes = [type(module) for module in model.base.modules()]
    before = model.base(draw(1, 5)).logits
    model.generate(draw(1, 5), max_new_tokens=3)
    assert [type(module) for module in model.base.modules()] == classes
    assert torch.equal(model.base(draw(1, 5)).logits, before)


def test_layers_changed_since_the_last_answer_are_seen() -> None:
    model = model_of("llama")
    text = draw(1, 5, seed=3)
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    before = model.generate(text, **options)
    with torch.no_grad():
        model.base.lm_head.weight.mul_(2)
    after = model.generate(text, **options)
    assert relative_error(after.logits[0], 2 * before.logits[0]) < 1e-6
    model.base.lm_head = copy.deepcopy(model.base.lm_head)
    with torch.no_grad():
        model.base.lm_head.weight.mul_(2)
    assert relative_error(model.generate(text, **options).logits[0], 4 * before.logits[0]) < 1e-6


def test_mixed_prompts_are_gathered_from_the_kept_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    ids = draw(3, 5, seed=3)
    alone = [
        model.generate(ids[at : at + 1], prompt_names=[name], max_new_tokens=5, do_sample=False)
        for at, name in enumerate(("default", "long", None))
    ]
    assert model.prefixes.names == ["default", "long"]
    monkeypatch.setattr(rows, "encode_prefix", lambda *_args: pytest.fail("a prompt ran again"))
    found = model.generate(ids, prompt_names=["default", "long", None], max_new_tokens=5, do_sample=False)
    for at, wanted in enumerate(alone):
        assert torch.equal(found[at, : wanted.shape[1]], wanted[0])


def test_the_concatenation_path_keeps_nothing() -> None:
    model = model_of("mamba")
    model.generate(draw(1, 5), max_new_tokens=2)
    assert model.prefixes.names == []
