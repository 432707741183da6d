"""One version of a prompt as it is served. Whoever answers with it holds it, whatever the registry does next."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from ptune.data.template import Template
from ptune.deep_config import PromptConfig
from ptune.encoders import PromptEncoder
from ptune.serving.prompt_facts import PromptFacts


@dataclass(eq=False)
class ServedPrompt:
    """A prompt of one name, read from one folder at one time."""

    name: str
    """What requests call it."""
    key: str
    """What the engine calls it; no two versions share one."""
    folder: Path
    encoder: PromptEncoder
    config: PromptConfig
    template: Template
    first_id: int | None = None
    """Of its virtual tokens, where the model's vocabulary has them as special tokens (`ptune export --to model`)."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Seconds since 1970."""
    facts: PromptFacts = field(default_factory=PromptFacts)
    """What is told of it."""
    retired: bool = False
    """Whether another version, or nothing, has taken its place; requests under way keep it."""

    @property
    def leading(self) -> int:
        """Virtual tokens before the text."""
        return self.config.leading_tokens

    @property
    def inside(self) -> int:
        """Virtual tokens inside the text."""
        return self.config.tokens_in_text
