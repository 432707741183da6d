"""The rows that a loss or gradient which is not finite came from, for the error that ends the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Trainer

from ptune.errors import TrainingError
from ptune.frozen.shards import is_sharded
from ptune.model.prompted import PromptedModel
from ptune.training.micro_batches import row_slice, row_tokens, rows_of

NAMED_ROWS = 5
"""The most rows that an error names."""


def not_finite(
    trainer: Trainer,
    model: PromptedModel,
    micro_batches: Sequence[tuple[dict[str, Any], torch.Tensor]],
    norm: Any,
    *,
    name_row: Callable[[list[int]], str],
    last_good: str,
) -> TrainingError:
    """The error; the rows of the step are run one by one to find those that are not finite by themselves.

    Args:
        trainer: Says which step it is.
        model: The one that trains; its gradients are lost.
        micro_batches: Those of the optimizer step, each with its loss.
        norm: Of the step's gradient.
        name_row: What a row of these token ids is called.
        last_good: Where the run can go on from, in words.
    """
    wrong = [(batch, loss) for batch, loss in micro_batches if not bool(torch.isfinite(loss))]
    what = f"the loss is {float(wrong[0][1])}" if wrong else f"the norm of the gradient is {float(norm)}"
    batches = [batch for batch, _ in wrong or micro_batches]
    every = [ids for batch in batches for ids in row_tokens(batch)]
    # One by one, the rows of one process would wait for layers that the others do not run.
    apart = not is_sharded(model.base)
    rows = [ids for batch in batches for ids in _bad_rows(trainer, model, batch)] if apart else []
    names = [name_row(ids) for ids in (rows or every)[:NAMED_ROWS]]
    more = ", …" if len(rows or every) > NAMED_ROWS else ""
    none = "in none of its rows alone" if apart else f"in a batch of {len(every)} rows"
    where = f"in {len(rows)} of {len(every)} rows" if rows else none
    where = "in every row" if len(rows) == len(every) > 1 else where
    look = "Lower" if len(rows) == len(every) > 1 else "Look at those rows, lower"
    return TrainingError(
        f"{what} at step {trainer.state.global_step + 1}, {where} ({', '.join(names)}{more}); {last_good}.",
        hint=f"{look} learning_rate, or train in another dtype than float16.",
    )


def _bad_rows(trainer: Trainer, model: PromptedModel, batch: dict[str, Any]) -> list[list[int]]:
    """Token ids of the rows whose loss or gradient, taken alone, is not finite."""
    found = []
    for row in range(rows_of(batch)):
        one = row_slice(batch, row, row + 1)
        model.zero_grad()
        with trainer.compute_loss_context_manager():
            loss: Any = model(**one, num_items_in_batch=1, return_logits=False).loss
        loss.backward()
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not all(bool(torch.isfinite(number).all()) for number in (loss, *grads)):
            found += row_tokens(one)
    return found
