"""How the rows of a job become batches: packed for ptune's prompts, padded for others as their users write it."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from ptune.choices import LM
from ptune.comparison.job import BASE, Job
from ptune.data.collate import PackingCollator, PaddingCollator
from ptune.data.tasks import TaskCollator
from ptune.methods.names import METHODS, PEFT
from ptune.model.task_model import PTunedTaskModel
from ptune.model.wrapper import PTunedModel
from ptune.tasks.task_parts import is_decoder
from ptune.training.batches import Collator


def job_collator(job: Job, model: Any, tokenizer: PreTrainedTokenizerBase, *, measuring: bool = False) -> Collator:
    """What makes a batch of a job's rows.

    Args:
        job: Names method and task.
        model: As the method made it.
        tokenizer: Its padding token fills padded rows.
        measuring: Whether they are held-out rows, which are packed where they can be.
    """
    recipe, padding = job.train_recipe(), int(tokenizer.pad_token_id)
    if recipe.task != LM:
        prompt_of_peft = job.method != BASE and METHODS[job.method].library == PEFT and METHODS[job.method].encoder
        # PEFT's classifier of a decoder reads a row's last column, which is its last token on that side alone.
        left = prompt_of_peft and not isinstance(model, PTunedTaskModel) and is_decoder(model.get_base_model())
        return TaskCollator(padding, recipe.task, padding_side="left" if left else "right")
    packed = isinstance(model, PTunedModel) and (recipe.packing or measuring) and model.packs
    return PackingCollator() if packed else PaddingCollator(pad_token_id=padding)
