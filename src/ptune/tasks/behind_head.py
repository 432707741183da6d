"""A model's head on hidden states that are there already, through the model's own `forward`.

Whatever a class does behind the part that reads text (pooling, dropout, projections) is done by its own code, on a
shallow copy in which that part gives the states at hand, and the prompt's own head stands in for the frozen model's.
Decoders' classifiers look for the last token by the id of the padding token; they are told by the mask.

Shapes: `B` rows, `T` tokens of the longest row, `D` hidden size.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ptune.errors import ConfigError
from ptune.frozen.given import Given
from ptune.frozen.shards import shallow_copy
from ptune.internals import children_of
from ptune.tasks.task_parts import reads_text

_PADDING, _TEXT = 0, 1


class BehindHead:
    """The head of a model.

    Args:
        model: The model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._inner = next(name for name, child in children_of(model).items() if child is reads_text(model))
        self.config = copy.copy(model.config)
        """The model's own, but for the padding token, which is that of the mask."""
        self.config.pad_token_id = _PADDING

    def __call__(self, output: Any, mask: torch.Tensor, head: nn.ModuleDict | None) -> Any:
        """What the model's `forward` gives without labels.

        Args:
            output: Of the part that reads text: `last_hidden_state` `(B, T, D)` and the like.
            mask: `(B, T)`, 1 at text.
            head: What stands in for the model's own children.

        Raises:
            ConfigError: A part of the head that stays frozen computes in another dtype than those that train.
        """
        if head is not None:  # a head trains in float32, whatever the frozen model computes in
            dtype = next(head.parameters()).dtype
            self._check_frozen(head, dtype)
            output = type(output)(**{name: _as_dtype(value, dtype) for name, value in output.items()})
        twin = shallow_copy(self._model)
        exchanged = {self._inner: Given(output), **({} if head is None else dict(head.items()))}
        twin.__dict__["_modules"] = {**children_of(self._model), **exchanged}
        twin.__dict__["config"] = self.config
        ids = torch.where(mask.bool(), _TEXT, _PADDING)
        return twin(input_ids=ids, attention_mask=mask)

    def _check_frozen(self, head: nn.ModuleDict, dtype: torch.dtype) -> None:
        frozen = {
            name: weight.dtype
            for name, child in children_of(self._model).items()
            if child is not None and name not in head and name != self._inner
            for weight in itertools.islice(child.parameters(), 1)
        }
        others = [name for name, its in frozen.items() if its != dtype]
        if others:
            raise ConfigError(
                f"{', '.join(head)} of {type(self._model).__name__} train in {str(dtype).removeprefix('torch.')}, and "
                f"{', '.join(others)} beside them are frozen in {str(frozen[others[0]]).removeprefix('torch.')}.",
                hint=f"Name {', '.join(others)} in modules_to_save too, or load the model in float32.",
            )


def _as_dtype(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
