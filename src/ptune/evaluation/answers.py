"""Answers to many prompts, in padded batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from ptune.data.template import Segments
from ptune.data.tokenize import encode_prompt
from ptune.frozen.parameters import device_of
from ptune.model.wrapper import PTunedModel
from ptune.recipe import GREEDY


@torch.no_grad()
def generate_answers(
    model: PTunedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Segments],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    with_prompt: bool = True,
    progress: Callable[[int], None] | None = None,
    **options: object,
) -> list[str]:
    """Greedy answers (unless `options` say otherwise), in the order of the prompts.

    Args:
        model: The model with its prompt; it answers in eval mode and is left in the mode it was in.
        tokenizer: Its tokenizer.
        prompts: Text to go on from, as a template made it.
        batch_size: Rows a batch.
        max_new_tokens: Longest answer.
        with_prompt: False asks the frozen model alone.
        progress: Called with the number of answers so far.
        options: For `generate`, such as `do_sample`.
    """
    was_training = model.training
    model.eval()
    ids = [encode_prompt(item, tokenizer) for item in prompts]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    answers = [""] * len(ids)
    done = 0
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = max(len(ids[row]) for row in rows)
        padded = torch.full((len(rows), width), int(tokenizer.pad_token_id or 0))
        mask = torch.zeros_like(padded)
        for at, row in enumerate(rows):
            padded[at, width - len(ids[row]) :] = torch.tensor(ids[row])
            mask[at, width - len(ids[row]) :] = 1
        output = model.generate(
            padded.to(device_of(model.base)),
            attention_mask=mask.to(device_of(model.base)),
            prompt_names=None if with_prompt else [None] * len(rows),
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            **{**GREEDY, **options},
        )
        for at, row in enumerate(rows):
            answers[row] = str(tokenizer.decode(output[at, width:], skip_special_tokens=True))
        done += len(rows)
        if progress is not None:
            progress(done)
    model.train(was_training)
    return answers
