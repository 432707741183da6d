"""Models without data: tensors with shapes and no values in place of weights, and what a method makes of such a model.

A prompt of keys and values of every layer is made of the shape that a model's cache has, which is found by running a
token. A skeleton on the meta device cannot run: code asks tensors for values on the way. Its twin with tensors without
data can, under the tracker that answers for them, and tells the skeleton.
"""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig, PreTrainedModel

from ptune.config import TaskType
from ptune.errors import ModelError, PTuneError, one_line
from ptune.internals import rename_weights, tensors_of
from ptune.loading.skeleton import skeleton
from ptune.methods.apply import MethodSettings, apply_method, prompt_config
from ptune.methods.names import METHODS
from ptune.model.holds_prompts import DEFAULT_PROMPT
from ptune.model.task_model import PTunedTaskModel
from ptune.planning.tracker import LiveBytes
from ptune.prefix.deep_prompts import KeyValueShape, key_value_shape, tell_key_value_shape


def adapted(method: str, base: PreTrainedModel, settings: MethodSettings, task: TaskType) -> nn.Module:
    """A skeleton as a method makes it.

    Args:
        method: A key of `METHODS`.
        base: The skeleton.
        settings: Sizes of what the method adds.
        task: What the model is for.

    Raises:
        ConfigError: Sizes that do not fit, or a method that there is not for the task.
        ModelError: The method cannot adapt the model.
    """
    chosen = METHODS[method]
    shape = _shape_of(base.config, task) if chosen.is_deep else None
    with torch.device("meta"):
        if shape is None or task is TaskType.CAUSAL_LM:
            if shape is not None:
                tell_key_value_shape(base, shape)
            return apply_method(method, base, settings, task=task)
        model = PTunedTaskModel(base, task=task)
        tell_key_value_shape(model.prompt_base, shape)
        model.add_prompt(DEFAULT_PROMPT, prompt_config(chosen, settings))
    return model.train()


def _shape_of(config: PretrainedConfig, task: TaskType) -> KeyValueShape:
    """Of the keys and values that a model of this configuration keeps."""
    twin = skeleton(config, task=task)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with torch.device("cpu"):  # whatever device is the default where this is asked
            asked = twin if task is TaskType.CAUSAL_LM else PTunedTaskModel(twin, task=task).prompt_base
            put_without_data([twin, asked], mode)
            with mode, LiveBytes(vocab_size=0, supervised=1):
                return key_value_shape(asked)
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


def all_of(model: nn.Module) -> list[nn.Module]:
    """A model, and what it runs that is no part of it: a decoder under a classifier, as a causal language model."""
    layers = model.decoder_layers if isinstance(model, PTunedTaskModel) else None
    return [model] if layers is None else [model, layers.base]


def put_without_data(models: list[nn.Module], mode: FakeTensorMode) -> None:
    """Put tensors without data where skeletons have none at all; shared ones stay shared."""
    made: dict[int, torch.Tensor] = {}
    with mode:
        for module in dict.fromkeys(part for model in models for part in model.modules()):
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
