"""One optimizer step of a prompt, from micro-batches to a gradient that may be used.

With gradient accumulation the micro-batches of a step share one prefix (see `ptune.prefix.across_micro_batches`), and
so one dropout mask of the prompt encoder, as the rows of one big batch would.

Where the memory is not enough for a micro-batch, its rows are taken in parts, and the step's gradient stays the same:
the loss is a sum over labels divided by the labels of the whole step. The first loss or gradient that is not finite
ends the run before the optimizer takes it, and the rows it came from are named. A gradient that is exactly 0 though
there is a loss ends it too: some kernels for inference give none.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn
from transformers import Trainer, TrainerCallback
from typing_extensions import override

from ptune.choices import CHECKPOINTING
from ptune.errors import TrainingError
from ptune.frozen.shards import is_sharded
from ptune.training.micro_batches import in_parts, rows_of
from ptune.training.not_finite import not_finite
from ptune.training.trained import trained_prompt


class OptimizerStep(TrainerCallback):
    """Runs the micro-batches of one optimizer step after the other.

    Args:
        trainer: The one that it belongs to; its arguments, state and accelerator are read.
        forward_backward: What `Trainer.training_step` does with one micro-batch; gives its loss.
        name_row: What a row of these token ids is called in an error; its number in the data by default.
        say: Takes a line for people when something is done differently than asked.
        last_good: Says where the run can go on from.
    """

    def __init__(
        self,
        trainer: Trainer,
        forward_backward: Callable[[nn.Module, dict[str, Any], Any], torch.Tensor],
        *,
        name_row: Callable[[list[int]], str] | None,
        say: Callable[[str], None],
        last_good: Callable[[], str],
    ) -> None:
        self.trainer = trainer
        self.forward_backward = forward_backward
        self.name_row = name_row or self._row_number
        self.say = say
        self.last_good = last_good
        self.rows_at_once: int | None = None
        """The most rows that go through the model together; set when the memory was not enough for more."""
        self._in_hand: list[tuple[dict[str, Any], torch.Tensor]] = []
        """The micro-batches of the optimizer step at hand, and their losses."""

    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget what an earlier run left, which may have ended within an optimizer step."""
        self._in_hand = []
        # Trainer would put the mean of earlier losses in the place of one that is not finite.
        args.logging_nan_inf_filter = False
        self._forget_prefix()

    def _forget_prefix(self) -> None:
        if (model := trained_prompt(self.trainer)) is not None:
            model.shared_prefix.reset()

    def run(self, model: nn.Module, inputs: dict[str, Any], num_items: torch.Tensor | int | None) -> torch.Tensor:
        """Forward and backward of a micro-batch; gives its loss.

        Where the memory is not enough, the whole optimizer step starts again with fewer rows at a time: what the
        failed backward has left in the gradients is not known.

        Raises:
            TrainingError: One row alone needs more memory than there is.
        """
        earlier = [batch for batch, _ in self._in_hand]
        loss = self._attempt(model, [inputs], num_items)
        while loss is None:
            clear_device_cache()
            model.zero_grad()
            self._forget_prefix()
            loss = self._attempt(model, [*earlier, inputs], num_items)
        self._in_hand.append((inputs, loss))
        return loss

    def check_finite(self, norm: Any) -> None:
        """Raise `TrainingError` where a loss of the step or its gradient is not finite, or the gradient is all 0."""
        in_hand, self._in_hand = self._in_hand, []
        prompted = trained_prompt(self.trainer)
        if prompted is None:
            return
        losses = torch.stack([loss for _, loss in in_hand])
        # A gradient scaler looks for overflows itself, and leaves those steps out.
        scaled = getattr(self.trainer.accelerator, "scaler", None) is not None
        total = losses.sum() if scaled or norm is None else losses.sum() + torch.as_tensor(norm, device=losses.device)
        finite = torch.isfinite(total)
        learns = finite
        if norm is not None and not scaled:
            learns = finite & ((torch.as_tensor(norm, device=losses.device) != 0) | (losses.sum() <= 0))
        if bool(learns):  # the one look of a step that waits for the device
            return
        if not bool(finite):
            raise not_finite(self.trainer, prompted, in_hand, norm, name_row=self.name_row, last_good=self.last_good())
        raise TrainingError(
            f"the gradient of the prompt is exactly 0 at step {self.trainer.state.global_step + 1}, where the loss "
            f"is {float(losses.sum()):.4g}: nothing would be learned; {self.last_good()}.",
            hint="The model's products hand no gradient on, or the vectors are too large for float32. Try another "
            "dtype, another quantization or none, or a lower learning_rate.",
        )

    def _attempt(self, model: nn.Module, batches: list[dict[str, Any]], num_items: Any) -> torch.Tensor | None:
        """The last micro-batch's loss; None where the memory was not enough, and fewer rows are to be tried."""
        loss, last = None, bool(self.trainer.accelerator.sync_gradients)
        try:
            for batch in batches:
                loss = self._micro_batch(model, batch, num_items, last=last and batch is batches[-1])
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            self._take_fewer_rows(batches[-1], num_items, error)
            return None
        return loss

    def _micro_batch(
        self, model: nn.Module, inputs: dict[str, Any], num_items: torch.Tensor | int | None, *, last: bool
    ) -> torch.Tensor:
        """Forward and backward, so many rows at a time as the memory has room for."""
        parts = in_parts(inputs, self.rows_at_once)
        losses = []
        for number, part in enumerate(parts, start=1):
            with self._one_prefix(alone=len(parts) == 1, last=last and number == len(parts)):
                losses.append(self.forward_backward(model, part, num_items))
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _take_fewer_rows(self, inputs: dict[str, Any], num_items: Any, error: RuntimeError) -> None:
        """Halve the rows that go through the model together.

        Raises:
            TrainingError: That cannot be done.
        """
        trainer, args = self.trainer, self.trainer.args
        rows = min(rows_of(inputs), self.rows_at_once or rows_of(inputs))
        step = trainer.state.global_step + 1
        # A loss that is a mean over its batch, or gradients that meet those of other processes, cannot be put together.
        summed = num_items is not None and trainer.compute_loss_func is None and trainer.label_smoother is None
        if rows == 1 or not summed or args.world_size > 1 or trained_prompt(trainer) is None:
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

    def _one_prefix(self, *, alone: bool, last: bool) -> AbstractContextManager[Any]:
        """Nothing where there is one micro-batch a step, or where every micro-batch's gradient must be whole."""
        args, accelerator = self.trainer.args, self.trainer.accelerator
        prompted = trained_prompt(self.trainer)
        one = (alone and args.gradient_accumulation_steps == 1) or args.torch_compile
        # A layer that is sharded is not there for gradients that come by keys and values alone.
        one = one or (prompted is not None and is_sharded(prompted.base))
        if prompted is None or one or accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False):
            return nullcontext()
        scope: AbstractContextManager[None] = prompted.prefix_scope(last=last)
        return scope

    def _row_number(self, ids: list[int]) -> str:
        """The place of a row in the training data."""
        rows: Any = self.trainer.train_dataset
        return next((f"row {row}" for row in range(len(rows)) if list(rows[row]["input_ids"]) == ids), "a row")
