"""How likely tokens are: each answer is that of its row run alone with the prompt concatenated, on every way."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from architectures import build
from prompting import add_tokens_as_prompt, draw, encoder_prompt, texts
from ptune.batch.token_queries import TokenAnswers, TokenQueries
from ptune.model.wrapper import PTunedModel

LENGTHS = (5, 1, 9, 3)
WAYS = ("packed", "prefix", "concatenation")


def by(model: PTunedModel, way: str) -> PTunedModel:
    """The model, made to take one of the ways."""
    if way != "packed":
        model._base_obstacle = "a test"
    if way == "concatenation":
        model.capability = dataclasses.replace(model.capability, prefix=False)
    return model.eval()


def alone(model: PTunedModel, row: torch.Tensor, name: str | None) -> torch.Tensor:
    """`(P + T, V)`: log-probabilities behind every position of prompt and row; the last `T` are the text's."""
    vectors = torch.zeros(0, model.base.config.hidden_size) if name is None else model.encode(name)
    embeds = torch.cat([vectors, model.base.get_input_embeddings()(row)])[None]
    return model.base(inputs_embeds=embeds).logits[0].log_softmax(-1)


def compare(found: TokenAnswers, wanted: list[torch.Tensor | None], tokens: list[int]) -> None:
    for at, (logits, token) in enumerate(zip(wanted, tokens, strict=True)):
        if logits is None:
            assert found.log_probs[at].isnan()
            assert found.likeliest[at] == -1
        else:
            assert found.log_probs[at].item() == pytest.approx(logits[token].item(), abs=2e-5)
            assert found.likeliest[at] == logits.argmax()


@torch.no_grad()
@pytest.mark.parametrize(
    "names", [None, (None,) * 4, ("default", None, "other", "default")], ids=["one", "none", "mixed"]
)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", ["llama", "bloom", "gemma3"])
def test_each_answer_is_that_of_its_row_alone(architecture: str, way: str, names: tuple[str | None, ...] | None):
    model = encoder_prompt(build(architecture, tie_word_embeddings=False))
    add_tokens_as_prompt(model, "other", draw(1, 3, seed=5)[0])
    model = by(model, way)
    rows = texts(LENGTHS)
    # Every place of every row, the one behind it too, and two tokens for some of them.
    triples = [
        (at, place, token)
        for at, row in enumerate(rows)
        for place in range(len(row) + 1)
        for token in ((7, 11) if place % 2 else (9,))
    ]
    order = torch.randperm(len(triples), generator=torch.Generator().manual_seed(1)).tolist()
    triples = [triples[at] for at in order]
    found = model.token_answers([row.tolist() for row in rows], TokenQueries.of(triples), prompt_names=names)
    each = names or ("default",) * 4
    whole = [alone(model, row, name) for row, name in zip(rows, each, strict=True)]
    before = [len(one) - len(row) for one, row in zip(whole, rows, strict=True)]
    wanted = [None if before[row] + place == 0 else whole[row][before[row] + place - 1] for row, place, _ in triples]
    compare(found, wanted, [token for *_, token in triples])


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_rows_that_go_on_from_one_text(architecture: str):
    model = encoder_prompt(build(architecture)).eval()
    given, goes_on = texts((6, 4)), texts((2, 1, 3), seed=9)
    rows = [(0, goes_on[0]), (0, goes_on[1]), (1, goes_on[2])]
    triples = [(at, place, 8) for at, (_, row) in enumerate(rows) for place in range(len(row) + 1)]
    names = ("default", None)
    found = model.token_answers_behind(
        [one.tolist() for one in given],
        [(number, row.tolist()) for number, row in rows],
        TokenQueries.of(triples),
        prompt_names=names,
    )
    whole = [alone(model, torch.cat([given[number], row]), names[number]) for number, row in rows]
    wanted = [whole[at][len(whole[at]) - len(rows[at][1]) + place - 1] for at, place, _ in triples]
    compare(found, wanted, [token for *_, token in triples])


def test_few_logits_exist_at_a_time(monkeypatch: pytest.MonkeyPatch):
    from ptune.packed import packed_answers

    model = encoder_prompt(build("llama")).eval()
    row = draw(1, 40)[0].tolist()
    queries = TokenQueries.of([(0, place, 9) for place in range(41)])
    whole = model.token_answers([row], queries)
    monkeypatch.setattr(packed_answers, "CHUNK_BYTES", 1)  # 16 positions
    parts = model.token_answers([row], queries)
    assert torch.equal(whole.likeliest, parts.likeliest)
    assert torch.allclose(whole.log_probs, parts.log_probs, atol=1e-5)
