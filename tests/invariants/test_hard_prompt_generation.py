"""Invariant 3, generation: a soft prompt of real token embeddings ≡ those tokens as text; a row ≡ that row alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from architectures import ARCHITECTURES, EOS, PAD, build
from prompting import add_tokens_as_prompt, draw, padded, texts, tokens_as_prompt
from ptune.model.wrapper import PTunedModel

LENGTHS = (9, 3, 12, 5)  # with 6 virtual tokens well beyond the window of 8
PROMPT = draw(1, 6, seed=7)[0]
NEW = 7
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "without a cache": {"use_cache": False},
    "beams": {"num_beams": 3, "length_penalty": 0.5},
    "several beams returned": {"num_beams": 4, "num_return_sequences": 2, "early_stopping": True},
}


def untied(name: str) -> PreTrainedModel:
    """A model whose greedy answers are not one token over and over."""
    return build(name, tie_word_embeddings=False)


def hard_answers(base: PreTrainedModel, prompt: torch.Tensor, text: torch.Tensor, **options: Any) -> torch.Tensor:
    """`(returned, new tokens)`: what the bare model says to prompt and text as tokens, one row alone."""
    ids = torch.cat([prompt, text])[None]
    return base.generate(
        ids, attention_mask=torch.ones_like(ids), **{"max_new_tokens": NEW, "do_sample": False, **options}
    )[:, ids.shape[1] :]


def assert_rows_as_alone(
    model: PTunedModel,
    prompts: Sequence[torch.Tensor],
    rows: Sequence[torch.Tensor],
    side: str,
    *,
    prompt_names: Sequence[str | None] | None = None,
    **options: Any,
) -> None:
    """Every row of the batch is answered as its hard prompt and text alone; padding stands left of the text."""
    ids, mask = padded(rows, side)
    out = model.generate(
        ids,
        attention_mask=mask,
        prompt_names=prompt_names,
        **{"max_new_tokens": NEW, "do_sample": False, **options},
    )
    returned = options.get("num_return_sequences", 1)
    assert torch.equal(out[::returned, : ids.shape[1]], padded(rows, "left")[0])
    for at, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        found = out[at * returned : (at + 1) * returned, ids.shape[1] :]
        wanted = hard_answers(model.base, prompt, row, **options)
        assert torch.equal(found[:, : wanted.shape[1]], wanted), f"row {at}: {found.tolist()}, not {wanted.tolist()}"
        # transformers fills finished beams with EOS where the padding token is 0.
        assert set(found[:, wanted.shape[1] :].unique().tolist()) <= {PAD, EOS}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_row_as_its_hard_prompt_alone(name: str, side: str, way: str) -> None:
    model = tokens_as_prompt(untied(name), PROMPT)
    assert_rows_as_alone(model, [PROMPT] * len(LENGTHS), texts(LENGTHS), side, **WAYS[way])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "mamba"])
def test_concatenation_path(name: str, way: str) -> None:
    model = tokens_as_prompt(untied(name), PROMPT)
    model.capability = replace(model.capability, prefix=False)
    assert_rows_as_alone(model, [PROMPT] * len(LENGTHS), texts(LENGTHS), "left", **WAYS[way])


@pytest.mark.parametrize("options", [{}, {"num_return_sequences": 3}, {"top_k": 5}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sampling_with_the_same_seed(name: str, options: dict[str, Any]) -> None:
    model = tokens_as_prompt(untied(name), PROMPT)
    text = texts((9,))[0]
    options = {"do_sample": True, "temperature": 1.5, **options}
    torch.manual_seed(3)
    found = model.generate(text[None], max_new_tokens=NEW, **options)[:, len(text) :]
    torch.manual_seed(3)
    wanted = hard_answers(model.base, PROMPT, text, **options)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_prompt_per_row_of_different_length_or_none(name: str, side: str, options: dict[str, Any]) -> None:
    prompts = {"short": draw(1, 3, seed=8)[0], "long": draw(1, 10, seed=9)[0], "default": PROMPT}
    model = tokens_as_prompt(untied(name), PROMPT)
    for prompt_name in ("short", "long"):
        add_tokens_as_prompt(model, prompt_name, prompts[prompt_name])
    names = ["long", None, "short", "default", "long"]
    chosen = [PROMPT[:0] if item is None else prompts[item] for item in names]
    assert_rows_as_alone(model, chosen, texts((5, 4, 11, 8, 2)), side, prompt_names=names, **options)


@pytest.mark.parametrize("length", [7, 8, 9, 20])
@pytest.mark.parametrize("name", ["gemma3", "mistral"])
def test_prompts_around_the_window(name: str, length: int) -> None:
    prompt = draw(1, length, seed=length)[0]
    model = tokens_as_prompt(untied(name), prompt)
    rows = texts((6, 6, 6))
    assert_rows_as_alone(model, [prompt] * 3, rows, "left", max_new_tokens=12)
    assert_rows_as_alone(model, [prompt] * 3, rows, "left", max_new_tokens=12, num_beams=2)


@pytest.mark.parametrize("name", ["gemma3", "mistral", "llama", "bloom"])
def test_padding_is_told_by_its_token_where_no_mask_is_given(name: str) -> None:
    model = tokens_as_prompt(untied(name), PROMPT)
    rows = texts(LENGTHS)
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        found = model.generate(ids, max_new_tokens=NEW, do_sample=False)
        assert torch.equal(found, model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_embeddings_in_place_of_ids(name: str) -> None:
    model = tokens_as_prompt(untied(name), PROMPT)
    rows = texts(LENGTHS)
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        embeds = model.base.get_input_embeddings()(ids)
        found = model.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
        wanted = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
        assert torch.equal(found, wanted[:, ids.shape[1] :])
