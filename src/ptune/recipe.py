"""Everything `ptune train` can be told beyond `transformers.TrainingArguments`: one field is a flag, a YAML key and a Python argument.

Kept free of torch and transformers, so that help and checks of flags are quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ptune.config import PromptEncoderConfig, PromptTuningInit
from ptune.errors import ConfigError, unknown

ENCODER_NAMES = ("mlp", "lstm", "residual", "embedding")
INIT_NAMES = ("random", "vocab", "text")
LEARNING_RATES = {"mlp": 1e-3, "lstm": 1e-3, "residual": 5e-3, "embedding": 3e-2}
"""Default rate for each encoder, from trials on SmolLM2-135M; see docs/concepts.md."""

_INIT = {"random": PromptTuningInit.RANDOM, "vocab": PromptTuningInit.SAMPLE_VOCAB, "text": PromptTuningInit.TEXT}


def _flag(default: Any, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": text, **metadata})


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """What to train, on what, and how the prompt encoder is built. The field's help is its documentation."""

    model: str = _flag("", "hub id, folder, .gguf file, or builtin:smollm2-135m", required=True)
    data: str = _flag("", "JSON, JSONL, CSV, Parquet, Arrow folder, folder of such files, or hub id", required=True)
    output: str = _flag("", "folder for the prompt; checkpoints lie in OUTPUT/checkpoint-N", required=True)
    overwrite: bool = _flag(False, "replace what an earlier run left in OUTPUT")
    encoder: str = _flag("mlp", "prompt encoder", choices=ENCODER_NAMES)
    num_virtual_tokens: int = _flag(10, "virtual tokens")
    encoder_hidden_size: int | None = _flag(None, "width of the encoder's hidden layers (default: the model's)")
    encoder_num_layers: int = _flag(2, "LSTM layers, or hidden layers of the MLP")
    encoder_dropout: float = _flag(0.0, "dropout inside the encoder")
    init: str | None = _flag(None, "start of the prompt (default: text with --init-text, else random)", choices=INIT_NAMES)
    init_text: str | None = _flag(None, "start from this text's vectors, for example a description of the task")
    template: str = _flag("tutorial", "tutorial, chat, a text with {instruction}, {input}, {output}, or @file")
    columns: Mapping[str, str] | None = _flag(None, "columns of other names, as instruction=QUESTION output=ANSWER", nargs="+")
    split: str = _flag("train", "split of a hub data set or Arrow folder")
    limit: int | None = _flag(None, "use only the first rows")
    max_length: int = _flag(256, "longest row in tokens, template included, virtual tokens not")
    eval_data: str | None = _flag(None, "held-out data, for the loss before and after")
    eval_rows: int = _flag(0, "hold out this many random rows of DATA instead")
    dtype: str = _flag("auto", "weights of the frozen model: auto (float32 on CPU, bfloat16 on CUDA), float32, bfloat16, float16")
    revision: str | None = _flag(None, "revision of the model on the hub")
    trust_remote_code: bool = _flag(False, "run model code that comes from the hub")
    num_proc: int | None = _flag(None, "processes for tokenization")

    def __post_init__(self) -> None:
        faults = [f"{item.name} is needed" for item in fields(self) if item.metadata.get("required") and not getattr(self, item.name)]
        for name, known in (("encoder", ENCODER_NAMES), ("init", INIT_NAMES)):
            value = getattr(self, name)
            if value is not None and value not in known:
                faults.append(str(unknown(name, str(value), known)))
        for name in ("num_virtual_tokens", "max_length", "encoder_num_layers"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                faults.append(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.limit is not None and self.limit < 1:
            faults.append(f"limit must be at least 1, not {self.limit}")
        if self.eval_rows < 0:
            faults.append(f"eval_rows must not be negative, not {self.eval_rows}")
        if self.eval_data and self.eval_rows:
            faults.append("eval_data and eval_rows exclude each other")
        if self.init == "text" and not self.init_text:
            faults.append("init=text needs init_text")
        if self.init_text is not None and not self.init_text.strip():
            faults.append("init_text is empty")
        if self.init_text is not None and self.init in ("random", "vocab"):
            faults.append(f"init_text is given, but init is {self.init}")
        if faults:
            raise ConfigError(" | ".join(faults))

    def prompt_config(self) -> PromptEncoderConfig:
        """The configuration of the prompt this recipe describes."""
        start = _INIT[self.init or ("text" if self.init_text else "random")]
        return PromptEncoderConfig(
            num_virtual_tokens=self.num_virtual_tokens,
            encoder_reparameterization_type=self.encoder.upper(),
            encoder_hidden_size=self.encoder_hidden_size,
            encoder_num_layers=self.encoder_num_layers,
            encoder_dropout=self.encoder_dropout,
            init=start,
            init_text=self.init_text,
            base_model_name_or_path=self.model,
            revision=self.revision,
        )

    def trainer_defaults(self) -> dict[str, Any]:
        """Values for `TrainingArguments` that suit a soft prompt; each can be overridden under its own name."""
        return {
            "learning_rate": LEARNING_RATES[self.encoder],
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.05,
            "weight_decay": 0.0,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
            "logging_steps": 10,
            "logging_first_step": True,
            "train_sampling_strategy": "group_by_length",
            "save_total_limit": 2,
            "eval_strategy": "epoch" if self.eval_data or self.eval_rows else "no",
            "report_to": "none",
            "prediction_loss_only": True,
            "dataloader_pin_memory": False,
        }
