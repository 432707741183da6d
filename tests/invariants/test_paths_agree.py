"""Invariant 1: prefix path ≡ concatenation path ≡ PEFT, in loss and in gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import peft
import pytest
import torch

import ptune.padded.padded_forward as batch_module
from architectures import ARCHITECTURES, HIDDEN, LAYERS
from prompting import encoder_prompt, padded, prompt_gradient, relative_error, supervised, texts, tolerance

LENGTHS = (9, 3, 12, 7)
CACHED = [name for name in ARCHITECTURES if name != "mamba"]


def _batch(side: str = "right", lengths: tuple[int, ...] = LENGTHS) -> dict[str, torch.Tensor]:
    ids, mask = padded(texts(lengths), side)
    return {"input_ids": ids, "attention_mask": mask, "labels": supervised(ids, mask)}


def _counted(calls: list[str], function: Callable[..., object]) -> Callable[..., object]:
    def counting(*args: object, **kwargs: object) -> object:
        calls.append(function.__name__)
        return function(*args, **kwargs)

    return counting


def _peft_twin(name: str, kind: str, encoder: torch.nn.Module) -> peft.PeftModel:
    """PEFT's own model with the same frozen weights and the same encoder weights."""
    config = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=6,
        encoder_reparameterization_type=kind,
        token_dim=HIDDEN,
        num_layers=LAYERS,
        num_attention_heads=4,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin = peft.get_peft_model(ARCHITECTURES[name](), config)
    twin.prompt_encoder["default"].load_state_dict(encoder.state_dict())
    return twin.eval()


@pytest.mark.parametrize("kind", ["MLP", "LSTM"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loss_and_gradients_equal_peft(name: str, kind: str) -> None:
    model = encoder_prompt(ARCHITECTURES[name](), kind)
    assert model.capability.prefix is (name != "mamba")
    loss, gradient = prompt_gradient(model, **_batch())

    twin = _peft_twin(name, kind, model.prompts["default"])
    kept: list[torch.Tensor] = []

    def keep(_module: object, _args: object, output: torch.Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    twin.prompt_encoder["default"].register_forward_hook(keep)
    twin_loss = twin(**_batch()).loss
    twin_loss.backward()
    twin_gradient = kept[0].grad.reshape(-1, 6, HIDDEN).sum(dim=0)

    loss_error, gradient_error = relative_error(loss, twin_loss.detach()), relative_error(gradient, twin_gradient)
    print(f"{name} {kind}: loss {loss_error:.1e}, gradient of the prompt {gradient_error:.1e}")
    assert loss_error < 1e-5
    assert gradient_error < 1e-4
    wanted = dict(twin.prompt_encoder["default"].named_parameters())
    for key, parameter in model.prompts["default"].named_parameters():
        assert relative_error(parameter.grad, wanted[key].grad) < 1e-4, key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CACHED)
def test_prefix_equals_concatenation(name: str, side: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    if name == "bloom" and side == "left" and dtype is torch.float64:
        pytest.skip("BLOOM itself gives NaN for left-padded rows in float64")
    # Seed 1: with seed 0 a ReLU of OPT meets an input of 2e-8, where rounding alone turns its gradient on and off.
    model = encoder_prompt(ARCHITECTURES[name]().to(dtype), num_virtual_tokens=2, seed=1)
    model.pack_batches = False
    batch = _batch(side)
    monkeypatch.setattr("ptune.model.running.run_prefixed", _counted(taken, batch_module.run_prefixed))
    loss, gradient = prompt_gradient(model, **batch)
    logits = model(**batch).logits
    model.capability = replace(model.capability, prefix=False)
    other_loss, other_gradient = prompt_gradient(model, **batch)
    real = batch["attention_mask"].bool()

    errors = (
        relative_error(loss, other_loss),
        relative_error(gradient, other_gradient),
        relative_error(logits[real], model(**batch).logits[real]),
    )
    print(f"{name} {side} {dtype}: loss {errors[0]:.1e}, gradient {errors[1]:.1e}, logits {errors[2]:.1e}")
    assert max(errors) < tolerance(name, dtype)
    assert len(taken) == 2, "the prefix path was taken twice, the concatenation path the other two times"


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_padding_beyond_the_window_is_the_same_on_either_side(name: str) -> None:
    model = encoder_prompt(ARCHITECTURES[name]()).eval()
    assert torch.equal(model(**_batch("left")).loss, model(**_batch("right")).loss)


@pytest.mark.parametrize("name", CACHED)
def test_activation_checkpointing_gives_the_same_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder_prompt(ARCHITECTURES[name]().double())
    loss, gradient = prompt_gradient(model, **_batch())
    monkeypatch.setattr("ptune.model.running.run_prefixed", lambda *_args, **_kwargs: pytest.fail("prefix path"))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    other_loss, other_gradient = prompt_gradient(model, **_batch())
    assert relative_error(loss, other_loss) < tolerance(name, torch.float64)
    assert relative_error(gradient, other_gradient) < tolerance(name, torch.float64)
