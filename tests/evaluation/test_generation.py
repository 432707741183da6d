"""Answers to many questions come in their order, each as if it were asked alone."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from architectures import build
from prompting import draw, tokens_as_prompt
from ptune.evaluation.answers import generate_answers

TEXTS = ("Where is my order? It is late.", "a", "The lamp", "Human: kettle, charged twice", "phone")


@pytest.mark.parametrize("names", [(None,) * 5, ("default",) * 5, ("default", None, "default", None, "default")])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_each_as_alone_and_in_order(
    name: str, names: tuple[str | None, ...], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tokens_as_prompt(build(name, tie_word_embeddings=False), draw(1, 6, seed=7)[0]).train()
    asked = [tiny_tokenizer(text)["input_ids"] for text in TEXTS]
    found = generate_answers(model, tiny_tokenizer, asked, prompt_names=names, batch_size=2, max_new_tokens=6)
    alone = [
        generate_answers(model, tiny_tokenizer, [ids], prompt_names=[one], max_new_tokens=6)[0]
        for ids, one in zip(asked, names, strict=True)
    ]
    assert found == alone
    assert len(set(found)) > 1
    assert model.training


def test_the_prompt_changes_the_answers(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tokens_as_prompt(build("llama", tie_word_embeddings=False), draw(1, 6, seed=7)[0])
    asked = [tiny_tokenizer(TEXTS[0])["input_ids"]]
    with_prompt, without = (
        generate_answers(model, tiny_tokenizer, asked, prompt_names=[name]) for name in ("default", None)
    )
    assert with_prompt != without
