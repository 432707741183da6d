"""A wrapper that other libraries take for the model it wraps, and that lets nothing lead around the prompt.

transformers, TRL and others ask for a model's class: `Trainer` saves with `save_pretrained` what is a
`PreTrainedModel`, and the bare state of anything else; label smoothing and pipelines know causal models by the names
of their classes. As object proxies do (`wrapt.ObjectProxy`, `unittest.mock`), the wrapper answers with the class of
what it wraps, while `type(model)` and `isinstance(model, PTunedModel)` say what it is.

What the wrapper has no attribute for is the frozen model's: its configuration, device, LM head. Not handed on are the
frozen model's layers, under whatever name, since whoever calls them leaves the prompt out: `base_model` gives them
with the prompt in front, as TRL runs them; `get_base_model()` gives the frozen model.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ptune.errors import ConfigError
from ptune.frozen.parts import output_head
from ptune.internals import children_of


class StandsIn(nn.Module):
    """Acts as the frozen model that it holds as `base`."""

    base: PreTrainedModel

    @property  # type: ignore[misc]  # object has a writable one
    def __class__(self) -> type:
        """The frozen model's, for whoever asks an instance for its class."""
        base = self.__dict__.get("_modules", {}).get("base")
        return type(self) if base is None else type(base)

    def __reduce_ex__(self, _protocol: Any) -> Any:
        # pickle compares the class it is given with what the instance says.
        return _empty, (type(self),), self.__dict__.copy()

    def __repr__(self) -> str:
        return super().__repr__().replace(type(self.base).__name__, type(self).__name__, 1)

    def __getattr__(self, name: str) -> Any:
        """What the wrapper does not have is the frozen model's: `config`, `device`, `lm_head` and the rest."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base":
                raise
        child = children_of(self.base).get(name)
        if child is not None and child is not output_head(self.base) and _embeds(child, self.base):
            raise AttributeError(
                f"{type(self).__name__} has no {name!r}, which would lead around the prompt. The frozen model's own is "
                f"get_base_model().{name}; with the prompt in front it is base_model."
            )
        return getattr(self.base, name)

    def get_base_model(self) -> PreTrainedModel:
        """The frozen model, without any prompt."""
        return self.base

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """What `to`, `half`, `cuda` and the like do; the prompt encoders stay float32 (or float64)."""
        for name, child in children_of(self).items():
            own = fn if name == "base" else partial(_as_precise, fn)
            if child is not None:
                child._apply(own, recurse)  # type: ignore[no-untyped-call]  # noqa: SLF001  # torch's own, as here
        return self


def _empty(kind: Any) -> Any:
    return kind.__new__(kind)


def _embeds(child: nn.Module, base: PreTrainedModel) -> bool:
    """Whether a part of the model begins at the token embeddings, and so is the model without its head."""
    table = base.get_input_embeddings()
    return any(module is table for module in child.modules()) and child is not table


def _as_precise(fn: Any, tensor: torch.Tensor) -> torch.Tensor:
    """What a function makes of a tensor, but for a coarser kind of number."""
    made: torch.Tensor = fn(tensor)
    if made.is_floating_point() and tensor.is_floating_point() and made.itemsize < tensor.itemsize:
        return tensor.to(made.device)
    return made


def check_transformers_arguments(given: dict[str, Any]) -> None:
    """Take out of `save_pretrained`'s arguments what is transformers' own and has no meaning for a prompt folder.

    Raises:
        ConfigError: A pickle is asked for.
    """
    for name in ("state_dict", "save_function", "max_shard_size", "variant", "save_peft_format"):
        given.pop(name, None)
    if given.pop("safe_serialization", True) is False:
        raise ConfigError("safe_serialization=False would write a pickle; a prompt is saved as safetensors.")
