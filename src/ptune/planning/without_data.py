"""Models without data: tensors with shapes and no values in place of weights, and what a method needs of such a model.

A prompt of keys and values of every layer is made of the shape that a model's cache has, which is found by running a
token. A skeleton on the meta device cannot run: code asks tensors for values on the way. Its twin with tensors without
data can, under the tracker that answers for them, and tells the skeleton.
"""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig, PreTrainedModel

from ptune.errors import ModelError, PTuneError, one_line
from ptune.internals import rename_weights, tensors_of
from ptune.loading.skeleton import skeleton
from ptune.methods.names import METHODS
from ptune.planning.tracker import LiveBytes
from ptune.prefix.deep_prompts import KeyValueShape, key_value_shape, tell_key_value_shape


def skeleton_for(method: str, config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model without weights that a method can be put on.

    Raises:
        ModelError: The configuration is no causal language model's, or its keys and values are not of one shape.
    """
    base = skeleton(config, dtype)
    if METHODS[method].is_deep:
        tell_key_value_shape(base, _shape_of(config))
    return base


def _shape_of(config: PretrainedConfig) -> KeyValueShape:
    """Of the keys and values that a model of this configuration keeps."""
    twin = skeleton(config)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with torch.device("cpu"):  # whatever device is the default where this is asked
            put_without_data(twin, mode)
            with mode, LiveBytes(vocab_size=0, supervised=1):
                return key_value_shape(twin)
    except PTuneError:
        raise
    except Exception as error:  # whatever the model's own code raises
        raise cannot_be_simulated(twin, error) from error


def cannot_be_simulated(base: nn.Module, error: Exception) -> ModelError:
    """What is said of a model whose code asks for values."""
    return ModelError(
        f"{type(base).__name__} cannot be simulated: {one_line(error)[:200].rstrip('.')}.",
        hint="Measure with ptune compare.",
    )


def put_without_data(model: nn.Module, mode: FakeTensorMode) -> None:
    """Put tensors without data where the skeleton has none at all; shared ones stay shared."""
    made: dict[int, torch.Tensor] = {}
    with mode:
        for module in model.modules():
            for held in tensors_of(module):
                for name, tensor in held.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in made:
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                        is_weight = isinstance(tensor, nn.Parameter)
                        made[id(tensor)] = nn.Parameter(fake, requires_grad=tensor.requires_grad) if is_weight else fake
                    held[name] = made[id(tensor)]
            if isinstance(module, nn.RNNBase):
                rename_weights(module)
