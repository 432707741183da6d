"""A frozen model with prompts, whatever it is for."""

from __future__ import annotations

from ptune.model.task_model import PTunedTaskModel
from ptune.model.wrapper import PTunedModel

PromptedModel = PTunedModel | PTunedTaskModel
