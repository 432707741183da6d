"""The wrapper as other libraries see it: the frozen model's class, and nothing that leads around the prompt."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from architectures import ARCHITECTURES, VOCABULARY, build
from prompting import draw, encoder_prompt, padded, prompt_gradient, relative_error, supervised, texts, tokens_as_prompt
from ptune import PromptEncoderConfig, PTunedModel
from ptune.data.collate import PackingCollator
from ptune.errors import ConfigError, ModelError, PromptError

PROMPT = draw(1, 6, seed=7)[0]
LENGTHS = (9, 3, 12)


def test_it_has_the_frozen_models_class_and_its_own_type() -> None:
    model = encoder_prompt(build("llama"))
    assert isinstance(model, PTunedModel)
    assert isinstance(model, PreTrainedModel)
    assert isinstance(model, LlamaForCausalLM)
    assert model.__class__ is LlamaForCausalLM
    assert type(model) is PTunedModel
    assert repr(model).startswith("PTunedModel(")
    assert "LlamaForCausalLM" in repr(model)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_one_too(copied: Any) -> None:
    model = encoder_prompt(build("llama")).eval()
    twin = copied(model)
    assert type(twin) is PTunedModel
    assert twin.base is not model.base
    assert torch.equal(twin(draw(2, 5)).logits, model(draw(2, 5)).logits)


@pytest.mark.parametrize(("name", "layers"), [("llama", "model"), ("gpt2", "transformer"), ("gpt_neox", "gpt_neox")])
def test_the_frozen_models_layers_are_not_handed_on(name: str, layers: str) -> None:
    model = encoder_prompt(build(name))
    with pytest.raises(AttributeError, match=rf"lead around the prompt.*get_base_model\(\)\.{layers}"):
        getattr(model, layers)
    assert not hasattr(model, layers)
    assert model.get_base_model() is model.base
    assert model.config is model.base.config
    assert model.get_output_embeddings() is model.base.get_output_embeddings()


@pytest.mark.parametrize("way", ["packed", "prefix", "concatenation"])
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "mamba"])
def test_base_model_has_the_prompt_in_front(name: str, way: str) -> None:
    """Its hidden states, through the head, are the logits; and they are the frozen model's behind real tokens."""
    base = ARCHITECTURES[name]()
    model = tokens_as_prompt(base, PROMPT).eval()
    model.pack_batches = way == "packed"
    if way == "concatenation":
        model.base.gradient_checkpointing_enable()
        model.train()
    rows = texts(LENGTHS)
    ids, mask = padded(rows, "left")
    with torch.no_grad():
        found = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        assert found.shape[:2] == ids.shape
        base.eval()
        for at, row in enumerate(rows):
            hard = base(input_ids=torch.cat([PROMPT, row])[None], output_hidden_states=True).hidden_states[-1]
            assert relative_error(found[at][mask[at].bool()], hard[0, len(PROMPT) :]) < 1e-5


def test_casting_keeps_the_encoder_as_it_is() -> None:
    model = encoder_prompt(build("llama"), "LSTM")
    before = model.encode().detach().clone()
    for cast in (model.half, model.bfloat16, lambda: model.to(torch.bfloat16), lambda: model.to(dtype=torch.half)):
        cast()
        assert model.base.dtype in (torch.float16, torch.bfloat16)
        assert {one.dtype for one in model.prompts.parameters()} == {torch.float32}
        assert torch.equal(model.encode(), before)
    assert {one.dtype for one in model.double().prompts.parameters()} == {torch.float64}


def test_what_changes_weights_says_what_to_do() -> None:
    model = encoder_prompt(build("llama"))
    with pytest.raises(ModelError, match="cannot be merged into the weights"):
        model.merge_and_unload()
    with pytest.raises(ModelError, match=r"disable_adapter\(\)"):
        model.disable_adapters()


@pytest.mark.parametrize("token", [-1, VOCABULARY, 10**6])
def test_a_token_beyond_the_vocabulary_is_one_line(token: int) -> None:
    model = encoder_prompt(build("llama"))
    ids = torch.tensor([[5, token, 7]])
    for ask in (model, lambda ids: model(ids, labels=ids), model.generate, model.base_model):
        with pytest.raises(ModelError, match=rf"holds token {token}, but the model's embedding has {VOCABULARY} rows"):
            ask(ids)


# ---- rows told apart by what other libraries give ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "bloom", "mamba"])
@pytest.mark.parametrize("said_by", ["row_lengths", "position_ids", "cu_seq_lens_q"])
def test_packed_rows_are_told_apart(said_by: str, name: str) -> None:
    model = encoder_prompt(build(name))
    batch = PackingCollator()([{"input_ids": row.tolist(), "labels": row.tolist()} for row in texts(LENGTHS)])
    lengths = batch.pop("row_lengths")
    batch[said_by] = {
        "row_lengths": lengths,
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": torch.tensor([0, *lengths]).cumsum(0).int(),
    }[said_by]
    ids, mask = padded(texts(LENGTHS), "right")
    model.pack_batches = False
    loss, gradient = prompt_gradient(model, input_ids=ids, attention_mask=mask, labels=supervised(ids, mask))
    found_loss, found = prompt_gradient(model, **batch)
    assert relative_error(found_loss, loss) < 1e-5
    assert relative_error(found, gradient) < 1e-4
    logits = model(**batch, return_logits=True).logits[0]
    assert relative_error(logits, model(ids, attention_mask=mask).logits[mask.bool()]) < 1e-5


def test_position_ids_that_count_on_say_nothing() -> None:
    model = encoder_prompt(build("llama")).eval()
    ids = draw(2, 5)
    wanted = model(ids).logits
    assert torch.equal(model(ids, position_ids=torch.arange(5)[None]).logits, wanted)
    assert torch.equal(model(ids, position_ids=torch.arange(5).expand(2, -1)).logits, wanted)


def test_what_else_is_given_with_row_lengths_is_honoured_or_refused() -> None:
    model = encoder_prompt(build("llama")).eval()
    batch = PackingCollator()([{"input_ids": row.tolist(), "labels": row.tolist()} for row in texts((7, 4))])
    wanted = model(**batch).logits
    found = model(**batch, output_hidden_states=True)
    assert found.hidden_states[-1].shape[:2] == (1, 11)
    assert relative_error(found.logits, wanted) < 1e-5
    embeds = model.base.get_input_embeddings()(batch["input_ids"])
    rest = {name: value for name, value in batch.items() if name != "input_ids"}
    assert relative_error(model(**rest, inputs_embeds=embeds).logits, wanted) < 1e-5
    assert torch.equal(model(**batch, position_ids=torch.tensor([[*range(7), *range(4)]])).logits, wanted)
    refused = {
        "attention_mask": torch.tensor([[1] * 10 + [0]]),
        "position_ids": torch.arange(11)[None],
        "past_key_values": object(),
    }
    for name, value in refused.items():
        with pytest.raises((ConfigError, ModelError), match=name):
            model(**batch, **{name: value})


# ---- several prompts that train ------------------------------------------------------------------------------------


def test_several_prompts_train_in_one_batch() -> None:
    """Each gets the gradient of its own rows, as if it had trained alone."""
    model = encoder_prompt(build("llama").double())
    for name in ("second", "third"):
        model.add_prompt(name, PromptEncoderConfig(num_virtual_tokens=3))
    model.to(torch.float64).train_prompts(["default", "second"])
    names = ["default", "second", None, "second"]
    ids, mask = padded(texts((9, 3, 12, 5)), "right")
    batch = {"attention_mask": mask, "labels": supervised(ids, mask), "num_items_in_batch": 10}
    for pack in (True, False):
        model.pack_batches = pack
        model.zero_grad()
        model(ids, **batch, prompt_names=names).loss.backward()
        found = {name: [one.grad for one in model.prompts[name].parameters()] for name in ("default", "second")}
        assert all(one.grad is None for one in model.prompts["third"].parameters())
        for name, grads in found.items():
            rows = [at for at, own in enumerate(names) if own == name]
            model.zero_grad()
            part = {key: value[rows] if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
            model(ids[rows], **part, prompt_names=name).loss.backward()
            for mine, alone in zip(grads, model.prompts[name].parameters(), strict=True):
                assert relative_error(mine, alone.grad) < 1e-9


def test_a_prompt_that_does_not_train_beside_one_that_does_is_refused() -> None:
    model = encoder_prompt(build("llama"))
    model.add_prompt("second", PromptEncoderConfig(num_virtual_tokens=3))
    ids = draw(2, 5)
    with pytest.raises(PromptError, match=r"'second', which does not train as others do.*train_prompts"):
        model(ids, labels=ids, prompt_names=["default", "second"])
    with torch.no_grad():
        model(ids, labels=ids, prompt_names=["default", "second"])
    model.add_prompt("fixed", PromptEncoderConfig(num_virtual_tokens=3, inference_mode=True))
    model(ids, labels=ids, prompt_names=["default", "fixed"]).loss.backward()
