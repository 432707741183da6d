"""The questions of a report asked three ways: with nothing in front, with the text, with the compressed prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ptune.answering import Answerer
from ptune.compression.reading import Reading, reading
from ptune.compression.row_labels import MOST_TOKENS, collated, labels_of_rows
from ptune.compression.timing import Timing, time_columns
from ptune.data.example import Example
from ptune.data.soft_labels import TEACHER_IDS, TEACHER_LOG_PROBS, SoftLabels
from ptune.evaluation.answers import generate_answers
from ptune.evaluation.columns import ItemTexts, Row, encoded
from ptune.evaluation.row_losses import LearnedRow, RowLoss, by_tokens, row_losses
from ptune.model.taught import divergence, likeliest_tokens

COLUMNS = NOTHING, TEXT, COMPRESSED = ("nothing in front", "the whole text", "the compressed prompt")
_BATCH = 16


@dataclass
class Found:
    """About one column."""

    answers: list[str] = field(default_factory=list)
    losses: list[RowLoss] = field(default_factory=list)
    """Of right answers, where there are some."""
    apart: float = 0.0
    """KL(teacher ‖ this), summed over the teacher's answer tokens."""
    same: int = 0
    """Those of them that are the likeliest here too."""


class AskedColumns:
    """Asks, and keeps what comes back.

    Args:
        answerer: The model with the compressed prompt active.
        scored: Whether rows have right answers.
        new_tokens: Of the longest answer.
        top_k: Likeliest tokens of the teacher that the divergence is taken over.
    """

    def __init__(self, answerer: Answerer, *, scored: bool, new_tokens: int, top_k: int) -> None:
        self._answerer, self.scored, self._new_tokens, self._top_k = answerer, scored, new_tokens, top_k
        self.rows: list[Example] = []
        self.found = {name: Found() for name in COLUMNS}
        self.timing: dict[str, Timing] = {}
        self.total = 0
        """Tokens of the teacher's answers."""
        self._text_tokens = 0

    def tokens(self, name: str) -> int:
        """Tokens of prompt in a column."""
        model = self._answerer.model
        prompt = model.active_prompt
        width = 0 if prompt is None else model.prompt_configs[prompt].num_virtual_tokens
        return {NOTHING: 0, TEXT: self._text_tokens, COMPRESSED: width}[name]

    def answers_by_row(self) -> list[dict[str, str]]:
        """Of each row, by column."""
        answers = {name: one.answers for name, one in self.found.items()}
        return [dict(zip(answers, one, strict=True)) for one in zip(*answers.values(), strict=True)]

    def ask(self, text: str, rows: Sequence[Example], advance: Callable[[int], None]) -> None:
        """Ask some questions.

        Args:
            text: The part of the text that they are about.
            rows: The questions.
            advance: Called with the number of answers that are done.
        """
        self.rows += rows
        prompt = self._answerer.model.active_prompt
        own = [_encoded(self._answerer, row) for row in rows]
        with reading(self._answerer, text, rows, new_tokens=self._new_tokens) as read:
            said = self._ask(TEXT, read.texts, read.name, advance)
        for column, name in ((NOTHING, None), (COMPRESSED, prompt)):
            self._ask(column, own, name, advance)
        taught = [
            Example(instruction=row.instruction, input=row.input, output=one)
            for row, one in zip(rows, said, strict=True)
        ]
        with reading(self._answerer, text, taught) as read:
            self._compare(read, [_encoded(self._answerer, row).rows[0] for row in taught], prompt)

    def _ask(
        self, column: str, texts: Sequence[ItemTexts], prompt: str | None, advance: Callable[[int], None]
    ) -> list[str]:
        """The answers of a column, and how likely it holds the right ones."""
        answers: list[str] = []
        for start in range(0, len(texts), _BATCH):
            asked = [one.question for one in texts[start : start + _BATCH]]
            answers += generate_answers(
                self._answerer.model,
                self._answerer.tokenizer,
                asked,
                prompt_names=[prompt] * len(asked),
                batch_size=_BATCH,
                max_new_tokens=self._new_tokens,
            )
            advance(len(asked))
        self.found[column].answers += answers
        if self.scored:
            learned = [LearnedRow(*one.rows[0], prompt) for one in texts]
            self.found[column].losses += row_losses(self._answerer.model, learned)
        return answers

    def _compare(self, read: Reading, untold: Sequence[Row], prompt: str | None) -> None:
        """Set the columns beside the teacher, along its answers."""
        behind = [one.rows[0] for one in read.texts]
        labels = labels_of_rows(self._answerer, behind, read.name, self._top_k)
        self.total += sum(len(one.ids) for one in labels)
        self._text_tokens = max(self._text_tokens, read.tokens)
        for column, name, rows in ((NOTHING, None, untold), (TEXT, read.name, behind), (COMPRESSED, prompt, untold)):
            self._set_beside(self.found[column], rows, labels, name)
        if not self.timing:
            self.timing = time_columns(self._answerer, read, untold[0], prompt, names=COLUMNS)

    def _set_beside(self, found: Found, rows: Sequence[Row], labels: Sequence[SoftLabels], prompt: str | None) -> None:
        """Add the divergence of a column from the teacher, and the tokens at which both would write the same."""
        model = self._answerer.model
        for batch in by_tokens([len(ids) for ids, _ in rows], MOST_TOKENS):
            features = [
                {
                    "input_ids": rows[at][0],
                    "labels": rows[at][1],
                    TEACHER_IDS: labels[at].ids,
                    TEACHER_LOG_PROBS: labels[at].log_probs,
                }
                for at in batch
            ]
            inputs, names = collated(self._answerer, features), [prompt] * len(batch)
            with torch.no_grad():
                found.apart += float(divergence(model, inputs, prompt_names=names, num_items=1))
            teacher = torch.cat([labels[at].ids[:, 0] for at in batch])
            found.same += int((likeliest_tokens(model, inputs, prompt_names=names) == teacher).sum())


def _encoded(answerer: Answerer, row: Example) -> ItemTexts:
    return encoded([answerer.template.segments(row)], answerer.tokenizer, row.source)
