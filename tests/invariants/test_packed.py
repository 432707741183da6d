"""Invariant 2: packed ≡ padded ≡ one row at a time, in loss, gradient and logits; and a whole training."""

from __future__ import annotations

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from architectures import ARCHITECTURES, build
from prompting import (
    add_tokens_as_prompt,
    checkpoint_activations,
    draw,
    encoder_prompt,
    padded,
    prompt_gradient,
    relative_error,
    supervised,
    texts,
    tolerance,
)
from ptune.data.collate import PackingCollator
from ptune.errors import ConfigError, ModelError
from ptune.frozen import product
from ptune.model.wrapper import PTunedModel

LENGTHS = (9, 3, 14, 1, 7)
PACKED = [name for name in ARCHITECTURES if name != "mamba"]


def _rows() -> list[torch.Tensor]:
    return texts(LENGTHS)


def _padded(side: str = "right") -> dict[str, torch.Tensor]:
    ids, mask = padded(_rows(), side)
    return {"input_ids": ids, "attention_mask": mask, "labels": supervised(ids, mask)}


def _packed() -> dict[str, object]:
    return PackingCollator()([{"input_ids": row.tolist(), "labels": row.tolist()} for row in _rows()])


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("name", PACKED)
def test_packed_equals_padded_under_autocast(name: str, onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `bf16=True` of a trainer does, on CPUs with AVX-512 and without: the error is that of bfloat16."""
    monkeypatch.setattr(product, "_PAYS", onednn)
    model = encoder_prompt(ARCHITECTURES[name](), seed=1)
    wanted_loss, wanted_gradient = prompt_gradient(model, **_packed())
    for pack in (True, False):
        model.pack_batches = pack
        with torch.autocast("cpu", torch.bfloat16):
            loss, gradient = prompt_gradient(model, **_padded())
        assert 0 < relative_error(loss, wanted_loss) < 2e-2
        assert relative_error(gradient, wanted_gradient) < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PACKED)
def test_packed_equals_padded(name: str, dtype: torch.dtype) -> None:
    model = encoder_prompt(ARCHITECTURES[name]().to(dtype), seed=1)
    assert model.packs
    loss, gradient = prompt_gradient(model, **_packed(), return_logits=False)
    logits = model(**_packed(), return_logits=True).logits
    model.pack_batches = False
    batch = _padded()
    wanted_loss, wanted_gradient = prompt_gradient(model, **batch, return_logits=False)
    wanted_logits = model(**batch, return_logits=True).logits[batch["attention_mask"].bool()]
    errors = (
        relative_error(loss, wanted_loss),
        relative_error(gradient, wanted_gradient),
        relative_error(logits[0], wanted_logits),
    )
    print(f"{name} {dtype}: loss {errors[0]:.1e}, gradient {errors[1]:.1e}, logits {errors[2]:.1e}")
    assert max(errors) < tolerance(name, dtype)


@pytest.mark.parametrize("name", PACKED)
def test_packed_is_no_further_from_the_truth_in_bfloat16(name: str) -> None:
    errors: dict[str, list[float]] = {"packed": [], "padded": []}
    for seed in range(3):
        exact = encoder_prompt(ARCHITECTURES[name](), seed=seed)
        truth = prompt_gradient(exact, **_padded(), return_logits=False)
        for way, found in errors.items():
            model = encoder_prompt(ARCHITECTURES[name](), seed=seed).to(torch.bfloat16)
            model.pack_batches = way == "packed"
            loss, gradient = prompt_gradient(model, **_padded(), return_logits=False)
            found.append(relative_error(gradient, truth[1]))
            assert relative_error(loss, truth[0]) < 0.01
    packed, padded_ = (sum(found) / len(found) for found in errors.values())
    print(f"{name} bfloat16: gradient packed {packed:.1e}, padded {padded_:.1e}")
    assert packed < 1.5 * padded_


@pytest.mark.parametrize("name", PACKED)
def test_packed_equals_one_row_at_a_time(name: str) -> None:
    model = encoder_prompt(ARCHITECTURES[name](), seed=1)
    loss, gradient = prompt_gradient(model, **_packed())
    model.pack_batches = False
    losses, gradients = [], []
    for row in _rows():
        one, slope = prompt_gradient(model, input_ids=row[None], labels=row[None], num_items_in_batch=sum(LENGTHS))
        losses.append(one)
        gradients.append(slope)
    assert relative_error(loss, torch.stack(losses).sum()) < 1e-5
    assert relative_error(gradient, torch.stack(gradients).sum(dim=0)) < 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", PACKED)
def test_padded_batches_are_packed_on_the_way(name: str, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder_prompt(ARCHITECTURES[name]())
    wanted, wanted_gradient = prompt_gradient(model, **_packed())
    for path in ("run_prefixed", "run_concatenated"):
        monkeypatch.setattr(f"ptune.model.running.{path}", lambda *_a, **_k: pytest.fail("a padded path was taken"))
    loss, gradient = prompt_gradient(model, **_padded(side))
    assert torch.equal(loss, wanted)
    assert torch.equal(gradient, wanted_gradient)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", PACKED)
def test_logits_read_later_line_up_with_the_batch(name: str, side: str) -> None:
    model = encoder_prompt(ARCHITECTURES[name](), num_virtual_tokens=2)
    batch = _padded(side)
    output = model.train()(**batch)
    assert list(output.keys()) == ["loss"], "nobody has read them"
    logits = output["logits"]
    assert output.logits is logits
    model.eval()
    real = batch["attention_mask"].bool()
    assert logits.shape[:2] == real.shape
    assert relative_error(logits[real], model(**batch).logits[real]) < 1e-5
    assert not logits[~real].any()


@pytest.mark.parametrize("name", PACKED)
def test_a_prompt_a_row(name: str) -> None:
    """Prompts of different length and none, each row as text behind the prompt's own tokens."""
    base = ARCHITECTURES[name]()
    model = PTunedModel(base)
    prompts = {"short": draw(1, 2, seed=5)[0], "long": draw(1, 6, seed=6)[0]}
    for prompt, tokens in prompts.items():
        add_tokens_as_prompt(model, prompt, tokens)
    names = ["long", None, "short", "short", "long"]
    model.train_prompts(["short", "long"])
    logits = model(**_packed(), prompt_names=names, return_logits=True).logits[0]
    at = 0
    for prompt, row in zip(names, _rows(), strict=True):
        before = prompts[prompt] if prompt else row[:0]
        with torch.no_grad():
            hard = base(input_ids=torch.cat([before, row])[None]).logits[0, len(before) :]
        assert relative_error(logits[at : at + len(row)], hard) < 2e-5
        at += len(row)


@pytest.mark.parametrize("name", PACKED)
def test_activation_checkpointing(name: str) -> None:
    model = encoder_prompt(ARCHITECTURES[name]().double()).train()
    wanted_loss, wanted = prompt_gradient(model, **_packed())
    runs: list[int] = []
    layers = [module for module in model.base.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        next(layer.children()).register_forward_pre_hook(lambda *_: runs.append(1))
    checkpoint_activations(model.base)
    loss, gradient = prompt_gradient(model, **_packed())
    assert len(runs) == 2 * len(layers), "every layer ran again in the backward"
    assert relative_error(loss, wanted_loss) < 1e-12
    assert relative_error(gradient, wanted) < 1e-6


def test_dropout_of_the_frozen_model_is_kept() -> None:
    model = encoder_prompt(build("gpt2", attn_pdrop=0.5, resid_pdrop=0.0, embd_pdrop=0.0))
    model.train()
    losses = {float(model(**_packed()).loss) for _ in range(4)}
    model.eval()
    still = {float(model(**_packed(), return_logits=False).loss) for _ in range(3)}
    assert len(losses) == 4
    assert len(still) == 1


@pytest.mark.parametrize("name", ["llama", "bloom", "gemma3"])
def test_fifty_steps_end_at_the_same_loss(name: str) -> None:
    ends = {}
    for packs in (True, False):
        model = encoder_prompt(ARCHITECTURES[name](), "MLP")
        model.pack_batches = packs
        optimizer = torch.optim.AdamW(model.prompts.parameters(), lr=1e-2)
        losses = []
        for step in range(50):
            ids, mask = padded(texts(LENGTHS, seed=step % 5), "right")
            loss = model(ids, attention_mask=mask, labels=supervised(ids, mask), return_logits=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss))
        ends[packs] = losses
    assert ends[True][-1] < ends[True][0] - 0.1, "it learns"
    assert ends[True] == pytest.approx(ends[False], rel=1e-3)


def test_what_cannot_be_packed_says_so() -> None:
    model = encoder_prompt(ARCHITECTURES["mamba"]())
    assert not model.packs
    assert "running state" in model.packing_obstacle
    assert relative_error(model(**_packed()).loss, model(**_padded()).loss) < 1e-5, "its rows are padded then"
    model = encoder_prompt(ARCHITECTURES["llama"]())
    with pytest.raises(ConfigError, match="add up to 5"):
        model(draw(1, 6), row_lengths=[2, 3])
    with pytest.raises(ConfigError, match="2 names for 5 rows"):
        model(**_packed(), prompt_names=["default", "default"])
    with pytest.raises(ModelError, match="exceed the model's context"):
        model(draw(1, 130), row_lengths=[5, 125])
    assert model.packs
    model.base.model.layers[0].forward = model.base.model.layers[0].forward
    assert "exchanged" in model.packing_obstacle


def test_no_prompt_is_the_frozen_model() -> None:
    base = ARCHITECTURES["llama"]()
    model = encoder_prompt(base)
    batch = _packed()
    with torch.no_grad():
        found = model(**batch, prompt_names=[None] * len(LENGTHS), return_logits=False).loss
        with model.disable_prompt():
            disabled = model(**batch, return_logits=False).loss
        total = sum(
            torch.nn.functional.cross_entropy(base(row[None]).logits[0, :-1], row[1:], reduction="sum")
            for row in _rows()
        )
    assert torch.equal(found, disabled)
    assert relative_error(found, total / sum(length - 1 for length in LENGTHS)) < 1e-5
