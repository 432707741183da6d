"""A model's LM head on hidden states of one's own choice, with whatever the model does to logits behind it.

Some models scale their logits or cap them softly, in `forward` itself. So the head is run through the model's own
`forward`, on a shallow copy whose layers are exchanged for something that returns the given hidden states.

Shapes: `S` positions, `D` hidden size, `V` vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from typing_extensions import override

from ptune.model.fused.linear import product
from ptune.model.loss import output_head

Backward = Callable[[torch.Tensor], torch.Tensor]


class _Given(nn.Module):
    """In place of a module: a result that is there already."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    @property
    def decoder(self) -> _Given:
        """OPT's causal model calls its inner model's decoder."""
        return self

    @override
    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        return self.result


def layers_of(model: PreTrainedModel) -> nn.Module | None:
    """What comes before the LM head: embeddings, layers and last norm; None where the model is not built that way."""
    layers = model._modules.get(model.base_model_prefix)  # noqa: SLF001  # attributes would resolve to the model itself
    return layers if isinstance(layers, nn.Module) else None


def head_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """`(S, V)`: the model's logits for hidden states `(S, D)` that its layers have given."""
    return _logits_of(model, hidden, {})


def _logits_of(model: PreTrainedModel, hidden: torch.Tensor, exchanged: dict[str, nn.Module]) -> torch.Tensor:
    given = _Given(BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden.unsqueeze(0)))
    twin = copy.copy(model)
    twin._modules = {**model._modules, model.base_model_prefix: given, **exchanged}  # noqa: SLF001
    logits: torch.Tensor = twin(inputs_embeds=hidden.unsqueeze(0), use_cache=False).logits
    return logits[0]


class FrozenHead:
    """The LM head of a model whose weights do not train: logits, and what a gradient of theirs means for its input.

    Args:
        model: The model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        head = output_head(model)
        assert head is not None
        weight, bias = head.weight, getattr(head, "bias", None)
        assert isinstance(weight, torch.Tensor)
        assert bias is None or isinstance(bias, torch.Tensor)
        self._weight, self._bias = weight, bias
        self._name = next((name for name, module in model._modules.items() if module is head), None)  # noqa: SLF001
        self.vocab_size = int(weight.shape[0])
        """`V`."""
        # A head of another kind, quantised for instance, is differentiated by autograd.
        self._plain = self._name is not None and isinstance(head, nn.Linear) and weight.is_floating_point()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`(S, V)` of hidden states `(S, D)`, part of the graph."""
        return head_logits(self._model, hidden)

    def with_backward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, Backward]:
        """Logits that may be overwritten, and the function that carries their gradient back.

        Args:
            hidden: `(S, D)`.

        Returns:
            `(S, V)`, and a function from a gradient of that shape, which it may overwrite, to one of `(S, D)`.
        """
        if not self._plain:
            part = hidden.detach().requires_grad_()
            with torch.enable_grad():
                whole = self.logits(part)
            return whole.detach().clone(), lambda grad: torch.autograd.grad(whole, part, grad)[0]
        assert self._name is not None
        weight = self._weight
        raw = product(hidden, weight, self._bias).requires_grad_()
        with torch.enable_grad():
            treated = _logits_of(self._model, hidden, {self._name: _Given(raw.unsqueeze(0))})
        if treated._base is raw and treated.shape == raw.shape:  # noqa: SLF001 (a tensor has no other word for it)
            return raw.detach(), lambda grad: product(grad, weight.t())
        return treated.detach().clone(), lambda grad: product(torch.autograd.grad(treated, raw, grad)[0], weight.t())
