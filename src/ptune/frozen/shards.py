"""The frozen model's layers in shards, one a process: each layer is gathered while it runs, and let go again (FSDP2).

Fully sharded data parallelism (Zhao et al. 2023, <https://arxiv.org/abs/2304.11277>) by `torch.distributed.fsdp.
fully_shard`, for the layers alone, which take most of the memory. Embeddings, last norm and LM head stay whole in every
process: they are read in other ways than through the forward that gathers weights. What trains is no part of it.

Every process must run the same layers the same number of times, or all of them wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ptune.errors import ModelError
from ptune.frozen.fingerprint import keep_fingerprints
from ptune.frozen.parts import layers_of


def shard_layers(base: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Keep this process's part of every layer, on its device; nothing is sent before the model runs.

    Args:
        base: The frozen model, whole, on the CPU or that device; its fingerprints are kept from before.
        mesh: The processes, and the kind of their devices.

    Raises:
        ModelError: Its layers cannot be told from the rest of it, or share weights.
    """
    keep_fingerprints(base)
    layers, root = _repeated(base), layers_of(base) or base
    weights = [id(weight) for layer in layers for weight in layer.parameters()]
    if not weights or len(set(weights)) < len(weights):
        raise ModelError(
            f"{type(base).__name__} has no layers with weights of their own, and cannot be sharded.",
            hint="Leave FSDP out; device_map spreads a model over the devices of one process.",
        )
    whole = {weight for weight in root.parameters() if id(weight) not in weights}
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # The root has nothing left to shard; with it, all layers share their streams, and the next one is fetched early.
    fully_shard(root, mesh=mesh, ignored_params=whole)


def _repeated(base: PreTrainedModel) -> list[nn.Module]:
    """The model's layers, one after another."""
    count = base.config.get_text_config(decoder=True).num_hidden_layers
    lists = (one for one in base.modules() if isinstance(one, nn.ModuleList) and len(one) == count)
    return list(next(lists, ()))


def is_sharded(base: PreTrainedModel) -> bool:
    """Whether `shard_layers` was called for a model."""
    return isinstance(layers_of(base) or base, FSDPModule)


def in_shards(base: PreTrainedModel) -> bool:
    """Whether a model's weights are shards, whoever has made them (a tensor parallel plan, say)."""
    return any(isinstance(weight, DTensor) for weight in base.parameters())


def shallow_copy(module: nn.Module, replace: Callable[[type[nn.Module]], type[nn.Module]] | None = None) -> nn.Module:
    """A module with the same attributes, hooks too, as `copy.copy` makes of one that is not sharded.

    Args:
        module: The original; a copy of a sharded one has the class that it had before.
        replace: Gives the class that stands in for that one.
    """
    kind: type[Any] = next(one for one in type(module).__mro__ if not issubclass(one, FSDPModule))
    if replace is not None:
        kind = replace(kind)
    twin: nn.Module = object.__new__(kind)
    twin.__dict__.update(module.__dict__)
    return twin
