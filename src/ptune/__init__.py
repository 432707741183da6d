"""ptune: P-tuning for Hugging Face language models.

The public names, under PEFT's names where PEFT has them. Each is imported when it is first used, so that `import ptune`
and `ptune --help` do not wait for torch; a type checker sees the plain imports below.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptune.comparison.run import compare
    from ptune.comparison.settings import CompareSettings
    from ptune.config import (
        PeftType,
        PromptEncoderConfig,
        PromptEncoderReparameterizationType,
        PromptTuningConfig,
        PromptTuningInit,
        TaskType,
    )
    from ptune.data.collate import PackingCollator, PaddingCollator
    from ptune.data.records import Example, load_examples
    from ptune.errors import PTuneError
    from ptune.model.peft_names import (
        AutoPeftModelForCausalLM,
        PeftConfig,
        PeftModel,
        PeftModelForCausalLM,
        get_peft_model,
    )
    from ptune.model.wrapper import PTunedModel
    from ptune.training.checkpoints import last_checkpoint
    from ptune.training.trainer import PTuneTrainer

__version__ = "0.1.0"

__all__ = [
    "AutoPeftModelForCausalLM",
    "CompareSettings",
    "Example",
    "PTuneError",
    "PTuneTrainer",
    "PTunedModel",
    "PackingCollator",
    "PaddingCollator",
    "PeftConfig",
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftType",
    "PromptEncoderConfig",
    "PromptEncoderReparameterizationType",
    "PromptTuningConfig",
    "PromptTuningInit",
    "TaskType",
    "__version__",
    "compare",
    "get_peft_model",
    "last_checkpoint",
    "load_examples",
]

_HOMES = {
    "CompareSettings": "ptune.comparison.settings",
    "compare": "ptune.comparison.run",
    "Example": "ptune.data.records",
    "PTuneError": "ptune.errors",
    "PTuneTrainer": "ptune.training.trainer",
    "PTunedModel": "ptune.model.wrapper",
    "PackingCollator": "ptune.data.collate",
    "PaddingCollator": "ptune.data.collate",
    "PromptEncoderConfig": "ptune.config",
    "PromptEncoderReparameterizationType": "ptune.config",
    "PromptTuningConfig": "ptune.config",
    "PromptTuningInit": "ptune.config",
    "TaskType": "ptune.config",
    "get_peft_model": "ptune.model.peft_names",
    "AutoPeftModelForCausalLM": "ptune.model.peft_names",
    "PeftConfig": "ptune.model.peft_names",
    "PeftModel": "ptune.model.peft_names",
    "PeftModelForCausalLM": "ptune.model.peft_names",
    "PeftType": "ptune.config",
    "last_checkpoint": "ptune.training.checkpoints",
    "load_examples": "ptune.data.records",
}


def __getattr__(name: str) -> Any:
    """The public name, imported from its home on first use."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
