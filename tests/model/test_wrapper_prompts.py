"""Several named prompts on one frozen model: adding, choosing, removing, and what trains."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from architectures import build
from prompting import draw
from ptune import PromptEncoderConfig, PromptTuningConfig, PTunedModel
from ptune.errors import ConfigError, ModelError, PromptError

CONFIG = PromptTuningConfig(num_virtual_tokens=4)


@pytest.fixture
def model() -> PTunedModel:
    model = PTunedModel(build("llama"), CONFIG, prompt_name="first")
    model.add_prompt("second", PromptEncoderConfig(num_virtual_tokens=7))
    return model


def _trained(model: PTunedModel) -> set[str]:
    return {name.split(".")[1] for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_names_and_the_active_prompt(model: PTunedModel) -> None:
    assert model.prompt_names == ["first", "second"]
    assert model.active_prompt == "first"
    assert _trained(model) == {"first"}
    model.set_prompt("second")
    assert model.active_prompt == "second"
    assert _trained(model) == {"second"}
    assert model.encode().shape == (7, 32)
    assert model.encode("first").shape == (4, 32)


def test_the_active_prompt_answers_where_no_name_is_given(model: PTunedModel) -> None:
    ids = draw(2, 5)
    first, second = model(ids, prompt_names="first").logits, model(ids, prompt_names="second").logits
    assert not torch.equal(first, second)
    assert torch.equal(model(ids).logits, first)
    model.set_prompt("second")
    assert torch.equal(model(ids).logits, second)


def test_removing(model: PTunedModel) -> None:
    with pytest.raises(PromptError, match="'first' is the active prompt"):
        model.delete_prompt("first")
    model.delete_prompt("second")
    assert model.prompt_names == ["first"]
    model.delete_prompt("first")
    with pytest.raises(PromptError, match="the model has no prompt"):
        model(draw(1, 3))
    model.add_prompt("third", CONFIG)
    assert model.active_prompt == "third"


def test_unknown_and_unusable_names(model: PTunedModel) -> None:
    for call in (model.set_prompt, model.delete_prompt, model.encode):
        with pytest.raises(PromptError, match=r"unknown prompt 'secnd'. Did you mean 'second'\?"):
            call("secnd")
    with pytest.raises(PromptError, match="there is a prompt 'first' already"):
        model.add_prompt("first", CONFIG)
    for name in ("", "a b", "../x", "a.b", "-x", "x" * 65, 3):
        with pytest.raises(PromptError, match="cannot name a prompt"):
            model.add_prompt(name, CONFIG)
    assert model.prompt_names == ["first", "second"]


def test_a_frozen_prompt_stays_frozen() -> None:
    model = PTunedModel(build("llama"), PromptTuningConfig(num_virtual_tokens=4, inference_mode=True))
    assert _trained(model) == set()
    model.set_prompt("default")
    assert _trained(model) == set()


def test_a_configuration_for_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="token_dim=31, but the model's embeddings have 32"):
        PTunedModel(build("llama"), PromptTuningConfig(num_virtual_tokens=4, token_dim=31))
    completed = PTunedModel(build("llama"), PromptEncoderConfig(num_virtual_tokens=4)).prompt_configs["default"]
    assert (completed.token_dim, completed.encoder_hidden_size) == (32, 32)


def test_embeddings_of_another_size_than_the_hidden_states() -> None:
    model = PTunedModel(build("opt", word_embed_proj_dim=16), CONFIG)
    assert model.encode().shape == (4, 16)
    assert model(draw(2, 5)).logits.shape == (2, 5, 128)


def test_models_that_cannot_carry_a_prompt_are_refused() -> None:
    with pytest.raises(ModelError, match="BertModel is no causal language model"):
        PTunedModel(BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)))
    with pytest.raises(ModelError, match="Linear is not a model of transformers"):
        PTunedModel(torch.nn.Linear(2, 2))
    with pytest.raises(ModelError, match="encoder-decoder"):
        PTunedModel(T5ForConditionalGeneration(T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, vocab_size=9)))


def test_the_encoder_is_float32_whatever_the_model_is() -> None:
    model = PTunedModel(build("llama").to(torch.bfloat16), CONFIG)
    assert model.encode().dtype == torch.float32
    output = model(draw(1, 4), labels=draw(1, 4))
    assert (output.logits.dtype, output.loss.dtype) == (torch.bfloat16, torch.float32)


def test_what_the_wrapper_lacks_is_the_frozen_models(model: PTunedModel) -> None:
    assert model.config is model.base.config
    assert model.device == model.base.device
    with pytest.raises(AttributeError, match="no_such_thing"):
        model.no_such_thing  # noqa: B018
    twin = copy.deepcopy(model)
    assert torch.equal(twin(draw(1, 4)).logits, model(draw(1, 4)).logits)


def test_a_thread_turns_prompts_off_for_itself_alone(model: PTunedModel) -> None:
    model.eval()
    ids = draw(1, 5)
    with torch.no_grad():
        bare = model.base(ids).logits
        wanted = {name: model(ids, prompt_names=name).logits for name in model.prompt_names}
    inside, outside = (threading.Barrier(2, timeout=30) for _ in range(2))

    def other() -> list[bool]:
        inside.wait()
        with torch.no_grad():
            found = [torch.equal(model(ids, prompt_names=name).logits, one) for name, one in wanted.items()]
        outside.wait()
        return found

    with ThreadPoolExecutor(1) as pool, torch.no_grad():
        told = pool.submit(other)
        with model.disable_prompt(), model.disable_prompt():
            inside.wait()
            assert torch.equal(model(ids).logits, bare)
            outside.wait()
        assert told.result() == [True, True]
        assert torch.equal(model(ids).logits, wanted["first"])
