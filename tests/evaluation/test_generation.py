"""Answers to many prompts come in their order, each as if it were asked alone."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from architectures import build
from prompting import draw, tokens_as_prompt
from ptune.data.template import Segments
from ptune.evaluation.answers import generate_answers

TEXTS = ("Where is my order? It is late.", "a", "The lamp", "Human: kettle, charged twice", "", "phone")


@pytest.mark.parametrize("with_prompt", [True, False])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_each_as_alone_and_in_order(name: str, with_prompt: bool, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tokens_as_prompt(build(name, tie_word_embeddings=False), draw(1, 6, seed=7)[0]).train()
    asked = [Segments(prompt=text, answer="", add_special_tokens=True) for text in TEXTS if text]
    done: list[int] = []
    options = {"max_new_tokens": 6, "with_prompt": with_prompt}
    found = generate_answers(model, tiny_tokenizer, asked, batch_size=2, progress=done.append, **options)
    assert found == [generate_answers(model, tiny_tokenizer, [item], **options)[0] for item in asked]
    assert len(set(found)) > 1
    assert done == [2, 4, 5]
    assert model.training


def test_the_prompt_changes_the_answers(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tokens_as_prompt(build("llama", tie_word_embeddings=False), draw(1, 6, seed=7)[0])
    asked = [Segments(prompt=TEXTS[0], answer="", add_special_tokens=True)]
    assert generate_answers(model, tiny_tokenizer, asked) != generate_answers(
        model, tiny_tokenizer, asked, with_prompt=False
    )
