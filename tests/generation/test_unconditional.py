"""`generate` without any text: the prompt alone begins the answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from architectures import ARCHITECTURES, build
from prompting import add_tokens_as_prompt, draw, tokens_as_prompt
from ptune.errors import ModelError

PROMPT = draw(1, 6, seed=7)[0]
OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "num_beams": 2}], ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_as_the_frozen_model_behind_those_tokens(name: str, options: dict[str, int]) -> None:
    base = build(name, tie_word_embeddings=False)
    model = tokens_as_prompt(base, PROMPT).eval()
    wanted = base.generate(PROMPT[None], attention_mask=torch.ones(1, 6), **OPTIONS, **options)[:, 6:]
    assert torch.equal(model.generate(**OPTIONS, **options), wanted)


def test_a_prompt_a_row_one_of_a_single_token() -> None:
    model = tokens_as_prompt(build("llama", tie_word_embeddings=False), PROMPT).eval()
    add_tokens_as_prompt(model, "one", PROMPT[:1])
    found = model.generate(prompt_names=["default", "one", "default"], **OPTIONS)
    for at, tokens in enumerate((PROMPT, PROMPT[:1], PROMPT)):
        wanted = model.base.generate(tokens[None], attention_mask=torch.ones(1, len(tokens)), **OPTIONS)[
            0, len(tokens) :
        ]
        assert torch.equal(found[at, : len(wanted)], wanted)


def test_a_row_without_a_prompt_has_nothing_to_begin_with() -> None:
    model = tokens_as_prompt(build("llama"), PROMPT)
    with pytest.raises(ModelError, match="at least one token of text"):
        model.generate(prompt_names=["default", None], **OPTIONS)
