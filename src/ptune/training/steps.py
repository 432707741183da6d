"""One optimizer step of a prompt, from micro-batches to a gradient that may be used.

With gradient accumulation the micro-batches of a step share one prefix (see `ptune.prefix.across_micro_batches`), and
so one dropout mask of the prompt encoder, as the rows of one big batch would.

Where the memory is not enough for a micro-batch, its rows are taken in parts, and the step's gradient stays the same:
the loss is a sum over labels divided by the labels of the whole step. The first loss or gradient that is not finite
ends the run before the optimizer takes it, and the rows it came from are named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn

from ptune.errors import TrainingError
from ptune.model.wrapper import PTunedModel
from ptune.recipe import CHECKPOINTING
from ptune.training.micro_batches import in_parts, row_slice, row_tokens, rows_of, text_tokens
from ptune.training.resumable import WHOLE_MODEL, ResumableTrainer

NAMED_ROWS = 5
"""The most rows that an error names."""
_log = logging.getLogger("ptune")


class StepTrainer(ResumableTrainer):
    """Trainer with ptune's optimizer step; arguments as for `ResumableTrainer`.

    Args:
        name_row: What a row of these token ids is called in an error; its number in the data by default.
        say: Takes a line for people when something is done differently than asked; a warning in the log by default.

    Raises:
        TrainingError: A loss or gradient is not finite, or one row alone needs more memory than there is.
    """

    def __init__(
        self,
        *args: Any,
        name_row: Callable[[list[int]], str] | None = None,
        say: Callable[[str], None] = _log.warning,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.name_row = name_row or self._row_number
        self.say = say
        self.rows_at_once: int | None = None
        """The most rows that go through the model together; set when the memory was not enough for more."""
        self._in_hand: list[tuple[dict[str, Any], torch.Tensor]] = []
        """The micro-batches of the optimizer step at hand, and their losses."""

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._in_hand = []
        # Trainer would put the mean of earlier losses in the place of one that is not finite.
        self.args.logging_nan_inf_filter = False
        if isinstance(self.model, PTunedModel):
            self.model.shared_prefix.reset()  # an earlier run may have ended within an optimizer step
        return super()._inner_training_loop(*args, **kwargs)

    # ---- one step ----------------------------------------------------------------------------------------------

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Trainer's step; the micro-batches of an optimizer step share one run of the prompt.

        Where the memory is not enough, the whole optimizer step starts again with fewer rows at a time: what the
        failed backward has left in the gradients is not known.
        """
        self.tokens_seen += text_tokens(inputs)
        earlier = [batch for batch, _ in self._in_hand]
        loss = self._attempt(model, [inputs], num_items_in_batch)
        while loss is None:
            clear_device_cache()
            model.zero_grad()
            if isinstance(self.model, PTunedModel):
                self.model.shared_prefix.reset()
            loss = self._attempt(model, [*earlier, inputs], num_items_in_batch)
        self._in_hand.append((inputs, loss))
        return loss

    def _attempt(self, model: nn.Module, batches: list[dict[str, Any]], num_items: Any) -> torch.Tensor | None:
        """The last micro-batch's loss; None where the memory was not enough, and fewer rows are to be tried."""
        loss, last = None, bool(self.accelerator.sync_gradients)
        try:
            for batch in batches:
                loss = self._rows_step(model, batch, num_items, last=last and batch is batches[-1])
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            self._take_fewer_rows(batches[-1], num_items, error)
            return None
        return loss

    def _rows_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items: torch.Tensor | int | None, *, last: bool
    ) -> torch.Tensor:
        """Forward and backward of a micro-batch, so many rows at a time as the memory has room for."""
        parts = in_parts(inputs, self.rows_at_once)
        losses = []
        for number, part in enumerate(parts, start=1):
            with self._one_prefix(model, alone=len(parts) == 1, last=last and number == len(parts)):
                losses.append(super().training_step(model, part, num_items))
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _take_fewer_rows(self, inputs: dict[str, Any], num_items: Any, error: RuntimeError) -> None:
        """Halve the rows that go through the model together.

        Raises:
            TrainingError: That cannot be done.
        """
        rows = min(rows_of(inputs), self.rows_at_once or rows_of(inputs))
        step = self.state.global_step + 1
        # A loss that is a mean over its batch, or gradients that meet those of other processes, cannot be put together.
        summed = num_items is not None and self.compute_loss_func is None and self.label_smoother is None
        if rows == 1 or not summed or self.args.world_size > 1 or self.prompted is None:
            raise TrainingError(
                f"the memory is not enough for {rows} row{'s' if rows > 1 else ''} at step {step} "
                f"({str(error).splitlines()[0].rstrip('.')}); {self.last_good()}.",
                hint="Lower per_device_train_batch_size or tokens_per_batch (and raise gradient_accumulation_steps) or "
                f"max_length, or set {CHECKPOINTING}.",
            ) from error
        self.rows_at_once = rows // 2
        self.say(
            f"out of memory at step {step} with {rows} rows at once: going on with {self.rows_at_once} at a time, in "
            "the same batches"
        )

    def _one_prefix(self, model: nn.Module, *, alone: bool, last: bool) -> AbstractContextManager[Any]:
        """Nothing where there is one micro-batch a step, or where every micro-batch's gradient must be whole."""
        prompted = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        one = (alone and self.args.gradient_accumulation_steps == 1) or not isinstance(prompted, PTunedModel)
        whole = self.accelerator.distributed_type in WHOLE_MODEL and not self.args.torch_compile
        if one or not whole or self.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False):
            return nullcontext()
        scope: AbstractContextManager[None] = prompted.prefix_scope(last=last)
        return scope

    # ---- losses that are not finite ----------------------------------------------------------------------------

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Trainer's own, which comes before every optimizer step; raises where a loss or the gradient is not finite."""
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        in_hand, self._in_hand = self._in_hand, []
        if self.prompted is None:
            return norm
        losses = torch.stack([loss for _, loss in in_hand])
        # A gradient scaler looks for overflows itself, and leaves those steps out.
        scaled = getattr(self.accelerator, "scaler", None) is not None
        total = losses.sum() if scaled or norm is None else losses.sum() + torch.as_tensor(norm, device=losses.device)
        if not bool(torch.isfinite(total)):
            raise self._not_finite(in_hand, norm)
        return norm

    def _not_finite(self, in_hand: Sequence[tuple[dict[str, Any], torch.Tensor]], norm: Any) -> TrainingError:
        """The error, with the rows that are not finite by themselves."""
        wrong = [(batch, loss) for batch, loss in in_hand if not bool(torch.isfinite(loss))]
        what = f"the loss is {float(wrong[0][1])}" if wrong else f"the norm of the gradient is {float(norm)}"
        batches = [batch for batch, _ in wrong or in_hand]
        every = [ids for batch in batches for ids in row_tokens(batch)]
        rows = [ids for batch in batches for ids in self._bad_rows(batch)]
        names = [self.name_row(ids) for ids in (rows or every)[:NAMED_ROWS]]
        more = ", …" if len(rows or every) > NAMED_ROWS else ""
        where = f"in {len(rows)} of {len(every)} rows" if rows else "in none of its rows alone"
        where = "in every row" if len(rows) == len(every) > 1 else where
        look = "Lower" if len(rows) == len(every) > 1 else "Look at those rows, lower"
        return TrainingError(
            f"{what} at step {self.state.global_step + 1}, {where} ({', '.join(names)}{more}); {self.last_good()}.",
            hint=f"{look} learning_rate, or train in another dtype than float16.",
        )

    def _bad_rows(self, batch: dict[str, Any]) -> list[list[int]]:
        """Token ids of the rows whose loss or gradient, taken alone, is not finite."""
        found, model = [], self.prompted
        assert model is not None
        for row in range(rows_of(batch)):
            one = self._prepare_inputs(row_slice(batch, row, row + 1))
            model.zero_grad()
            with self.compute_loss_context_manager():
                loss: Any = model(**one, num_items_in_batch=1, return_logits=False).loss
            loss.backward()
            grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            if not all(bool(torch.isfinite(number).all()) for number in (loss, *grads)):
                found += row_tokens(one)
        return found

    def _row_number(self, ids: list[int]) -> str:
        """The place of a row in the training data."""
        rows: Any = self.train_dataset
        return next((f"row {row}" for row in range(len(rows)) if list(rows[row]["input_ids"]) == ids), "a row")
