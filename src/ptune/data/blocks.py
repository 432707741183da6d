"""Virtual tokens in a template: `{prompt:3}` is a place for three of them, `{prompt:3:task}` the same with a name.

Liu et al. 2021, "GPT Understands, Too" put virtual tokens anywhere among the words of a template, and leave some words
of it in the model's own vocabulary (anchors): `{prompt:3}{input}{prompt:2} It was {output}.` As in the paper one prompt
encoder makes all of them: the blocks take its vectors one after another, in the order of the template. A name is for
people; `ptune inspect` shows it.

Blocks at the very start of a template lead: they stand before the text, the tokenizer's own first token included, and
run through the model once for all rows. Others stand inside the text, in every row. There virtual token `k` of the
prompt (from 0) goes by the id `-1 - k`: ids of a vocabulary begin at 0, whatever its size and that of the model's
embedding table.

Shapes: `P` virtual tokens of a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ptune.deep_config import PromptConfig
from ptune.errors import ConfigError, shown
from ptune.recipe import TrainRecipe

if TYPE_CHECKING:
    from ptune.data.tasks.task_templates import TaskTemplate
    from ptune.data.template import Template

_BLOCK = re.compile(r"prompt(?::([1-9][0-9]{0,5})(?::([A-Za-z_][A-Za-z0-9_-]{0,63}))?)?")
_SHOWN = 8
"""Blocks of a template that an error shows."""


@dataclass(frozen=True, slots=True)
class Block:
    """Virtual tokens that stand together at one place of a template."""

    start: int
    """The number of its first virtual token, among the `P` of the prompt."""
    count: int
    leads: bool
    """Whether it stands before the text; inside it otherwise."""
    name: str = ""

    @property
    def ids(self) -> Sequence[int]:
        """What stands for its virtual tokens among token ids."""
        return range(-1 - self.start, -1 - self.start - self.count, -1)

    def __str__(self) -> str:
        return f"{{prompt:{self.count}{':' if self.name else ''}{self.name}}}"


def is_block(placeholder: str) -> bool:
    """Whether a placeholder, without its braces, is one for virtual tokens."""
    return placeholder.partition(":")[0] == "prompt"


def read_blocks(placeholders: Sequence[tuple[str, bool]], template: str, virtual_tokens: int | None) -> list[Block]:
    """The blocks of a template.

    Args:
        placeholders: Of each block in turn, without its braces, and whether it leads.
        template: The template, as errors show it.
        virtual_tokens: How many `{prompt}` stands for, as a template's only block; None where nobody says.

    Raises:
        ConfigError: A block that is none, a name that comes twice, or `{prompt}` where it has no meaning.
    """
    blocks: list[Block] = []
    for text, leads in placeholders:
        found = _BLOCK.fullmatch(text)
        if found is None:
            raise ConfigError(
                f"the template {template} has {shown('{' + text + '}')}, which is no place for virtual tokens.",
                hint="Write {prompt:3} (1 to 999999), or {prompt:3:name}; {{prompt:…}} for the text itself.",
            )
        count = int(found[1]) if found[1] else virtual_tokens if len(placeholders) == 1 else None
        if count is None:
            raise ConfigError(
                f"the template {template} does not say how many virtual tokens {{prompt}} is.",
                hint="Write {prompt:3}; a number may be left out where it is the only one, for num_virtual_tokens.",
            )
        name = found[2] or ""
        if name and name in [block.name for block in blocks]:
            raise ConfigError(
                f"the template {template} has {{prompt}} twice under the name {name!r}.",
                hint="Every block has vectors of its own: give it another name, or none.",
            )
        start = blocks[-1].start + blocks[-1].count if blocks else 0
        blocks.append(Block(start, count, leads, name))
    return blocks


def tokens_of(blocks: Sequence[Block]) -> int:
    """All virtual tokens of these blocks."""
    return sum(block.count for block in blocks)


def tokens_in_text(blocks: Sequence[Block]) -> int:
    """Those that stand inside the text."""
    return sum(block.count for block in blocks if not block.leads)


def with_virtual_tokens(recipe: TrainRecipe, blocks: Sequence[Block]) -> TrainRecipe:
    """The recipe with its number of virtual tokens: that of the template's blocks, where it has any.

    Raises:
        ConfigError: The recipe asks for another number.
    """
    asked, there = recipe.num_virtual_tokens, tokens_of(blocks)
    if there and asked not in (None, there):
        raise ConfigError(
            f"num_virtual_tokens={asked}, but the template has {there}: {listed_blocks(blocks)}.",
            hint="Leave num_virtual_tokens out.",
        )
    return replace(recipe, num_virtual_tokens=there or recipe.virtual_tokens)


def check_template(template: Template | TaskTemplate, config: PromptConfig, prompt: str) -> None:
    """Raise `ConfigError` unless a template has places for the virtual tokens of a prompt, as many as there are.

    Args:
        template: A template without any block goes with every prompt that stands before the text.
        config: Of the prompt.
        prompt: What it is called in the error.
    """
    total, inside = config.num_virtual_tokens, config.tokens_in_text
    blocks = template.blocks
    if (tokens_of(blocks), tokens_in_text(blocks)) == (total, inside) or not (blocks or inside):
        return
    has = listed_blocks(blocks) if blocks else "no {prompt:N}"
    raise ConfigError(
        f"the template {shown(template.text, 60)} has {has}, and {prompt} {total} virtual tokens, {inside} of them "
        "inside the text.",
        hint="Use the template that the prompt was trained with.",
    )


def listed_blocks(blocks: Sequence[Block]) -> str:
    """The blocks as a template has them, the first few of many."""
    more = ", …" if len(blocks) > _SHOWN else ""
    return ", ".join(map(str, blocks[:_SHOWN])) + more
