"""What a model calls its cache: `cache` since transformers 5.24, before that `past_key_values`, or `cache_params`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ptune.internals import keeps_state

CACHE_NAMES = ("cache", "past_key_values", "cache_params")


def cache_argument(model: nn.Module) -> str | None:
    """The name under which a model takes its cache; None where it takes none."""
    return _name_in(type(model))  # type: ignore[arg-type]  # a class is hashable


@cache
def _name_in(kind: Any) -> str | None:
    for one in kind.__mro__:  # a class may hand on to its base what it does not look at
        arguments = inspect.signature(vars(one)["forward"]).parameters if "forward" in vars(one) else {}
        for name in CACHE_NAMES:
            if name in arguments:
                return name
    return None


def as_cache(model: nn.Module, filled: Any) -> dict[str, Any]:
    """A cache as the argument that this model takes it by."""
    name = cache_argument(model)
    assert name is not None
    return {name: filled}


def cache_in(values: Mapping[str, Any]) -> Any:
    """The cache among the arguments or outputs of a model; None where there is none."""
    return next((values[name] for name in CACHE_NAMES if values.get(name) is not None), None)


def state_alone(model: PreTrainedModel) -> bool:
    """Whether a model keeps a running state and no keys and values at all, as Mamba does."""
    config = model.config.get_text_config(decoder=True)
    return keeps_state(model) and getattr(config, "num_attention_heads", None) is None
