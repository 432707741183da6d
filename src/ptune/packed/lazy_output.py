"""What `forward` gives when only the loss was needed: logits are computed when somebody reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast
from typing_extensions import override


class LazyOutput(CausalLMOutputWithPast):
    """A loss, and logits on demand: `output.logits` or `output["logits"]`.

    Full logits are the largest tensor of a training step by far, and training reads the loss alone. As long as nobody
    has read them they are not among the output's keys.
    """

    _make: Callable[[], torch.Tensor] | None = None

    @classmethod
    def of(cls, loss: torch.Tensor | None, make: Callable[[], torch.Tensor]) -> LazyOutput:
        """An output whose logits are what `make` gives."""
        output = cls(loss=loss)
        object.__setattr__(output, "_make", make)
        return output

    @override
    def __getattribute__(self, name: str) -> Any:
        if name == "logits":
            make = object.__getattribute__(self, "_make")
            if make is not None:
                object.__setattr__(self, "_make", None)
                self.logits = make()
        return super().__getattribute__(name)

    @override
    def __getitem__(self, key: Any) -> Any:
        return self.logits if key == "logits" else super().__getitem__(key)  # type: ignore[no-untyped-call]
