"""Prompts of keys and values are served like others; a gateway, which would have to send them on, refuses them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptune import CartridgeConfig, PTunedModel
from ptune.errors import PromptError
from ptune.loading.load import load_model, load_tokenizer
from ptune.serving.prompt_registry import PromptRegistry


def test_a_registry_takes_them_and_a_gateways_does_not(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = PTunedModel(load_model(str(tiny_model_dir), dtype="float32"), self_check=False).eval()
    model.add_prompt("one", CartridgeConfig(num_virtual_tokens=4, init="SAMPLE_VOCAB"))
    folder = model.save_pretrained(tmp_path / "one")
    tokenizer = load_tokenizer(str(tiny_model_dir))
    served = PromptRegistry(model, tokenizer, base_name="tiny").add("one", folder)
    assert served.leading == 4
    assert not any(weight.requires_grad for weight in served.encoder.parameters())
    elsewhere = PromptRegistry(model, tokenizer, base_name="tiny", elsewhere=True)
    with pytest.raises(PromptError, match=r"keys and values of every layer, which no server elsewhere.*--upstream"):
        elsewhere.add("one", folder)
