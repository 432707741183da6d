"""Folders of deep prompts: whole, read by PEFT, and what PEFT made of them read again."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from architectures import build
from prompting import draw, relative_error
from ptune import CartridgeConfig, PrefixTuningConfig, PTunedModel
from ptune.deep_config import PromptConfig
from ptune.errors import PromptError
from ptune.saved.format import read_prompt

P = 5
CONFIGS = {
    "table": PrefixTuningConfig(num_virtual_tokens=P, init="SAMPLE_VOCAB"),
    "projection": PrefixTuningConfig(num_virtual_tokens=P, prefix_projection=True, encoder_hidden_size=9),
    "cartridge": CartridgeConfig(num_virtual_tokens=P, num_frozen_tokens=2),
}


def pefts(name: str, folder: Path, **values: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(build(name), str(folder), **values).eval()


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(input_ids=ids).logits


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", ["bloom", "llama", "gemma3"])
def test_round_trip(name: str, kind: str, tmp_path: Path) -> None:
    config: PromptConfig = CONFIGS[kind]
    model, ids = PTunedModel(build(name), config), draw(2, 7)
    folder = model.save_pretrained(tmp_path / "prompt", template="tutorial", metrics={"loss": 1.5})
    wanted = logits_of(model.eval(), ids)
    answering = PTunedModel.from_pretrained(folder, base=build(name))
    assert answering.get_nb_trainable_parameters()[0] == 0
    assert torch.equal(logits_of(answering, ids), wanted)
    again = PTunedModel.from_pretrained(folder, base=build(name), trainable=True)
    assert again.active_peft_config == model.active_peft_config
    for key, value in model.prompts["default"].state_dict().items():
        assert torch.equal(again.prompts["default"].state_dict()[key], value)
    # What it was trained with goes on into the next folder; and PEFT reads either.
    second = again.save_pretrained(tmp_path / "second")
    assert json.loads((second / "ptune.json").read_text())["metrics"] == {"loss": 1.5}
    for written in (folder, second):
        assert relative_error(logits_of(pefts(name, written), ids), wanted) < 1e-5
    assert read_prompt(folder).is_deep
    assert f"{P} × {model.active_peft_config.num_layers} layers × 2 × " in (folder / "README.md").read_text()


@pytest.mark.parametrize("kind", CONFIGS)
def test_peft_saves_it_again_and_we_read_that(kind: str, tmp_path: Path) -> None:
    model = PTunedModel(build("llama"), CONFIGS[kind])
    pefts("llama", model.save_pretrained(tmp_path / "prompt")).save_pretrained(tmp_path / "theirs")
    mine = PTunedModel.from_pretrained(tmp_path / "theirs", base=build("llama"), trainable=True)
    assert torch.equal(mine.encode(), model.encode())
    assert mine.get_nb_trainable_parameters()[0] == 64 * (3 if kind == "cartridge" else P)


def test_another_model(tmp_path: Path) -> None:
    folder = PTunedModel(build("llama"), CONFIGS["table"]).save_pretrained(tmp_path / "prompt")
    for other, found in (({"num_hidden_layers": 3}, "3 layers"), ({"num_key_value_heads": 4}, "4 heads of 8")):
        with pytest.raises(PromptError, match=rf"2 layers with 2 heads of 8; this model has .*{found}"):
            PTunedModel.from_pretrained(folder, base=build("llama", **other))
    with pytest.raises(PromptError, match="made for another model"):
        PTunedModel.from_pretrained(folder, base=build("llama", seed=1))
    PTunedModel.from_pretrained(folder, base=build("llama", seed=1), force=True)
