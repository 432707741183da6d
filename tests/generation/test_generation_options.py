"""Every way to call `generate`: caches, configuration objects, returned details, threads, and what is refused."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, StaticCache

from architectures import ARCHITECTURES, CONTEXT, build
from prompting import add_tokens_as_prompt, draw, padded, texts, tokens_as_prompt
from ptune.errors import ConfigError, ModelError, PromptError
from ptune.frozen.cache_argument import as_cache
from ptune.model.wrapper import PTunedModel

PROMPT = draw(1, 6, seed=7)[0]
TEXT = draw(1, 5, seed=3)
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}


def _untied(name: str) -> PreTrainedModel:
    return build(name, tie_word_embeddings=False)


@pytest.fixture
def model() -> PTunedModel:
    return tokens_as_prompt(_untied("llama"), PROMPT)


def test_a_filled_cache_is_refused(model: PTunedModel) -> None:
    cache = DynamicCache(config=model.base.config)
    model.base(TEXT, past_key_values=cache)
    with pytest.raises(ModelError, match="past_key_values that already holds tokens"):
        model.generate(TEXT, past_key_values=cache, **GREEDY)
    with pytest.raises(ModelError, match="past_key_values"):
        model(TEXT, past_key_values=cache)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "mamba"])
def test_an_empty_cache_of_the_callers_is_filled(name: str) -> None:
    model = tokens_as_prompt(_untied(name), PROMPT)
    cache = DynamicCache(config=model.base.config)
    found = model.generate(TEXT, **as_cache(model.base, cache), **GREEDY)
    assert torch.equal(found, model.generate(TEXT, **GREEDY))
    assert cache.get_seq_length() == len(PROMPT) + found.shape[1] - 1
    with pytest.raises(ModelError, match="already holds tokens"):
        model.generate(found, **as_cache(model.base, cache), **GREEDY)


@pytest.mark.parametrize(
    "option",
    [
        {"cache_implementation": "static"},
        {"cache_implementation": "offloaded"},
        {"generation_config": GenerationConfig(cache_implementation="static", max_new_tokens=3)},
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 2},
        {"position_ids": torch.arange(5)[None]},
    ],
    ids=str,
)
def test_what_cannot_start_with_a_prompt_is_refused(model: PTunedModel, option: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"cannot start with a soft prompt|does not take"):
        model.generate(TEXT, **{**GREEDY, **option})


def test_a_static_cache_of_the_callers_or_of_the_models_settings_is_refused(model: PTunedModel) -> None:
    with pytest.raises(ModelError, match="StaticCache cannot start"):
        model.generate(TEXT, past_key_values=StaticCache(config=model.base.config, max_cache_len=32), **GREEDY)
    model.base.generation_config.cache_implementation = "static"
    with pytest.raises(ModelError, match="cache_implementation='static'"):
        model.generate(TEXT, **GREEDY)
    # As old Gemma checkpoints say; transformers reads it as dynamic.
    model.base.generation_config.cache_implementation = "hybrid"
    assert model.generate(TEXT, **GREEDY).shape[0] == 1


def test_an_assistant_is_refused(model: PTunedModel) -> None:
    with pytest.raises(ModelError, match="assistant_model"):
        model.generate(TEXT, assistant_model=_untied("llama"), **GREEDY)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_configuration_object_is_honoured(name: str) -> None:
    model = tokens_as_prompt(_untied(name), PROMPT)
    config = GenerationConfig(max_new_tokens=6, num_beams=2, do_sample=False, pad_token_id=0, eos_token_id=1)
    found = model.generate(TEXT, generation_config=config)
    assert torch.equal(found, model.generate(TEXT, num_beams=2, **GREEDY))
    model.base.generation_config = config
    assert torch.equal(found, model.generate(TEXT))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_returned_scores_and_logits_are_the_hard_prompts(name: str) -> None:
    model = tokens_as_prompt(_untied(name), PROMPT)
    wanted_details = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    found = model.generate(TEXT, **GREEDY, **wanted_details)
    hard = torch.cat([PROMPT[None], TEXT], dim=1)
    wanted = model.base.generate(hard, **GREEDY, **wanted_details)
    assert torch.equal(found.sequences[:, TEXT.shape[1] :], wanted.sequences[:, hard.shape[1] :])
    for mine, theirs in zip(found.logits, wanted.logits, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert len(found.scores) == len(found.logits)
    beams = model.generate(TEXT, num_beams=3, **GREEDY, **wanted_details)
    theirs = model.base.generate(hard, num_beams=3, **GREEDY, **wanted_details)
    torch.testing.assert_close(beams.sequences_scores, theirs.sequences_scores, rtol=1e-4, atol=1e-4)


def test_inputs_by_their_other_name_and_none_at_all(model: PTunedModel) -> None:
    assert torch.equal(model.generate(inputs=TEXT, **GREEDY), model.generate(TEXT, **GREEDY))
    assert model.generate(**GREEDY).shape[0] == 1, "the prompt alone begins it: see test_unconditional"


def test_rows_and_names_must_agree(model: PTunedModel) -> None:
    with pytest.raises(ConfigError, match="2 names for 1 rows"):
        model.generate(TEXT, prompt_names=["default", None], **GREEDY)
    with pytest.raises(PromptError, match=r"unknown prompt 'defualt'.*'default'"):
        model.generate(TEXT, prompt_names="defualt", **GREEDY)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_disabled_and_rows_without_prompt_are_the_bare_model(name: str) -> None:
    model = tokens_as_prompt(_untied(name), PROMPT)
    ids, mask = padded(texts((6, 3)), "left")
    wanted = model.base.generate(ids, attention_mask=mask, **GREEDY)
    assert torch.equal(model.generate(ids, attention_mask=mask, prompt_names=[None, None], **GREEDY), wanted)
    with model.disable_prompt():
        assert torch.equal(model.generate(ids, attention_mask=mask, **GREEDY), wanted)
        with model.disable_adapter():
            pass
        assert torch.equal(model.generate(ids, attention_mask=mask, **GREEDY), wanted)
    assert not torch.equal(model.generate(ids, attention_mask=mask, **GREEDY), wanted)


@pytest.mark.parametrize("name", ["llama", "gemma3", "mamba"])
def test_threads_with_different_prompts_do_not_meet(name: str) -> None:
    model = tokens_as_prompt(_untied(name), PROMPT)
    add_tokens_as_prompt(model, "other", draw(1, 9, seed=11)[0])
    names: list[str | None] = ["default", "other", None]
    options = {"max_new_tokens": 15, "do_sample": False, "eos_token_id": None}
    wanted = [model.generate(TEXT, prompt_names=[chosen], **options) for chosen in names]
    loss = model(TEXT, labels=TEXT, return_logits=False).loss
    start, found, losses = threading.Barrier(4), {}, []

    def answer(at: int) -> None:
        start.wait()
        found[at] = [model.generate(TEXT, prompt_names=[names[at]], **options) for _ in range(3)]

    def train() -> None:
        start.wait()
        losses.extend(model(TEXT, labels=TEXT, return_logits=False).loss for _ in range(20))

    threads = [threading.Thread(target=answer, args=(at,)) for at in range(3)] + [threading.Thread(target=train)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(item, wanted[at]) for at in range(3) for item in found[at])
    assert losses == [loss] * 20


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_the_context_is_checked_before_anything_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tokens_as_prompt(_untied(name), PROMPT)
    room = CONTEXT - len(PROMPT)
    fits = draw(1, room)
    assert model(fits).logits.shape[1] == room
    assert model.generate(fits[:, :-3], max_new_tokens=3, do_sample=False, eos_token_id=None).shape[1] == room
    monkeypatch.setattr("ptune.batch.row_prompts.encode_prefix", lambda *_args: pytest.fail("the model ran"))
    too_long = draw(1, room + 1)
    with pytest.raises(ModelError, match=f"6 virtual tokens and {room + 1} text tokens exceed .* {CONTEXT} tokens"):
        model(too_long)
    for limits in (
        {"max_new_tokens": 3},
        {"max_length": room + 1},
        {"generation_config": GenerationConfig(max_new_tokens=3)},
        {},
    ):
        with pytest.raises(ModelError, match="new tokens exceed the model's context"):
            model.generate(fits[:, :-2], do_sample=False, **limits)
    with pytest.raises(ConfigError, match=f"num_virtual_tokens={CONTEXT} leaves no room"):
        add_tokens_as_prompt(model, "long", draw(1, CONTEXT)[0])


def test_a_model_without_a_limit_has_none() -> None:
    model = tokens_as_prompt(build("bloom"), PROMPT)
    assert model.context_length is None
    assert model(draw(1, 300)).logits.shape[1] == 300


def test_hooks_on_the_model_run_once_a_step(model: PTunedModel) -> None:
    calls: list[int] = []
    model.base.register_forward_hook(lambda *_args: calls.append(1))
    out = model.generate(TEXT, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert out.shape[1] - TEXT.shape[1] == 4
    assert len(calls) == 5, "one for the prefix and one for each new token"


def test_generating_leaves_the_model_as_it_was(model: PTunedModel) -> None:
    before = set(model.base.__dict__)
    wanted = model.base(TEXT).logits
    model.generate(TEXT, **GREEDY)
    assert set(model.base.__dict__) == before
    assert torch.equal(model.base(TEXT).logits, wanted)
