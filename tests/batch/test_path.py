"""Which way a batch takes, and why, as the model tells it."""

from __future__ import annotations

from typing import Any

from architectures import ARCHITECTURES, build
from prompting import checkpoint_activations, draw, encoder_prompt
from ptune import PTunedModel
from ptune.batch.path import Path, Way
from ptune.batch.text import Text


def path_of(model: PTunedModel, *, at_once: bool = False, names: Any = None, **kwargs: Any) -> Path:
    ids = draw(2, 5)
    return model.path_of(Text.of(ids), model._row_prompts(names, 2), at_once=at_once, kwargs=kwargs)


def test_packed_where_it_can_be_and_padded_for_a_reason() -> None:
    model = encoder_prompt(build("llama"))
    assert path_of(model) == Path(Way.PACKED, "")
    assert path_of(model, at_once=True) == Path(Way.PREFIX, "the logits of every position are wanted")
    found = path_of(model, output_attentions=True)
    assert found == Path(Way.PREFIX, "output_attentions: for the frozen model's own forward")
    model.pack_batches = False
    assert path_of(model) == Path(Way.PREFIX, "pack_batches is off")


def test_concatenation_says_why() -> None:
    model = encoder_prompt(build("llama")).train()
    model.pack_batches = False
    checkpoint_activations(model.base)
    assert "activation checkpointing drops a filled cache" in path_of(model).reason
    assert path_of(model, names=[None, None]).reason.endswith("no row has a prompt before it")
    mamba = encoder_prompt(ARCHITECTURES["mamba"]())
    assert path_of(mamba) == Path(Way.CONCATENATION, mamba.capability.reason)
