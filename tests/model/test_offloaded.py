"""A model with layers on a disk (accelerate's `device_map`): it trains, is checked, named, saved and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from architectures import build
from prompting import draw, prompt_gradient, relative_error
from ptune import PromptEncoderConfig, PTunedModel
from ptune.errors import ModelError, PromptError
from ptune.frozen.fingerprint import fingerprint

LAYERS = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    build("llama", tie_word_embeddings=False).save_pretrained(place)
    return place


@pytest.fixture(params=[("model.layers.1", "lm_head"), ("model.embed_tokens", "model.layers.0")], ids=str)
def offloaded(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> PreTrainedModel:
    places = {name: "disk" if name in request.param else "cpu" for name in LAYERS}
    base = AutoModelForCausalLM.from_pretrained(folder, device_map=places, offload_folder=tmp_path / "offloaded")
    assert any(weight.is_meta for weight in base.parameters())
    return base


def _prompted(base: PreTrainedModel, **values: Any) -> PTunedModel:
    torch.manual_seed(0)
    return PTunedModel(base, PromptEncoderConfig(num_virtual_tokens=4, **values))


def test_it_trains_answers_and_is_saved_as_the_whole_model(
    offloaded: PreTrainedModel, folder: Path, tmp_path: Path
) -> None:
    model, whole = _prompted(offloaded), _prompted(AutoModelForCausalLM.from_pretrained(folder))
    assert torch.equal(model.encode(), whole.encode()), "the prompt starts at the scale of the model's embeddings"
    assert "exchanged" in (model.packing_obstacle or "")
    whole.pack_batches = False
    ids = draw(2, 7)
    loss, gradient = prompt_gradient(model, input_ids=ids, labels=ids)
    wanted_loss, wanted = prompt_gradient(whole, input_ids=ids, labels=ids)
    assert relative_error(loss, wanted_loss) < 1e-6
    assert relative_error(gradient, wanted) < 1e-5
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.eval().generate(ids, **options), whole.eval().generate(ids, **options))
    assert fingerprint(offloaded) == fingerprint(whole.base)
    model.save_pretrained(tmp_path / "prompt")
    loaded = PTunedModel.from_pretrained(tmp_path / "prompt", base=whole.base)
    assert torch.equal(loaded.encode(), model.encode())
    with pytest.raises(PromptError, match="made for another model"):
        PTunedModel.from_pretrained(tmp_path / "prompt", base=build("llama", seed=1, tie_word_embeddings=False))


def test_a_start_from_the_vocabulary(offloaded: PreTrainedModel, folder: Path) -> None:
    start = {"init": "SAMPLE_VOCAB", "encoder_reparameterization_type": "EMBEDDING"}
    model, whole = (_prompted(base, **start) for base in (offloaded, AutoModelForCausalLM.from_pretrained(folder)))
    assert torch.equal(model.encode(), whole.encode())


def test_a_model_without_weights_has_no_name() -> None:
    with torch.device("meta"):
        base = build("llama")
    with pytest.raises(ModelError, match="not loaded"):
        fingerprint(base)
