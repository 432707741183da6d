"""A model's LM head on hidden states of one's own choice, with whatever the model does around it.

Some models scale the hidden states before the head (MiniCPM3), project them (ELECTRA), scale the logits behind it or
cap them softly, in `forward` itself. So the head is run through the model's own `forward`, on a shallow copy whose
layers are exchanged for something that returns the given hidden states, and None for all else that `forward` may read
of them (router logits, states of pictures). The weights' product is taken out of autograd only where the head was
seen to be given the hidden states as they are.

Shapes: `S` positions, `D` hidden size, `V` vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from ptune.frozen.given import Given, LayersOutput
from ptune.frozen.parts import output_head
from ptune.frozen.product import product
from ptune.internals import children_of, viewed

Backward = Callable[[torch.Tensor], torch.Tensor]


def head_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """`(S, V)`: the model's logits for hidden states `(S, D)` that its layers have given."""
    return _logits_of(model, hidden, {})


def _logits_of(model: PreTrainedModel, hidden: torch.Tensor, exchanged: dict[str, nn.Module]) -> torch.Tensor:
    given = Given(LayersOutput(last_hidden_state=hidden.unsqueeze(0)))
    twin = copy.copy(model)
    twin.__dict__["_modules"] = {**children_of(model), model.base_model_prefix: given, **exchanged}
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
        self._name = next((name for name, module in children_of(model).items() if module is head), None)
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
        if self._plain:
            found = self._taken_apart(hidden)
            if found is not None:
                return found
            self._plain = False
        part = hidden.detach().requires_grad_()
        with torch.enable_grad():
            whole = self.logits(part)
        return whole.detach().clone(), lambda grad: torch.autograd.grad(whole, part, grad)[0]

    def _taken_apart(self, hidden: torch.Tensor) -> tuple[torch.Tensor, Backward] | None:
        """The same, with the head's product outside autograd; None where something stands before the head."""
        assert self._name is not None
        weight = self._weight
        raw = product(hidden, weight, self._bias).requires_grad_()
        with torch.enable_grad():
            head = Given(raw.unsqueeze(0), expected=hidden, weight=weight)
            treated = _logits_of(self._model, hidden, {self._name: head})
        if not head.as_expected:
            return None
        if treated is not raw and viewed(treated) is raw and treated.shape == raw.shape:
            return raw.detach(), lambda grad: product(grad, weight.t())
        return treated.detach().clone(), lambda grad: product(torch.autograd.grad(treated, raw, grad)[0], weight.t())
