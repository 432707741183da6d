"""Invariant 5: the baked prompt ≡ the encoder's output, here and in PEFT."""

from __future__ import annotations

import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from architectures import ARCHITECTURES
from prompting import draw, encoder_prompt, relative_error
from ptune.model.wrapper import PTunedModel

KINDS = ("MLP", "LSTM", "RESIDUAL", "EMBEDDING")


def _logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=draw(1, 9)).logits


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_saved_and_loaded_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    for kind in KINDS:
        model = encoder_prompt(ARCHITECTURES[name](), kind, encoder_dropout=0.3 if kind != "EMBEDDING" else 0.0)
        wanted = _logits(model)
        with torch.no_grad():
            vectors = model.encode()
        folder = model.save_pretrained(tmp_path / kind)
        assert torch.equal(load_file(folder / "adapter_model.safetensors")["prompt_embeddings"], vectors)
        for trainable in (False, True):
            loaded = PTunedModel.from_pretrained(folder, base=ARCHITECTURES[name](), trainable=trainable)
            assert loaded.get_nb_trainable_parameters()[0] == (
                model.get_nb_trainable_parameters()[0] if trainable else 0
            )
            assert loaded.training is trainable
            assert torch.equal(_logits(loaded), wanted)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            twin = peft.PeftModel.from_pretrained(ARCHITECTURES[name](), str(folder))
        # PEFT's logits begin with those at the virtual tokens.
        error = relative_error(wanted, _logits(twin)[:, 6:])
        print(f"{name} {kind}: PEFT's logits {error:.1e}")
        assert error < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_from_the_saved_encoder(kind: str, tmp_path: Path) -> None:
    model = encoder_prompt(ARCHITECTURES["llama"](), kind)
    model.save_pretrained(tmp_path / "prompt")
    loaded = PTunedModel.from_pretrained(tmp_path / "prompt", base=ARCHITECTURES["llama"](), trainable=True)
    steps = [_one_step(model), _one_step(loaded)]
    assert torch.equal(*steps)
    assert not torch.equal(steps[0], load_file(tmp_path / "prompt" / "adapter_model.safetensors")["prompt_embeddings"])


def _one_step(model: PTunedModel) -> torch.Tensor:
    """The prompt after one step of gradient descent."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    ids = draw(2, 8)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    with torch.no_grad():
        return model.encode().clone()
