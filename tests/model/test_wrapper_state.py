"""`state_dict` holds the prompt encoders alone; prompts are saved, loaded, and checked against the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from architectures import build
from prompting import draw, encoder_prompt
from ptune import PromptEncoderConfig, PTunedModel
from ptune.errors import ConfigError, PromptError


@pytest.fixture
def model() -> PTunedModel:
    model = encoder_prompt(build("llama"), "LSTM")
    model.add_prompt("other", PromptEncoderConfig(num_virtual_tokens=3))
    return model


def test_the_state_is_that_of_the_prompts(model: PTunedModel) -> None:
    state = model.state_dict()
    assert {key.split(".")[0] for key in state} == {"prompts"}
    assert {key.split(".")[1] for key in state} == {"default", "other"}
    assert sum(value.numel() for value in state.values()) == sum(p.numel() for p in model.prompts.parameters())
    holder = torch.nn.ModuleDict({"inner": model})
    assert set(holder.state_dict()) == {f"inner.{key}" for key in state}
    with pytest.raises(ConfigError, match="by name"):
        model.state_dict({})


def test_round_trip(model: PTunedModel) -> None:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = model(draw(1, 5)).logits
    with torch.no_grad():
        for parameter in model.prompts.parameters():
            parameter.zero_()
    result = model.load_state_dict(state)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert torch.equal(model(draw(1, 5)).logits, wanted)


def test_what_does_not_fit_is_named(model: PTunedModel) -> None:
    state = model.state_dict()
    with pytest.raises(PromptError, match=r"lm_head\.weight"):
        model.load_state_dict({**state, "lm_head.weight": torch.zeros(1)})
    fewer = {key: value for key, value in state.items() if not key.startswith("prompts.other")}
    with pytest.raises(RuntimeError, match=r"other\.embedding\.weight"):
        model.load_state_dict(fewer)
    result = model.load_state_dict({**fewer, "stranger": torch.zeros(1)}, strict=False)
    assert "prompts.other.embedding.weight" in result.missing_keys
    assert result.unexpected_keys == ["stranger"]


def test_each_prompt_is_saved_and_loaded_under_a_name(model: PTunedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "two", prompt_name="other")
    fresh = PTunedModel(build("llama"))
    assert fresh.load_prompt(tmp_path / "one") == "default"
    assert fresh.load_prompt(tmp_path / "two", trainable=False) == "two"
    assert fresh.load_prompt(tmp_path / "two", name="third") == "third"
    ids = draw(2, 5)
    with torch.no_grad():
        for mine, theirs in (("default", "default"), ("two", "other"), ("third", "other")):
            assert torch.equal(fresh(ids, prompt_names=mine).logits, model(ids, prompt_names=theirs).logits)
    with pytest.raises(PromptError, match="there is a prompt 'two' already"):
        fresh.load_prompt(tmp_path / "two")


def test_a_prompt_for_another_size_is_refused(model: PTunedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "prompt")
    for force in (False, True):
        with pytest.raises(PromptError, match="embeddings of size 32; this model's have 64"):
            PTunedModel.from_pretrained(tmp_path / "prompt", base=build("llama", hidden_size=64), force=force)


def test_a_prompt_for_another_model_is_refused_unless_forced(model: PTunedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "prompt")
    stranger = build("llama", seed=1)
    with pytest.raises(PromptError, match=r"made for another model.*fingerprint.*--force"):
        PTunedModel.from_pretrained(tmp_path / "prompt", base=stranger)
    forced = PTunedModel.from_pretrained(tmp_path / "prompt", base=stranger, force=True)
    with torch.no_grad():
        assert torch.equal(forced.encode(), model.encode())


def test_the_base_is_loaded_by_its_name(tiny_model_dir: Path, tmp_path: Path) -> None:
    from ptune.loading.load import load_model

    base = load_model(str(tiny_model_dir))
    model = PTunedModel(base, PromptEncoderConfig(num_virtual_tokens=3))
    model.save_pretrained(tmp_path / "prompt")
    loaded = PTunedModel.from_pretrained(tmp_path / "prompt")
    assert loaded.training is False
    with torch.no_grad():
        assert torch.equal(loaded(draw(1, 5)).logits, model.eval()(draw(1, 5)).logits)
    nameless = encoder_prompt(build("llama")).save_pretrained(tmp_path / "nameless")
    with pytest.raises(PromptError, match="does not name its base model"):
        PTunedModel.from_pretrained(nameless)


def test_saving_while_training_bakes_without_dropout(tmp_path: Path) -> None:
    model = encoder_prompt(build("llama"), "MLP", encoder_dropout=0.5).train()
    folder = model.save_pretrained(tmp_path / "prompt")
    assert model.training
    assert model.prompts["default"].training
    with torch.no_grad():
        baked = PTunedModel.from_pretrained(folder, base=build("llama")).encode()
        assert torch.equal(baked, model.eval().encode())
