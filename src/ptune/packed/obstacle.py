"""Whether rows can be packed into one sequence for a given frozen model, and if not, why.

Packing needs a say in who attends to whom: an architecture whose attention can be exchanged, or one that ptune has
packed layers for (BLOOM). Everything is read from the model as it is; nothing is run.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from ptune.frozen.capability import Capability
from ptune.frozen.parts import layers_of
from ptune.packed.fused import has_own_packing


def packing_obstacle(model: PreTrainedModel, capability: Capability) -> str | None:
    """What keeps `model` from packed batches, as a sentence without a full stop; None when nothing does."""
    if not capability.prefix:
        return capability.reason
    name = type(model).__name__
    if layers_of(model) is None:
        return f"{name} does not keep its layers apart from its LM head"
    if getattr(model.config.get_text_config(decoder=True), "attn_logit_softcapping", None) is not None:
        return f"{name} caps its attention scores"
    if has_own_packing(type(model)):
        return None
    if not capability.takes_position_ids:
        return f"{name} takes no position ids"
    if not model.is_backend_compatible():  # type: ignore[no-untyped-call]  # transformers' own
        return f"{name} has an attention that cannot be exchanged"
    return None


def exchanged_forward(model: PreTrainedModel) -> str | None:
    """The same for a change that may come at any time: `forward` exchanged on modules inside the model.

    accelerate spreads a model over devices in this way, and other tools change it.
    """
    if any("forward" in module.__dict__ for module in model.modules() if module is not model):
        return f"{type(model).__name__} has modules whose forward was exchanged, as for a model spread over devices"
    return None
