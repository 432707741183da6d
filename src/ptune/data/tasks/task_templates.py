"""Templates of tasks: what is written around the text of a row, and where virtual tokens and the gap stand.

`{text}` and `{text2}` are the text of a row and the second one of a pair; `{mask}` is the gap that a masked model
fills; `{prompt:3}` is a place for three virtual tokens (see `ptune.data.blocks`). Blocks at the very start lead: they
stand before the whole row, its first special token included. Liu et al. 2021, "GPT Understands, Too" write such
templates for masked models: `{prompt:2}{text}{prompt:1} It was {mask}.`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from ptune.choices import CLASSIFY, FILL, SEQ2SEQ
from ptune.data.blocks import Block, is_block
from ptune.data.segments import digest
from ptune.data.tasks.task_example import TaskExample
from ptune.data.template import PLACEHOLDER, template_blocks
from ptune.errors import ConfigError, shown, unknown


class Place(Enum):
    """What a part of a template stands for."""

    TEXT = "text"
    TEXT2 = "text2"
    MASK = "mask"


Part = str | Place | Block
TEMPLATE_TASKS = (CLASSIFY, SEQ2SEQ, FILL)
FILL_TEMPLATE, FILL_PAIR_TEMPLATE = "{text} {mask}.", "{text} {mask}. {text2}"
"""Where none is given."""


@dataclass(frozen=True)
class TaskTemplate:
    """A template of a task; `task_template` makes and checks it."""

    text: str
    """What to store: `task_template(text, task)` makes this template again."""
    blocks: tuple[Block, ...] = ()
    """Its places for virtual tokens, in order."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the text made from a row would change."""
        return digest("task", self.text)

    def parts(self) -> list[Part]:
        """Words, places and virtual tokens inside the text, in order; blocks that lead are left out."""
        parts: list[Part] = []
        end, blocks = 0, iter(self.blocks)
        for match in PLACEHOLDER.finditer(self.text):
            parts.append(self.text[end : match.start()])
            end = match.end()
            if match[1]:
                parts.append("{" + match[1] + "}")
            elif is_block(match[2]):
                parts.append(next(blocks))
            else:
                parts.append(Place(match[2]))
        parts.append(self.text[end:])
        return [part for part in parts if part != "" and not (isinstance(part, Block) and part.leads)]

    @cached_property
    def places(self) -> frozenset[Place]:
        """What it has places for."""
        return frozenset(part for part in self.parts() if isinstance(part, Place))

    def check(self, example: TaskExample) -> None:
        """Raise `ConfigError` for a row with a text that the template has no place for."""
        for place, value in ((Place.TEXT, example.text), (Place.TEXT2, example.second)):
            if value and place not in self.places:
                where = f"{example.source}: " if example.source else ""
                name = "{" + place.value + "}"
                raise ConfigError(
                    f"{where}there is a text ({shown(value, 40)}), but the template {shown(self.text, 60)} has no "
                    f"{name}.",
                    hint=f"Put {name} in the template, so that nothing is lost.",
                )


def task_template(text: str, task: str, virtual_tokens: int | None = None) -> TaskTemplate:
    """The template made from a text.

    Args:
        text: With `{text}` or `{text2}`, `{prompt:N}`, for `fill` `{mask}` once; `{{name}}` writes `{name}` itself.
        task: `classify`, `seq2seq` or `fill`.
        virtual_tokens: How many `{prompt}` stands for, where the only block has no number.

    Raises:
        ConfigError: The task takes no template, or a placeholder cannot be used.
    """
    if task not in TEMPLATE_TASKS:
        raise ConfigError(
            f"the task {task} takes no template ({shown(text, 60)}).",
            hint="Leave it out: words and contexts stay whole.",
        )
    names = [match[2] for match in PLACEHOLDER.finditer(text) if match[2]]
    _check_names(names, shown(text, 60), task)
    blocks = template_blocks(text, virtual_tokens)
    # The text that is stored says the number.
    numbered = PLACEHOLDER.sub(lambda match: str(blocks[0]) if match[2] == "prompt" else match[0], text)
    return TaskTemplate(numbered, blocks)


def _check_names(names: Sequence[str], short: str, task: str) -> None:
    known = [place.value for place in Place if place is not Place.MASK or task == FILL]
    for name in names:
        if name not in known and not is_block(name):
            error = unknown(
                f"placeholder in the template {short} (task {task}):",
                "{" + name + "}",
                ["{" + one + "}" for one in (*known, "prompt:N")],
            )
            error.hint = f"{error.hint} Write {{{{{name}}}}} for the text itself."
            raise error
    for name in known:
        if names.count(name) > 1:
            raise ConfigError(f"the template {short} has {{{name}}} {names.count(name)} times.", hint="Put it in once.")
    if not {"text", "text2"} & set(names):
        raise ConfigError(f"the template {short} has no place for the text.", hint="Put {text} in it.")
    if task == FILL and "mask" not in names:
        raise ConfigError(
            f"the template {short} has no gap to fill.", hint="Put {mask} in it once, e.g. 'It was {mask}.'"
        )
