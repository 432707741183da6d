"""What a server is made of, for its routes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from ptune.model.wrapper import PTunedModel
from ptune.serving.engine.engine import Engine
from ptune.serving.prompt_registry import PromptRegistry
from ptune.serving.prompt_watch import PromptWatch
from ptune.serving.serve_settings import ServeSettings
from ptune.serving.web.measurements import Measurements


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Put together by `ptune.serving.web.server`."""

    settings: ServeSettings
    model: PTunedModel
    tokenizer: PreTrainedTokenizerBase
    engine: Engine
    prompts: PromptRegistry
    watch: PromptWatch | None
    """None where no root folder is given."""
    measured: Measurements
    fingerprint: str
    """Of the frozen model, for `system_fingerprint`."""
    vocabulary: int
    """Tokens that the model has embeddings for."""
    began: int = field(default_factory=lambda: int(time.time()))
    """Seconds since 1970."""

    @property
    def context(self) -> int | None:
        """The model's context in tokens; None where it has no limit."""
        return self.model.context_length
