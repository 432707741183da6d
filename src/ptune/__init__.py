"""ptune: P-tuning for Hugging Face language models.

The public names, under PEFT's names where PEFT has them. Each is imported when it is first used, so that `import ptune`
and `ptune --help` do not wait for torch; a type checker sees the plain imports below.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptune.answering import Answerer
    from ptune.comparison.compare import compare
    from ptune.comparison.settings import CompareSettings
    from ptune.compression.compress import compress
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
    from ptune.data.template import get_template
    from ptune.deep_config import CartridgeConfig, PrefixTuningConfig, TextTokens
    from ptune.errors import PTuneError
    from ptune.evaluation.evaluate import evaluate
    from ptune.loading.embedding_table import embed_text
    from ptune.loading.load import load_model, load_tokenizer
    from ptune.model.peft_names import (
        AutoPeftModel,
        AutoPeftModelForCausalLM,
        AutoPeftModelForFeatureExtraction,
        AutoPeftModelForQuestionAnswering,
        AutoPeftModelForSeq2SeqLM,
        AutoPeftModelForSequenceClassification,
        AutoPeftModelForTokenClassification,
        PeftConfig,
        PeftModel,
        PeftModelForCausalLM,
        PeftModelForFeatureExtraction,
        PeftModelForQuestionAnswering,
        PeftModelForSeq2SeqLM,
        PeftModelForSequenceClassification,
        PeftModelForTokenClassification,
        get_peft_model,
    )
    from ptune.model.task_model import PTunedTaskModel
    from ptune.model.wrapper import PTunedModel
    from ptune.planning.forecast import plan
    from ptune.recipe import TrainRecipe
    from ptune.task_answering import TaskAnswerer
    from ptune.training.checkpoints import last_checkpoint
    from ptune.training.train import train
    from ptune.training.trainer import PTuneTrainer
    from ptune.tuning.tune import tune
    from ptune.tuning.tune_settings import TuneSettings

__version__ = "0.1.0"

__all__ = [
    "Answerer",
    "AutoPeftModel",
    "AutoPeftModelForCausalLM",
    "AutoPeftModelForFeatureExtraction",
    "AutoPeftModelForQuestionAnswering",
    "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification",
    "AutoPeftModelForTokenClassification",
    "CartridgeConfig",
    "CompareSettings",
    "Example",
    "PTuneError",
    "PTuneTrainer",
    "PTunedModel",
    "PTunedTaskModel",
    "PackingCollator",
    "PaddingCollator",
    "PeftConfig",
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
    "PeftType",
    "PrefixTuningConfig",
    "PromptEncoderConfig",
    "PromptEncoderReparameterizationType",
    "PromptTuningConfig",
    "PromptTuningInit",
    "TaskAnswerer",
    "TaskType",
    "TextTokens",
    "TrainRecipe",
    "TuneSettings",
    "__version__",
    "compare",
    "compress",
    "embed_text",
    "evaluate",
    "get_peft_model",
    "get_template",
    "last_checkpoint",
    "load_examples",
    "load_model",
    "load_tokenizer",
    "plan",
    "train",
    "tune",
]

_HOMES = {
    "Answerer": "ptune.answering",
    "TaskAnswerer": "ptune.task_answering",
    "TrainRecipe": "ptune.recipe",
    "evaluate": "ptune.evaluation.evaluate",
    "embed_text": "ptune.loading.embedding_table",
    "get_template": "ptune.data.template",
    "load_model": "ptune.loading.load",
    "load_tokenizer": "ptune.loading.load",
    "plan": "ptune.planning.forecast",
    "train": "ptune.training.train",
    "TuneSettings": "ptune.tuning.tune_settings",
    "tune": "ptune.tuning.tune",
    "CompareSettings": "ptune.comparison.settings",
    "compare": "ptune.comparison.compare",
    "compress": "ptune.compression.compress",
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
    "AutoPeftModel": "ptune.model.peft_names",
    "AutoPeftModelForSequenceClassification": "ptune.model.peft_names",
    "AutoPeftModelForTokenClassification": "ptune.model.peft_names",
    "AutoPeftModelForQuestionAnswering": "ptune.model.peft_names",
    "AutoPeftModelForSeq2SeqLM": "ptune.model.peft_names",
    "AutoPeftModelForFeatureExtraction": "ptune.model.peft_names",
    "PeftModelForSequenceClassification": "ptune.model.peft_names",
    "PeftModelForTokenClassification": "ptune.model.peft_names",
    "PeftModelForQuestionAnswering": "ptune.model.peft_names",
    "PeftModelForSeq2SeqLM": "ptune.model.peft_names",
    "PeftModelForFeatureExtraction": "ptune.model.peft_names",
    "PTunedTaskModel": "ptune.model.task_model",
    "PeftConfig": "ptune.model.peft_names",
    "PeftModel": "ptune.model.peft_names",
    "PeftModelForCausalLM": "ptune.model.peft_names",
    "PeftType": "ptune.config",
    "PrefixTuningConfig": "ptune.deep_config",
    "CartridgeConfig": "ptune.deep_config",
    "TextTokens": "ptune.deep_config",
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
