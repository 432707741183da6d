"""The name under which a model takes its cache, in every version of transformers, and its use under that name."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.cache_utils import DynamicCache

from architectures import build
from ptune.frozen.cache_argument import CACHE_NAMES, as_cache, cache_argument, cache_in, state_alone


class _HandsOn(LlamaForCausalLM):
    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        return super().forward(input_ids, **kwargs)


@pytest.mark.parametrize("kind", ["llama", "bloom", "opt", "mamba"])
def test_the_name_is_that_of_its_forward(kind: str) -> None:
    model = build(kind)
    name = cache_argument(model)
    assert name in CACHE_NAMES
    assert name in inspect.signature(model.forward).parameters


def test_a_class_that_hands_on_what_it_does_not_look_at_has_its_bases_name() -> None:
    assert cache_argument(_HandsOn(build("llama").config)) == cache_argument(build("llama"))


def test_a_module_without_a_cache_has_none() -> None:
    assert cache_argument(torch.nn.Linear(2, 2)) is None


def test_a_cache_goes_in_and_comes_out() -> None:
    model, cache = build("llama"), DynamicCache()
    output = model(torch.tensor([[1, 2, 3]]), **as_cache(model, cache), use_cache=True)
    assert cache.get_seq_length() == 3
    assert cache_in(output) is cache
    assert cache_in({"logits": output.logits}) is None


def test_what_keeps_a_state_alone() -> None:
    assert state_alone(build("mamba"))
    assert not state_alone(build("llama"))
