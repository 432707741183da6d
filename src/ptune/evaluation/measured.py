"""What a model makes of a column's items: losses and likelihoods of labels packed, answers in padded batches."""

from __future__ import annotations

import time
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ptune.data.text_ids import ids_of
from ptune.evaluation.answers import generate_answers
from ptune.evaluation.columns import Column
from ptune.evaluation.label_likelihood import AskedText, LabelSet, label_likelihoods
from ptune.evaluation.outcomes import Needs, Outcome
from ptune.evaluation.row_losses import row_losses
from ptune.model.wrapper import PTunedModel


def outcomes(
    model: PTunedModel,
    tokenizer: PreTrainedTokenizerBase,
    column: Column,
    numbers: Sequence[int],
    needs: Needs,
    *,
    max_new_tokens: int,
) -> list[Outcome]:
    """What a column makes of some items, in the order of their numbers.

    Args:
        model: In eval mode.
        tokenizer: Its tokenizer.
        column: All items; the prompts that it names are in the model.
        numbers: Some at least.
        needs: What is computed.
        max_new_tokens: Tokens of the longest answer.
    """
    names = [column.prompts[number] for number in numbers]
    questions = [column.texts[number].question for number in numbers]
    labels = LabelSet.of(ids_of(list(needs.labels), tokenizer)) if needs.labels else None
    likely: list[tuple[float, ...]] | None = None
    losses, answers, began = [(0.0, 0, 0)] * len(numbers), None, time.perf_counter()
    if needs.tokens:
        # Labels of one token are asked about on the way: the same run says how likely each follows the question.
        losses, besides = _losses(model, column, numbers, () if labels is None else labels.next_tokens)
        likely = besides if labels is not None and labels.next_tokens else None
    if labels is not None and likely is None:
        texts = [AskedText(ids, name, labels) for ids, name in zip(questions, names, strict=True)]
        likely = [tuple(one.log_prob for one in found) for found in label_likelihoods(model, texts)]
    if needs.answers:
        began = time.perf_counter()
        answers = generate_answers(
            model,
            tokenizer,
            questions,
            prompt_names=names,
            batch_size=len(numbers),
            max_new_tokens=max_new_tokens,
        )
    seconds = (time.perf_counter() - began) / len(numbers)
    return [
        Outcome(
            *losses[at],
            answer=None if answers is None else answers[at].strip(),
            seconds=seconds,
            labels=None if likely is None else likely[at],
        )
        for at in range(len(numbers))
    ]


def _losses(
    model: PTunedModel, column: Column, numbers: Sequence[int], next_tokens: Sequence[int]
) -> tuple[list[tuple[float, int, int]], list[tuple[float, ...]]]:
    """Loss, tokens and right tokens of each item, over all its answers; and how likely tokens follow its question."""
    learned = [column.learned(number, next_tokens) for number in numbers]
    found = iter(row_losses(model, [row for rows in learned for row in rows]))
    sums, besides = [], []
    for rows in learned:
        own = [next(found) for _ in rows]
        sums.append((sum(one.total for one in own), sum(one.tokens for one in own), sum(one.right for one in own)))
        besides.append(own[0].besides)
    return sums, besides
