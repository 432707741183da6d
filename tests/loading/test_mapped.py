"""A model whose weights stay in their files is told from others as one that is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from architectures import build
from ptune.errors import ModelError
from ptune.frozen.fingerprint import fingerprint, unquantized_fingerprint
from ptune.loading.mapped import mapped_model


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "gemma3"])
@pytest.mark.parametrize("shards", ["5GB", "40KB"])
def test_it_is_the_loaded_model(name: str, shards: str, tmp_path: Path) -> None:
    build(name).save_pretrained(tmp_path, max_shard_size=shards)
    mapped, loaded = mapped_model(str(tmp_path)), AutoModelForCausalLM.from_pretrained(tmp_path)
    weights = dict(loaded.named_parameters())
    assert {key for key, _ in mapped.named_parameters()} == set(weights)
    for key, weight in mapped.named_parameters():
        assert torch.equal(weight, weights[key])
        assert not weight.requires_grad
    assert fingerprint(mapped) == fingerprint(loaded)
    assert unquantized_fingerprint(mapped) == unquantized_fingerprint(loaded)


def test_what_cannot_be_mapped(tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(
        model.config.to_json_string().replace('"intermediate_size"', '"unused_size"')
    )
    with pytest.raises(ModelError, match="has shape"):
        mapped_model(str(tmp_path / "other"))
    model.save_pretrained(tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "weights.safetensors")
    with pytest.raises(ModelError, match="no safetensors"):
        mapped_model(str(tmp_path / "pickled"))
    config = MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path / "experts")
    with pytest.raises(ModelError, match="are converted when the model is loaded"):
        mapped_model(str(tmp_path / "experts"))
