"""Rows of `qa` as tokens: a question and its context, a long context in overlapping windows.

As in Devlin et al. 2019, "BERT" and the published scripts for SQuAD: the question first, then a window of the context;
what is learned are the tokens at which the first answer begins and ends, or the null token where the answer is not in
the window as a whole. The null token is `[CLS]`. A causal model reads from left to right, and its first token knows
nothing of the row: where a tokenizer has no `[CLS]`, the null token is the end token behind the window, which is put
there if the tokenizer does not; and the first token where it has no end token either.

Shapes: `W` windows, `T` tokens of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ptune.choices import QA
from ptune.data.tasks.encode_settings import EncodeSettings, batches
from ptune.data.tasks.task_example import TaskExample
from ptune.data.tasks.task_table import TaskTable
from ptune.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHORTEST_QUESTION = 8
"""Tokens of a question that there must be room for."""


@dataclass(frozen=True)
class Window:
    """One window of a context, as a row of a data set has it."""

    example: int
    """The number of its example."""
    null: int
    """The column of the token that says that the answer is not here."""
    offsets: np.ndarray
    """`(T, 2)`: the first character of each token in the context and the one behind its last; -1 for tokens that are
    not of the context."""


@dataclass(frozen=True)
class Windows(Sequence[Window]):
    """The windows of a data set, in the order of its rows."""

    rows: tuple[Window, ...]

    def __getitem__(self, index: Any) -> Any:
        return Windows(self.rows[index]) if isinstance(index, slice) else self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class _Frame:
    """What every window has beside its question and context."""

    window_length: int
    """Tokens that the tokenizer may make of a window."""
    stride: int
    longest_question: int
    end: int | None
    """The end token that is put behind a window."""


def encode_spans(examples: Sequence[TaskExample], settings: EncodeSettings, table: TaskTable) -> Windows:
    """Questions with windows of their contexts.

    Raises:
        ModelError: The tokenizer cannot say which characters a token is of.
        ConfigError: `stride` leaves no room, or `max_length` is too small.
    """
    settings.need_offsets(QA)
    frame = _frame(settings)
    windows: list[Window] = []
    for which in batches(len(examples)):
        table.report.rows_read += len(which)
        batch = [examples[number] for number in which]
        encoded: Any = settings.tokenizer(
            _questions(batch, frame, settings, table),
            [example.context for example in batch],
            truncation="only_second",
            max_length=frame.window_length,
            stride=frame.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            padding=False,
        )
        held: set[int] = set()
        for at, inside in enumerate(encoded["overflow_to_sample_mapping"]):
            row, window = _window(encoded, at, which[inside], frame, settings)
            if settings.learns:
                example = batch[inside]
                span = _span(example, window)
                if span is not None:
                    held.add(inside)
                start, end = (window.null, window.null) if span is None else span
                row |= {"start_positions": start, "end_positions": end}
            table.add(window.example, row)
            windows.append(window)
        answered = {at for at, example in enumerate(batch) if example.answers}
        table.report.answers_in_no_window += len(answered - held) if settings.learns else 0
    return Windows(tuple(windows))


def _frame(settings: EncodeSettings) -> _Frame:
    """Lengths that leave room for a context in every window, checked."""
    tokenizer, most = settings.tokenizer, settings.max_length
    end = _end_to_add(tokenizer)
    special = len(tokenizer(settings.between, "")["input_ids"]) + (end is not None)
    stride = most // 3 if settings.stride is None else settings.stride
    if isinstance(stride, bool) or not isinstance(stride, int) or stride < 0:
        raise ConfigError(f"stride must be at least 0, not {stride!r}.", hint="A third of max_length serves.")
    # Windows move on by half a stride at least: one token at a time would make hundreds of a context.
    left = most - special - 1
    room = left - stride - stride // 2
    if room < _SHORTEST_QUESTION:
        longest = max(0, (2 * (left - _SHORTEST_QUESTION) + 1) // 3)
        raise ConfigError(
            f"stride {stride} leaves no room for a question and a context within max_length {most}.",
            hint=f"Raise max_length, or take a stride of at most {longest}.",
        )
    return _Frame(most - (end is not None), stride, room, end)


def _end_to_add(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The end token that stands for no answer, where the tokenizer has no `[CLS]` and does not write it itself."""
    if tokenizer.cls_token_id is not None or tokenizer.eos_token_id is None:
        return None
    end = int(tokenizer.eos_token_id)
    return None if tokenizer("a", "a")["input_ids"][-1] == end else end


def _questions(examples: Sequence[TaskExample], frame: _Frame, settings: EncodeSettings, table: TaskTable) -> list[str]:
    """The questions, the longest of them cut."""
    # As the published scripts do: blanks before a question can be longer than what it leaves to the context.
    questions = [example.question.strip() for example in examples]
    encoded: Any = settings.tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for at, offsets in enumerate(encoded["offset_mapping"]):
        if len(offsets) > frame.longest_question:
            questions[at] = questions[at][: offsets[frame.longest_question - 1][1]]
            table.report.questions_cut += 1
    return [question + settings.between for question in questions]


def _window(
    encoded: Any, at: int, number: int, frame: _Frame, settings: EncodeSettings
) -> tuple[dict[str, Any], Window]:
    """One window of what the tokenizer gave."""
    ids: list[int] = list(encoded["input_ids"][at])
    of_context = [which == 1 for which in encoded.sequence_ids(at)]
    offsets = np.array(encoded["offset_mapping"][at], dtype=np.int32).reshape(-1, 2)
    offsets[~np.array(of_context, dtype=bool)] = -1
    types = list(encoded["token_type_ids"][at]) if settings.makes_types else []
    if frame.end is not None:
        ids.append(frame.end)
        offsets = np.concatenate([offsets, np.full((1, 2), -1, dtype=np.int32)])
        types += types[-1:]
    columns = {"input_ids": ids, "attention_mask": [1] * len(ids)}
    if settings.makes_types:
        columns["token_type_ids"] = types
    return columns, Window(number, _null(ids, settings.tokenizer), offsets)


def _null(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """The column of the token that stands for no answer."""
    cls = tokenizer.cls_token_id
    if cls is not None:
        return ids.index(cls) if cls in ids else 0
    return len(ids) - 1 if ids[-1] == tokenizer.eos_token_id else 0


def _span(example: TaskExample, window: Window) -> tuple[int, int] | None:
    """The columns at which the first answer begins and ends; None where the window does not hold all of it."""
    if not example.answers:
        return None
    text, start = example.answers[0]
    end = start + len(text)
    starts, ends = window.offsets[:, 0], window.offsets[:, 1]
    touching = np.flatnonzero((starts >= 0) & (ends > start) & (starts < end))
    if not len(touching):
        return None
    first, last = int(touching[0]), int(touching[-1])
    # What of the answer is of none of these tokens must be of no token at all.
    inside = (starts[first] <= start or _blank(example.context, start, starts[first])) and (
        ends[last] >= end or _blank(example.context, ends[last], end)
    )
    return (first, last) if inside else None


def _blank(text: str, start: int, end: int) -> bool:
    """Whether these characters are of no token."""
    return not text[start:end].strip()
