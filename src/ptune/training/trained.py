"""Which model a trainer trains in ptune's own way."""

from __future__ import annotations

import logging

from accelerate import DistributedType
from transformers import Trainer

from ptune.internals import missing_trainer_names
from ptune.model.prompted import PromptedModel

_WHOLE_MODEL = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""Where each process holds every parameter, and gradients meet at the last micro-batch of a step."""
_log = logging.getLogger("ptune")


def trained_prompt(trainer: Trainer) -> PromptedModel | None:
    """The model; None where everything is left to `transformers.Trainer`.

    That is so for models without prompts, under DeepSpeed and FSDP, which keep states of their own, and with a version
    of transformers whose trainer lacks something that ptune's hooks into (`ptune.internals`).
    """
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    if not isinstance(model, PromptedModel) or trainer.accelerator.distributed_type not in _WHOLE_MODEL:
        return None
    return None if missing_trainer_names(Trainer) else model


def warn_of_missing_names() -> None:
    """Log what this version of transformers lacks, and what follows from it."""
    if missing := missing_trainer_names(Trainer):
        _log.warning(
            "this version of transformers has no Trainer.%s: checkpoints are as Trainer writes them, a resumed run "
            "need not be bit-exact, and NaN and a full memory are not looked for",
            ", Trainer.".join(missing),
        )
