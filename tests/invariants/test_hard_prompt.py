"""Invariant 3, forward: a soft prompt set to real token embeddings ≡ those tokens as text."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from architectures import ARCHITECTURES, WINDOW, build
from prompting import (
    add_tokens_as_prompt,
    draw,
    padded,
    prompt_gradient,
    relative_error,
    supervised,
    texts,
    tokens_as_prompt,
    tolerance,
)

LENGTHS = (9, 3, 12, 7)  # with 6 virtual tokens well beyond the window of 8
PROMPT = draw(1, 6, seed=7)[0]


def hard_logits(base: PreTrainedModel, prompt: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """`(P + T, V)`: the bare model over prompt and text as tokens, one row alone."""
    with torch.no_grad():
        return base(input_ids=torch.cat([prompt, text])[None]).logits[0]


def hard_loss(logits: torch.Tensor, prompt: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over every text token, the first one included."""
    return F.cross_entropy(logits[len(prompt) - 1 : -1], text, reduction="sum")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("path", ["prefix", "concatenation"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_and_loss(name: str, side: str, path: str, dtype: torch.dtype) -> None:
    if name == "mamba" and path == "prefix":
        pytest.skip("Mamba has no prefix path")
    if name == "bloom" and side == "left" and dtype is torch.float64:
        pytest.skip("BLOOM itself gives NaN for left-padded rows in float64")
    base = ARCHITECTURES[name]().to(dtype)
    model = tokens_as_prompt(base, PROMPT)
    model.capability = replace(model.capability, prefix=path == "prefix")
    rows = texts(LENGTHS)
    ids, mask = padded(rows, side)
    with torch.no_grad():
        output = model(ids, attention_mask=mask, labels=supervised(ids, mask))

    hard = [hard_logits(base, PROMPT, row) for row in rows]
    total = sum(hard_loss(logits, PROMPT, row) for logits, row in zip(hard, rows, strict=True))
    loss_error = relative_error(output.loss, total / sum(LENGTHS))
    found = [output.logits[at][mask[at].bool()] for at in range(len(rows))]
    error = max(relative_error(mine, logits[len(PROMPT) :]) for mine, logits in zip(found, hard, strict=True))
    print(f"{name} {side} {path} {dtype}: loss {loss_error:.1e}, logits {error:.1e}")
    assert error < tolerance(name, dtype)
    assert loss_error < tolerance(name, dtype)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradient_of_the_prompt(name: str) -> None:
    base = ARCHITECTURES[name]().double()
    model = tokens_as_prompt(base, PROMPT)
    ids, mask = padded(texts(LENGTHS), "right")
    loss, gradient = prompt_gradient(model, input_ids=ids, attention_mask=mask, labels=supervised(ids, mask))

    vectors = model.base.get_input_embeddings()(PROMPT).detach().requires_grad_()
    total = torch.zeros((), dtype=torch.double)
    for row in texts(LENGTHS):
        embeds = torch.cat([vectors, base.get_input_embeddings()(row)])[None]
        total = total + hard_loss(base(inputs_embeds=embeds).logits[0], PROMPT, row)
    (total / sum(LENGTHS)).backward()
    print(
        f"{name}: loss {relative_error(loss, total / sum(LENGTHS)):.1e}, {relative_error(gradient, vectors.grad):.1e}"
    )
    assert relative_error(gradient, vectors.grad) < tolerance(name, torch.float64)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_prompt_per_row_of_different_length_or_none(name: str, side: str) -> None:
    base = ARCHITECTURES[name]()
    prompts = {"short": draw(1, 3, seed=8)[0], "long": draw(1, 10, seed=9)[0]}
    model = tokens_as_prompt(base, PROMPT)
    for prompt_name, tokens in prompts.items():
        add_tokens_as_prompt(model, prompt_name, tokens)
    names = ["long", None, "short", "default", "long"]
    rows = texts((5, 4, 11, 8, 2))
    ids, mask = padded(rows, side)
    with torch.no_grad():
        output = model(ids, attention_mask=mask, labels=supervised(ids, mask), prompt_names=names)

    everything = {**prompts, "default": PROMPT, None: PROMPT[:0]}
    total, count, errors = torch.zeros(()), 0, []
    for at, (prompt_name, row) in enumerate(zip(names, rows, strict=True)):
        prompt = everything[prompt_name]
        logits = hard_logits(base, prompt, row)
        errors.append(relative_error(output.logits[at][mask[at].bool()], logits[len(prompt) :]))
        # Without a prompt nothing predicts the first token.
        predicted = F.cross_entropy(
            logits[max(len(prompt) - 1, 0) : -1], row if len(prompt) else row[1:], reduction="sum"
        )
        total, count = total + predicted, count + len(row) - (0 if len(prompt) else 1)
    print(f"{name} {side}: logits {max(errors):.1e}, loss {relative_error(output.loss, total / count):.1e}")
    assert max(errors) < 1e-5
    assert relative_error(output.loss, total / count) < 1e-5


@pytest.mark.parametrize("name", ["gemma3", "mistral"])
@pytest.mark.parametrize("length", [5, 8, 9, 20])
def test_prompts_around_the_window(name: str, length: int) -> None:
    base = build(name)
    prompt = draw(1, length, seed=length)[0]
    model = tokens_as_prompt(base, prompt)
    rows = texts((30, 2, 9))
    ids, mask = padded(rows, "right")
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
    for at, row in enumerate(rows):
        assert relative_error(logits[at][mask[at].bool()], hard_logits(base, prompt, row)[length:]) < 1e-5


@pytest.mark.parametrize("name", ["gemma3", "mistral"])
@pytest.mark.parametrize("total", [WINDOW - 1, WINDOW, WINDOW + 1, WINDOW + 2, WINDOW + 4])
def test_left_padding_around_the_window(name: str, total: int) -> None:
    base = build(name)
    prompt = PROMPT[:4]
    model = tokens_as_prompt(base, prompt)
    rows = texts((total - 4, 2))
    ids, mask = padded(rows, "left")
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
    for at, row in enumerate(rows):
        assert relative_error(logits[at][mask[at].bool()], hard_logits(base, prompt, row)[4:]) < 1e-5
