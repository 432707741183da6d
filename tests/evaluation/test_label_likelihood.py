"""A label's likelihood is that of its tokens behind the text, run alone, however labels and texts share what is run."""

from __future__ import annotations

import pytest
import torch

from architectures import build
from prompting import add_tokens_as_prompt, draw, encoder_prompt, texts
from ptune.evaluation.label_likelihood import AskedText, LabelSet, label_likelihoods
from ptune.model.wrapper import PTunedModel

ONE_TOKEN = ((7,), (9,), (30,))
SEVERAL = ((7, 8, 9), (7, 8), (7,), (20, 21), (20, 22, 5), (40,))
TEXTS = (9, 4, 12, 5)


def log_probs(model: PTunedModel, asked: list[AskedText], **options: int) -> list[list[float]]:
    return [[one.log_prob for one in found] for found in label_likelihoods(model, asked, **options)]


@torch.no_grad()
def plain(model: PTunedModel, text: torch.Tensor, name: str | None, label: tuple[int, ...]) -> float:
    """One text with one label at a time, the prompt concatenated."""
    vectors = torch.zeros(0, model.base.config.hidden_size) if name is None else model.encode(name)
    words = model.base.get_input_embeddings()(torch.cat([text, torch.tensor(label)]))
    logits = model.base(inputs_embeds=torch.cat([vectors, words])[None]).logits[0].log_softmax(-1)
    start = len(vectors) + len(text) - 1
    return sum(float(logits[start + at, token]) for at, token in enumerate(label))


def test_what_must_be_read_of_labels():
    assert LabelSet.of(ONE_TOKEN).beginnings == ((),)
    assert LabelSet.of(ONE_TOKEN).next_tokens == (7, 9, 30)
    found = LabelSet.of(SEVERAL)
    assert set(found.beginnings) == {(7, 8), (20, 22), (20,)} - {(20,)}
    assert [found.beginnings[under][: len(label) - 1] for label, under in zip(SEVERAL, found.under, strict=True)] == [
        label[:-1] for label in SEVERAL
    ]
    assert found.next_tokens == ()


@pytest.mark.parametrize("labels", [ONE_TOKEN, SEVERAL], ids=["one token", "several"])
@pytest.mark.parametrize("width", [2, 30])
@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_each_is_that_of_its_tokens_alone(
    architecture: str, width: int, labels: tuple[tuple[int, ...], ...], monkeypatch: pytest.MonkeyPatch
):
    model = encoder_prompt(build(architecture)).eval()
    add_tokens_as_prompt(model, "other", draw(1, width, seed=3)[0])
    shared: list[int] = []
    behind = model.token_answers_behind

    def noted(texts: list[list[int]], *args: object, **more: object) -> object:
        shared.append(len(texts))
        return behind(texts, *args, **more)

    monkeypatch.setattr(model, "token_answers_behind", noted)
    rows, names = texts(TEXTS), ("other", "default", "other", None)
    asked = [AskedText(row.tolist(), name, LabelSet.of(labels)) for row, name in zip(rows, names, strict=True)]
    found = log_probs(model, asked)
    for row, name, scores in zip(rows, names, found, strict=True):
        assert scores == pytest.approx([plain(model, row, name, label) for label in labels], abs=1e-4)
    # A short prompt is run again with each text, a long one is not.
    assert shared == ([4] if labels is SEVERAL and width == 2 else [])
    few_at_a_time = log_probs(model, asked, most_tokens=20)
    assert [one for scores in few_at_a_time for one in scores] == pytest.approx(
        [one for scores in found for one in scores], abs=1e-4
    )


def test_a_model_that_cannot_pack_repeats_the_text():
    model = encoder_prompt(build("llama")).eval()
    asked = [AskedText(row.tolist(), "default", LabelSet.of(SEVERAL)) for row in texts(TEXTS)]
    wanted = log_probs(model, asked)
    model._base_obstacle = "a test"
    found = log_probs(model, asked)
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@torch.no_grad()
def test_each_text_may_have_labels_of_its_own_and_greedy_is_told():
    model = encoder_prompt(build("llama")).eval()
    rows = texts(TEXTS)
    ids = torch.stack([row[:4] for row in rows])
    written = model.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)[:, 4:].tolist()
    sets = [(tuple(one), (*one[:2], (one[2] + 1) % 128), (one[0],), (5, 6)) for one in written]
    asked = [
        AskedText(row.tolist(), "default", LabelSet.of(labels[: 2 + at]))
        for at, (row, labels) in enumerate(zip(ids, sets, strict=True))
    ]
    found = label_likelihoods(model, asked)
    assert [len(one) for one in found] == [2, 3, 4, 4]
    for each, one, labels in zip(found, asked, sets, strict=True):
        for likelihood, label in zip(each, labels, strict=False):
            assert likelihood.log_prob == pytest.approx(plain(model, torch.tensor(one.ids), "default", label), abs=1e-4)
        assert [likelihood.greedy for likelihood in each[:3]] == [True, False, True][: len(each)]
