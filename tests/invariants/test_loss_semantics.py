"""What the loss counts: whatever the batches and the path, each supervised token weighs the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from architectures import ARCHITECTURES, build
from prompting import encoder_prompt, padded, prompt_gradient, relative_error, supervised, texts
from ptune.model.wrapper import PTunedModel

LENGTHS = (9, 3, 12, 7, 4, 10, 2, 6)


def _batch(side: str = "right", *, unsupervised: int = 0) -> dict[str, torch.Tensor]:
    ids, mask = padded(texts(LENGTHS), side)
    labels = supervised(ids, mask)
    if unsupervised:
        for row, start in enumerate(mask.argmax(dim=1).tolist()):
            labels[row, start : start + unsupervised] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batch_of_eight_equals_eight_of_one_accumulated(name: str) -> None:
    model = encoder_prompt(ARCHITECTURES[name]())
    whole, gradient = prompt_gradient(model, **_batch(unsupervised=1))
    count = int((_batch(unsupervised=1)["labels"] != -100).sum())
    losses, gradients = [], []
    for row in texts(LENGTHS):
        labels = row[None].clone()
        labels[0, 0] = -100
        part = prompt_gradient(model, input_ids=row[None], labels=labels, num_items_in_batch=torch.tensor(count))
        losses.append(part[0])
        gradients.append(part[1])
    print(f"{name}: {relative_error(sum(losses), whole):.1e}, {relative_error(sum(gradients), gradient):.1e}")
    assert relative_error(sum(losses), whole) < 1e-6
    assert relative_error(sum(gradients), gradient) < 1e-5


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_without_logits_the_loss_is_the_same(name: str, side: str, prefix: bool) -> None:
    model = encoder_prompt(ARCHITECTURES[name]())
    model.capability = replace(model.capability, prefix=prefix and model.capability.prefix)
    for unsupervised in (0, 1, 3):
        batch = _batch(side, unsupervised=unsupervised)
        loss, gradient = prompt_gradient(model, **batch)
        narrow_loss, narrow_gradient = prompt_gradient(model, **batch, return_logits=False)
        assert relative_error(narrow_loss, loss) < 1e-6
        assert relative_error(narrow_gradient, gradient) < 1e-5
    assert model(**batch, return_logits=False).logits is None
    # The head is whole again afterwards.
    assert model(**batch).logits.shape[:2] == batch["input_ids"].shape


@pytest.mark.parametrize("prefix", [True, False])
def test_labels_before_a_row_begins_do_not_count(prefix: bool) -> None:
    model = encoder_prompt(build("llama"))
    model.capability = replace(model.capability, prefix=prefix)
    batch = _batch("left")
    wanted = model(**batch).loss
    careless = {**batch, "labels": batch["input_ids"].clone()}
    assert relative_error(model(**careless).loss, wanted) < 1e-6


@pytest.mark.parametrize("prefix", [True, False])
def test_nothing_supervised_gives_zero_and_zero_gradient(prefix: bool) -> None:
    model = encoder_prompt(build("llama"))
    model.capability = replace(model.capability, prefix=prefix)
    batch = _batch()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    for return_logits in (True, False):
        loss, gradient = prompt_gradient(model, **batch, return_logits=return_logits)
        assert float(loss) == 0.0
        assert float(gradient.abs().sum()) == 0.0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_without_prompt_has_the_bare_models_loss(name: str) -> None:
    base = ARCHITECTURES[name]()
    model = encoder_prompt(base)
    batch = _batch()
    with torch.no_grad():
        wanted = base(**batch)
        none = model(**batch, prompt_names=[None] * len(LENGTHS))
        with model.disable_prompt():
            disabled = model(**batch)
    real = batch["attention_mask"].bool()
    assert torch.equal(disabled.logits, wanted.logits)
    assert relative_error(disabled.loss, wanted.loss) < 1e-6
    assert relative_error(none.loss, wanted.loss) < 1e-6
    assert relative_error(none.logits[real], wanted.logits[real]) < 1e-5
    assert model(**batch).loss != wanted.loss


def test_bfloat16_loss_is_computed_in_float32() -> None:
    model = encoder_prompt(build("llama").to(torch.bfloat16)).to(torch.bfloat16)
    model.prompts.float()
    assert isinstance(model, PTunedModel)
    loss, gradient = prompt_gradient(model, **_batch())
    assert (loss.dtype, gradient.dtype) == (torch.float32, torch.float32)
    exact, _ = prompt_gradient(encoder_prompt(build("llama")), **_batch())
    assert relative_error(loss, exact) < 0.02
