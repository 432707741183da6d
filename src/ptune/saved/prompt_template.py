"""The template that goes with a prompt folder."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ptune.data.blocks import check_template
from ptune.data.template import Template, get_template
from ptune.deep_config import PromptConfig
from ptune.saved.opened_folder import OpenedFolder


def template_of(
    opened: OpenedFolder, tokenizer: PreTrainedTokenizerBase, config: PromptConfig, template: str | None = None
) -> Template:
    """The template that texts are written with for a prompt.

    Args:
        opened: The prompt folder.
        tokenizer: Of the frozen model.
        config: Of the prompt.
        template: Another one than the prompt was trained with.

    Raises:
        ConfigError: It cannot be used, or has not the prompt's places for virtual tokens.
    """
    text = template or opened.details.get("template") or "tutorial"
    found = get_template(
        text, tokenizer, files=bool(template), virtual_tokens=config.num_virtual_tokens if template else None
    )
    check_template(found, config, f"the prompt in {opened.path}")
    return found
