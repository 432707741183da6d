"""A prompt measured against a teacher: on every way what the logits of whole rows give, one row at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from architectures import ARCHITECTURES, VOCABULARY, build
from prompting import add_tokens_as_prompt, draw, encoder_prompt, relative_error, texts
from ptune.data.collate import PackingCollator, PaddingCollator
from ptune.data.labels import IGNORE_INDEX
from ptune.data.soft_labels import TEACHER_IDS, TEACHER_LOG_PROBS, SoftLabels
from ptune.deep_config import PrefixTuningConfig
from ptune.model.taught import divergence, likeliest_tokens, soft_labels
from ptune.model.wrapper import PTunedModel

LENGTHS = (5, 14, 2, 9)
KEPT = 4
DEEP = ("llama", "gpt2", "bloom", "gemma3", "mistral", "opt")
COLLATORS = {
    "packed": PackingCollator(),
    "right": PaddingCollator(0),
    "left": PaddingCollator(0, padding_side="left"),
}


def rows(*, first: bool = False) -> list[dict[str, Any]]:
    """Rows with a question of some tokens and a teacher's tokens for the rest; `first`: the first token too."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for ids in texts(LENGTHS):
        labels = ids.clone()
        labels[: 0 if first else max(1, len(ids) // 3)] = IGNORE_INDEX
        count = int((labels != IGNORE_INDEX).sum())
        best = torch.randn(count, VOCABULARY, generator=generator).mul(2).log_softmax(1).topk(KEPT)
        columns = {TEACHER_IDS: best.indices.flatten().tolist(), TEACHER_LOG_PROBS: best.values.flatten().tolist()}
        made.append({"input_ids": ids.tolist(), "labels": labels.tolist(), **columns})
    return made


def deep_prompt(architecture: str) -> PTunedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return PTunedModel(build(architecture), PrefixTuningConfig(num_virtual_tokens=5))


PROMPTED = {
    **{f"{name}, vectors": lambda name=name: encoder_prompt(build(name)) for name in ARCHITECTURES},
    **{f"{name}, keys and values": lambda name=name: deep_prompt(name) for name in DEEP},
}


def from_logits(model: PTunedModel, rows: list[dict[str, Any]], names: list[str | None] | None = None) -> torch.Tensor:
    """The divergence summed over positions, each row alone, with the definition written out."""
    total = torch.zeros((), dtype=torch.float64)
    for number, row in enumerate(rows):
        given = torch.tensor([row["input_ids"]])
        own = None if names is None else [names[number]]
        logits = model(input_ids=given, prompt_names=own).logits[0].double().log_softmax(1)
        places = [at for at, label in enumerate(row["labels"]) if label != IGNORE_INDEX]
        ids = torch.tensor(row[TEACHER_IDS]).view(len(places), -1)
        log_probs = torch.tensor(row[TEACHER_LOG_PROBS]).double().view(len(places), -1)
        for place, chosen, taught in zip(places, ids, log_probs, strict=True):
            if place:
                mine = logits[place - 1]
                left, own_left = 1 - taught.exp().sum(), 1 - mine[chosen].exp().sum()
                total = total + (taught.exp() * (taught - mine[chosen])).sum() + left * (left / own_left).log()
    return total


def gradients(model: PTunedModel, loss: torch.Tensor) -> torch.Tensor:
    trained = [one for one in model.prompts[model.active_prompt].parameters() if one.requires_grad]
    return torch.cat([one.flatten() for one in torch.autograd.grad(loss, trained)])


def collators(model: PTunedModel) -> dict[str, Any]:
    return {name: one for name, one in COLLATORS.items() if name != "packed" or model.packs}


def test_what_packs_is_packed():
    assert [name for name in ARCHITECTURES if not PTunedModel(build(name)).packs] == ["mamba"]


@pytest.mark.parametrize("prompted", PROMPTED)
def test_loss_and_gradient_on_every_way(prompted: str):
    model = PROMPTED[prompted]()
    data = rows()
    count = sum(label != IGNORE_INDEX for row in data for label in row["labels"])
    wanted = from_logits(model, data)
    wanted_gradient = gradients(model, wanted)
    assert float(wanted_gradient.norm()) > 1e-2
    for name, collate in collators(model).items():
        total = divergence(model, collate(data), num_items=1)
        assert relative_error(total, wanted) < 1e-5, name
        assert relative_error(gradients(model, total), wanted_gradient) < 1e-4, name
        mean = divergence(model, collate(data))
        assert float(mean.detach()) == pytest.approx(float(wanted.detach()) / count, rel=1e-5), name
        assert relative_error(gradients(model, mean), wanted_gradient / count) < 1e-4, name
        alone = sum(divergence(model, collate([row]), num_items=count) for row in data)
        assert relative_error(alone, wanted / count) < 1e-5, name
        assert relative_error(gradients(model, alone), wanted_gradient / count) < 1e-4, name


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom", "gemma3", "mamba"])
def test_a_prompt_for_each_row(architecture: str):
    model = encoder_prompt(build(architecture)).eval()
    add_tokens_as_prompt(model, "other", draw(1, 3, seed=5)[0])
    names = ["other", None, "default", None]
    data = rows()
    wanted = from_logits(model, data, names)
    assert relative_error(from_logits(model, data), wanted) > 1e-3
    for name, collate in collators(model).items():
        assert relative_error(divergence(model, collate(data), prompt_names=names, num_items=1), wanted) < 1e-5, name


@torch.no_grad()
@pytest.mark.parametrize("prompted", [name for name in PROMPTED if name.startswith(("llama", "gpt2", "mamba"))])
def test_first_tokens_are_left_out(prompted: str):
    model = PROMPTED[prompted]().eval()
    data = rows(first=True)
    assert all(row["labels"][0] != IGNORE_INDEX for row in data)
    count = sum(LENGTHS) - len(LENGTHS)
    wanted = from_logits(model, data)
    for name, collate in collators(model).items():
        batch = collate(data)
        labels = batch["labels"].clone()
        assert relative_error(divergence(model, batch, num_items=1), wanted) < 1e-5, name
        assert float(divergence(model, batch)) == pytest.approx(float(wanted) / count, rel=1e-5), name
        assert torch.equal(batch["labels"], labels)
    only = [{**row, "labels": [row["labels"][0], *[-100] * (len(row["labels"]) - 1)]} for row in data]
    only = [{**row, **{name: row[name][:KEPT] for name in (TEACHER_IDS, TEACHER_LOG_PROBS)}} for row in only]
    assert float(divergence(model, PaddingCollator(0)(only))) == 0


def test_items_as_a_tensor():
    model = encoder_prompt(build("llama"))
    batch = PackingCollator()(rows())
    plain, tensor = (divergence(model, batch, num_items=one) for one in (7, torch.tensor(7)))
    assert float(plain.detach()) == float(tensor.detach())


@torch.no_grad()
@pytest.mark.parametrize("top_k", [1, 6, VOCABULARY, 10 * VOCABULARY])
@pytest.mark.parametrize("prompted", [name for name in PROMPTED if "qwen" not in name])
def test_soft_labels_are_the_models_own(prompted: str, top_k: int):
    model = PROMPTED[prompted]().eval()
    data = rows()
    wanted = torch.cat(
        [
            model(input_ids=torch.tensor([row["input_ids"]]))
            .logits[0]
            .log_softmax(1)[[at - 1 for at, label in enumerate(row["labels"]) if label != IGNORE_INDEX]]
            for row in data
        ]
    )
    best = wanted.topk(min(top_k, VOCABULARY))
    for name, collate in collators(model).items():
        found = soft_labels(model, collate(data), top_k)
        assert found.ids.shape == (len(wanted), min(top_k, VOCABULARY)), name
        torch.testing.assert_close(found.log_probs, best.values, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(wanted.gather(1, found.ids), found.log_probs, atol=2e-5, rtol=1e-5)
        assert all(len(set(ids)) == len(ids) for ids in found.ids.tolist())
        assert torch.equal(likeliest_tokens(model, collate(data)), wanted.argmax(1)), name


@torch.no_grad()
def test_soft_labels_of_many_positions_are_made_in_parts(monkeypatch: pytest.MonkeyPatch):
    model = encoder_prompt(build("llama")).eval()
    batch = PackingCollator()(rows())
    whole = soft_labels(model, batch, 5)
    monkeypatch.setattr("ptune.model.taught.positions_at_once", lambda *_: 3)
    parts = soft_labels(model, batch, 5)
    assert torch.equal(parts.ids, whole.ids)
    torch.testing.assert_close(parts.log_probs, whole.log_probs)


@torch.no_grad()
@pytest.mark.parametrize("prompted", ["llama, vectors", "gemma3, keys and values", "mamba, vectors"])
def test_nothing_is_between_a_model_and_its_own_soft_labels(prompted: str):
    model = PROMPTED[prompted]().eval()
    collate = PackingCollator() if model.packs else PaddingCollator(0)
    bare = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows()]
    made: SoftLabels = soft_labels(model, collate(bare), KEPT)
    counts = [sum(label != IGNORE_INDEX for label in row["labels"]) for row in bare]
    parts = zip(bare, made.ids.split(counts), made.log_probs.split(counts), strict=True)
    taught = [{**row, TEACHER_IDS: ids, TEACHER_LOG_PROBS: log_probs} for row, ids, log_probs in parts]
    assert abs(float(divergence(model, collate(taught)))) < 1e-5
    other = float(divergence(model, collate(taught), prompt_names=[None] * len(taught)))
    assert math.isfinite(other)
    assert other > 1e-2
