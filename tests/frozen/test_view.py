"""The view of a frozen model: other code on the same weights, and the model itself untouched."""

from __future__ import annotations

import copy
import pickle
import threading

import torch
from torch import nn

from architectures import build
from prompting import encoder_prompt, padded, prompt_gradient, relative_error, supervised, texts
from ptune.frozen.view import ModelView
from ptune.packed.fused import replacement


def _batch() -> dict[str, torch.Tensor]:
    ids, mask = padded(texts((9, 3, 12, 7)), "right")
    return {"input_ids": ids, "attention_mask": mask, "labels": supervised(ids, mask)}


def test_the_model_itself_stays_as_it_was() -> None:
    base = build("llama")
    kinds, settings = [type(module) for module in base.modules()], base.config.to_dict()
    implementation, layer = base.config._attn_implementation, dict(base.model.layers[0].__dict__)
    view = ModelView(base, replacement).current()
    assert [type(module) for module in base.modules()] == kinds
    assert base.config.to_dict() == settings
    assert base.config._attn_implementation == implementation
    assert base.model.layers[0].__dict__ == layer
    assert type(view.model.layers[0].mlp) is not type(base.model.layers[0].mlp)
    for mine, theirs in zip(view.parameters(), base.parameters(), strict=True):
        assert mine is theirs


def test_changes_of_the_model_are_taken_over() -> None:
    base = build("llama")
    keeper = ModelView(base, replacement)
    view = keeper.current()
    base.train()
    base.double()
    assert keeper.current() is view
    assert all(module.training for module in view.modules())
    assert view.model.layers[0].mlp.up_proj.weight.dtype is torch.float64
    base.gradient_checkpointing_enable()
    assert keeper.current().is_gradient_checkpointing
    base.model.layers[1].mlp.up_proj = nn.Linear(32, 64, bias=False)
    assert keeper.current().model.layers[1].mlp.up_proj.weight is base.model.layers[1].mlp.up_proj.weight


def test_an_exchanged_weight_counts_at_the_next_step() -> None:
    model = encoder_prompt(build("llama"))
    before, _ = prompt_gradient(model, **_batch())
    with torch.no_grad():
        model.base.model.layers[0].mlp.up_proj.weight.mul_(2)
    after, _ = prompt_gradient(model, **_batch())
    model.pack_batches = False
    wanted, _ = prompt_gradient(model, **_batch())
    assert relative_error(after, wanted) < 1e-6
    assert relative_error(after, before) > 1e-3


def test_copies_of_a_model_have_views_of_their_own() -> None:
    model = encoder_prompt(build("llama"))
    loss, gradient = prompt_gradient(model, **_batch())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            model.base.lm_head.weight.mul_(1.5)
        twin_loss, twin_gradient = prompt_gradient(twin, **_batch())
        assert relative_error(twin_loss, loss) < 1e-6
        assert relative_error(twin_gradient, gradient) < 1e-5
        with torch.no_grad():
            model.base.lm_head.weight.div_(1.5)


def test_threads_that_train_do_not_meet() -> None:
    model = encoder_prompt(build("llama"))
    batches = [
        dict(zip(("input_ids", "attention_mask"), padded(texts(lengths, seed=at), "right"), strict=True))
        for at, lengths in enumerate([(9, 3), (4, 12, 7), (5,), (2, 2, 2, 20)])
    ]
    for batch in batches:
        batch["labels"] = supervised(batch["input_ids"], batch["attention_mask"])
    wanted = [float(model(**batch, return_logits=False).loss) for batch in batches]
    found: dict[int, list[float]] = {}

    def work(index: int) -> None:
        found[index] = [float(model(**batches[index], return_logits=False).loss) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {index: [value] * 10 for index, value in enumerate(wanted)}
