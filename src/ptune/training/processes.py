"""A frozen model that is sharded over processes: refused before anything is loaded.

FSDP and DeepSpeed ZeRO-3 scatter every weight. The model's fingerprint and the prompt folder need whole weights in one
process, packed rows go past the hooks that gather them. ZeRO-1 and ZeRO-2 shard the optimizer alone, and work.
"""

from __future__ import annotations

import os

from transformers import TrainingArguments

from ptune.errors import ConfigError

_ZERO_OF_THE_WEIGHTS = 3


def check_not_sharded(args: TrainingArguments) -> None:
    """Raise `ConfigError` when training arguments or accelerate's launcher ask for sharded weights."""
    stage = getattr(getattr(args, "deepspeed_plugin", None), "zero_stage", None)
    if _asked("ACCELERATE_USE_DEEPSPEED") and stage is None:
        stage = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0"))
    if args.fsdp or _asked("ACCELERATE_USE_FSDP"):
        way = "FSDP"
    elif stage == _ZERO_OF_THE_WEIGHTS:
        way = "DeepSpeed ZeRO-3"
    else:
        return
    raise ConfigError(
        f"{way} shards the frozen model over the processes, and a prompt cannot be trained on shards.",
        hint="Leave it out: torchrun and accelerate launch alone (DDP) hold the whole model in each process, without "
        "gradients or optimizer state for it. quantization (int8, 8bit, 4bit) makes it smaller.",
    )


def _asked(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "y", "on", "t")
