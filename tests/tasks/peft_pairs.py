"""The same prompt in ptune and in PEFT, with PEFT's random weights in both, and their gradients side by side."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import torch

import ptune
from ptune.config import TaskType
from ptune.model.task_model import PTunedTaskModel
from tasks.wide_models import build

P = 4
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "prefix": ("PrefixTuningConfig", {}),
    "projection": ("PrefixTuningConfig", {"prefix_projection": True, "encoder_hidden_size": 12}),
    "table": ("PromptTuningConfig", {}),
    "mlp": ("PromptEncoderConfig", {"encoder_hidden_size": 12}),
    "lstm": ("PromptEncoderConfig", {"encoder_hidden_size": 12, "encoder_reparameterization_type": "LSTM"}),
}
"""Name → class and arguments, which both have."""
DEEP, VECTORS = ("prefix", "projection"), ("table", "mlp", "lstm")


def config_of(library: Any, kind: str, **values: Any) -> Any:
    """A configuration of a kind."""
    name, own = KINDS[kind]
    return getattr(library, name)(num_virtual_tokens=P, **own, **values)


def pefts(name: str, task: TaskType, kind: str, *, seed: int = 0, **overrides: Any) -> Any:
    """PEFT's model with random weights, in eval mode."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        # For an encoder-decoder PEFT has as many vectors again, which it does not use; its LSTM runs through them too.
        config = config_of(peft, kind, task_type=task.value, num_transformer_submodules=None if kind in DEEP else 1)
        return peft.get_peft_model(build(name, task, **overrides), config).eval()


def pair(name: str, task: TaskType, kind: str, *, own: Any = None, **overrides: Any) -> tuple[PTunedTaskModel, Any]:
    """Ours and PEFT's.

    Args:
        name: An architecture.
        task: What it is for.
        kind: Of `KINDS`.
        own: Values of ptune's configuration alone.
        overrides: Of the model's configuration.
    """
    theirs = pefts(name, task, kind, **overrides)
    mine: Any = ptune.get_peft_model(build(name, task, **overrides), config_of(ptune, kind, **(own or {}))).eval()
    encoder = mine.prompts["default"]
    state = {key: value for key, value in encoder.state_dict().items() if key.startswith("head.")}
    state |= theirs.prompt_encoder["default"].state_dict()
    encoder.load_state_dict(state, strict=True)
    return mine, theirs


def run(model: Any, **batch: Any) -> Any:
    """The output, with no word about padding tokens and the like."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(**batch)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Every trainable parameter's gradient, under names that both have.

    Raises:
        AssertionError: One has none.
    """
    found = {}
    for name, value in model.named_parameters():
        if value.requires_grad:
            assert value.grad is not None, name
            found[_plain(name)] = value.grad
    return found


def _plain(name: str) -> str:
    """`prompts.default.X`, `prompt_encoder.default.X` → X; `….head.M.X`, `….M.modules_to_save.default.X` → M.X."""
    if "modules_to_save" in name:
        before, _, after = name.partition(".modules_to_save.default")
        return before.rpartition(".")[2] + after
    return name.partition(".default.")[2].removeprefix("head.")
