"""Answers to many questions, in padded batches of similar length.

Shapes: `B` rows, `T` tokens of the longest question.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from ptune.choices import GREEDY
from ptune.frozen.eval_mode import in_eval_mode
from ptune.frozen.parameters import device_of
from ptune.model.wrapper import PTunedModel


@torch.no_grad()
def generate_answers(
    model: PTunedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Sequence[int]],
    *,
    prompt_names: Sequence[str | None],
    batch_size: int = 16,
    max_new_tokens: int = 64,
    **options: object,
) -> list[str]:
    """Greedy answers (unless `options` say otherwise), in the order of the questions.

    Args:
        model: The model with its prompts; it answers in eval mode and is left in the mode it was in.
        tokenizer: Its tokenizer.
        questions: Token ids of each.
        prompt_names: The prompt in front of each; None asks the frozen model alone.
        batch_size: Rows a batch.
        max_new_tokens: Longest answer.
        options: For `generate`, such as `do_sample` or `stop_strings`.
    """
    if "stop_strings" in options:
        options["tokenizer"] = tokenizer
    order = sorted(range(len(questions)), key=lambda index: len(questions[index]))
    answers = [""] * len(questions)
    device = device_of(model.base)
    with in_eval_mode(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            width = max(len(questions[row]) for row in rows)
            padded = torch.full((len(rows), width), int(tokenizer.pad_token_id or 0))
            mask = torch.zeros_like(padded)
            for at, row in enumerate(rows):
                padded[at, width - len(questions[row]) :] = torch.tensor(questions[row])
                mask[at, width - len(questions[row]) :] = 1
            output = model.generate(
                padded.to(device),
                attention_mask=mask.to(device),
                prompt_names=[prompt_names[row] for row in rows],
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                **{**GREEDY, **options},
            )
            for at, row in enumerate(rows):
                answers[row] = str(tokenizer.decode(output[at, width:], skip_special_tokens=True))
    return answers
