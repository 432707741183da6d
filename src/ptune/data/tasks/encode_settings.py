"""How rows of a task are to be tokenized, and the parts that every task has in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ptune.data.tasks.task_templates import TaskTemplate
from ptune.data.text_ids import ids_of, special_frame
from ptune.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_PER_BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """What `encode_task` was told."""

    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    max_length: int
    target_length: int
    stride: int | None
    learns: bool
    """Whether the rows say what is right."""
    template: TaskTemplate | None

    def __post_init__(self) -> None:
        for name in ("max_length", "target_length"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value!r}.", hint="Texts mostly have 128 or more.")
        special = sum(map(len, special_frame(self.tokenizer)))
        if self.max_length <= special:
            raise ConfigError(
                f"max_length {self.max_length} has no room for text beside {special} special tokens.",
                hint="Raise max_length.",
            )

    @property
    def numbers(self) -> dict[str, int]:
        """The number of each label."""
        return {label: number for number, label in enumerate(self.labels)}

    @property
    def makes_types(self) -> bool:
        """Whether the tokenizer says which of two texts a token is of."""
        return "token_type_ids" in self.tokenizer.model_input_names

    @cached_property
    def between(self) -> str:
        """What is written between two texts: a line break where the tokenizer puts nothing there.

        The end of one text and the beginning of the next would be one word otherwise.
        """
        first, second = ids_of(["a", "b"], self.tokenizer)
        whole = self.tokenizer("a", "b")["input_ids"]
        glued = first + second
        return "\n" if any(whole[at : at + len(glued)] == glued for at in range(len(whole))) else ""

    def need_offsets(self, task: str) -> None:
        """Raise `ModelError` for a tokenizer that cannot say which characters a token is of."""
        if not self.tokenizer.is_fast:
            raise ModelError(
                f"the tokenizer {type(self.tokenizer).__name__} cannot say which characters a token is of, which the "
                f"task {task} needs.",
                hint="Take a model whose tokenizer is a fast one (tokenizer.is_fast).",
            )


def batches(count: int) -> Iterator[range]:
    """The numbers of rows, some at a time."""
    for start in range(0, count, ROWS_PER_BATCH):
        yield range(start, min(start + ROWS_PER_BATCH, count))


def rows_of(encoded: Any) -> list[dict[str, list[int]]]:
    """What a tokenizer gives for several texts, a row at a time."""
    columns: dict[str, Sequence[list[int]]] = dict(encoded)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
