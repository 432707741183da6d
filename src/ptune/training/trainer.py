"""`PTuneTrainer`: a `transformers.Trainer` that knows a soft prompt.

All of Trainer's options keep their meaning. What is added: the LM head runs on supervised positions only, batches may
be packed and fill a budget of tokens, the prompt runs through encoder and model once an optimizer step, tokens a
second and memory stand in the log, and the loss of an evaluation weighs every answer token the same. (Trainer's own
averages the means of the batches, so that it depends on how the rows fall into batches.) Checkpoints and exact resume
are `ResumableTrainer`'s; running out of memory and losses that are not finite are `StepTrainer`'s.

Shapes: `B` rows, `T` tokens of the longest row, `N` tokens of all rows of a packed batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput

from ptune.data.batching import TokenBudgetBatchSampler
from ptune.data.collate import PackingCollator, unpacked
from ptune.data.labels import IGNORE_INDEX
from ptune.errors import ConfigError, listed
from ptune.evaluation.held_out_loss import LossSum
from ptune.memory.allocator import keep_freed_memory
from ptune.memory.measure import memory_now
from ptune.training.batches import budget_loader, budget_sampler
from ptune.training.steps import StepTrainer


class PTuneTrainer(StepTrainer):
    """Trains the active prompt of a `PTunedModel`; arguments as for `transformers.Trainer` and `StepTrainer`.

    Args:
        tokens_per_batch: Training batches of up to so many text tokens, in place of `per_device_train_batch_size` rows.

    Raises:
        ConfigError: Rows or options that do not go with `tokens_per_batch`, or with packed batches; on training, other
            prompts are set to train than the active one, which alone is saved.
    """

    def __init__(
        self,
        *args: Any,
        tokens_per_batch: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.budget_sampler: TokenBudgetBatchSampler | None = None
        if tokens_per_batch is not None:
            self.budget_sampler = budget_sampler(self.train_dataset, tokens_per_batch, self.args)
        if isinstance(self.data_collator, PackingCollator) and "inputs" in self.args.include_for_metrics:
            raise ConfigError("include_for_metrics=inputs needs rows, not packed batches.", hint="Use PaddingCollator.")
        self._order = torch.Generator()
        self._since = (time.perf_counter(), 0)
        self._reads_logits = True
        self._evaluated = LossSum()

    # ---- training batches --------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Trainer's own, or one that fills the budget of tokens."""
        if self.budget_sampler is None:
            return super().get_train_dataloader()
        dataset, collate = self.train_dataset, self.data_collator
        if isinstance(dataset, Dataset):
            dataset = self._remove_unused_columns(dataset, description="training")
        else:
            collate = self._get_collator_with_removed_columns(collate, description="training")
        loader: DataLoader[Any] = self.accelerator.prepare(
            budget_loader(dataset, self.budget_sampler, collate, self.args)
        )
        return loader

    def get_total_train_batch_size(self, args: Any) -> int:
        """Rows of an optimizer step, in the mean where batches fill a budget of tokens."""
        if self.budget_sampler is None:
            return int(super().get_total_train_batch_size(args))
        batches = int(args.gradient_accumulation_steps * args.world_size)
        return round(batches * self.budget_sampler.rows / len(self.budget_sampler))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any] | None:
        sampler: Sampler[Any] | None = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            # It would draw on torch's global generator, which a resumed run finds elsewhere, and every process too.
            sampler.generator = self._order
        return sampler

    def _run_epoch(self, model: nn.Module, epoch: int, *args: Any, **kwargs: Any) -> None:
        self._order.manual_seed((self.args.seed if self.args.data_seed is None else self.args.data_seed) + epoch)
        # accelerate does not tell a sampler the epoch behind both a shard and the skipping of a resumed run.
        if self.budget_sampler is not None:
            self.budget_sampler.set_epoch(epoch)
        super()._run_epoch(model, epoch, *args, **kwargs)

    def total_tokens(self) -> int:
        """Text tokens trained on in all processes. Every process must call it."""
        seen = torch.tensor(self.tokens_seen, device=self.args.device)
        return int(self.accelerator.reduce(seen, reduction="sum"))

    # ---- the loss ----------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss; full logits only where something reads them (metrics, label smoothing, a loss function given).

        An evaluation's loss is the mean over this process's batch; `evaluation_loop` weighs the batches.
        """
        if not model.training:
            num_items_in_batch = None
        function = self._loss_function(inputs)
        inputs = {**inputs, "return_logits": function is not None or (return_outputs and self._reads_logits)}
        if function is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels, lengths = inputs.pop("labels", None), inputs.get("row_lengths")
        outputs = model(**inputs)
        if lengths is not None:
            # Rows apart: a function that looks one token ahead would look from the end of a row into the next one.
            outputs["logits"], labels = _rows_apart(outputs["logits"], lengths), _rows_apart(labels, lengths)
        loss = function(outputs, labels, num_items_in_batch=num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _loss_function(self, inputs: Mapping[str, Any]) -> Callable[..., torch.Tensor] | None:
        """What computes the loss from the logits; None where the model does it."""
        if self.compute_loss_func is not None:
            given: Callable[..., torch.Tensor] = self.compute_loss_func
            return given
        if self.label_smoother is None or "labels" not in inputs:
            return None
        # Trainer knows by the class's name whether logits are one ahead of the labels, and does not know PTunedModel.
        return partial(self.label_smoother, shift_labels=True)

    # ---- evaluation --------------------------------------------------------------------------------------------

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """One evaluation batch, as in Trainer; its loss is summed on the way, and packed rows come back apart."""
        self._reads_logits = not prediction_loss_only
        if "labels" in inputs:
            inputs = {**inputs, "labels": self._without_repeats(inputs)}
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if loss is not None and "labels" in inputs:
            tokens = int((inputs["labels"] != IGNORE_INDEX).sum())
            self._evaluated.add(float(loss) * tokens, tokens)
        if "row_lengths" in inputs:
            logits, labels = (_rows_apart(value, inputs["row_lengths"]) for value in (logits, labels))
        return loss, logits, labels

    def _without_repeats(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The labels, masked where several processes' last batches are filled up with rows that came before."""
        labels: torch.Tensor = inputs["labels"]
        lengths: Sequence[int] | None = inputs.get("row_lengths")
        state = self.accelerator.gradient_state
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return labels
        rows = len(labels) if lengths is None else len(lengths)
        real = min(max(state.remainder - self.args.process_index * rows, 0), rows)
        labels = labels.clone()
        if lengths is None:
            labels[real:] = IGNORE_INDEX
        else:
            labels[:, sum(lengths[:real]) :] = IGNORE_INDEX
        return labels

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Trainer's loop, with the loss over all answer tokens of all processes; its time is not training time."""
        start = time.perf_counter()
        self._evaluated = LossSum()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        mean = self._evaluated.mean(self.args.world_size, self.args.device)
        if mean.tokens and output.metrics is not None:
            output.metrics[f"{metric_key_prefix}_loss"] = mean.loss
        then, seen = self._since
        self._since = (then + time.perf_counter() - start, seen)
        return output

    # ---- log and checkpoints -----------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens a second (all processes) and memory to a log of training."""
        if "loss" in logs:
            then, tokens = self._since
            now = time.perf_counter()
            rate = (self.tokens_seen - tokens) / max(now - then, 1e-9) * self.args.world_size
            self._since = (now, self.tokens_seen)
            memory = {name: round(size, 3) for name, size in memory_now().items()}
            logs = {**logs, "tokens_per_second": round(rate, 1), **memory}
        super().log(logs, start_time)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._check_active_trains()
        self._since = (time.perf_counter(), self.tokens_seen)
        with keep_freed_memory() if self.args.device.type == "cpu" else nullcontext():
            return super()._inner_training_loop(*args, **kwargs)

    def _check_active_trains(self) -> None:
        model = self.prompted
        if model is None:
            return
        training = [name for name, one in model.prompts.items() if any(p.requires_grad for p in one.parameters())]
        if not training:
            raise ConfigError("no prompt of the model trains.", hint="Add one, or load it with trainable=True.")
        if training != [model.active_prompt]:
            raise ConfigError(
                f"{type(self).__name__} trains the active prompt alone, {model.active_prompt!r}; set to train: "
                f"{listed(training)}.",
                hint="Call set_prompt(NAME). To train several at once use transformers.Trainer or a loop of your own, "
                "and save each: save_pretrained(DIR, prompt_name=NAME).",
            )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """`save_model`: the prompt folder, and the tokenizer where the trainer was given one."""
        model, folder = self.prompted, output_dir or self.args.output_dir
        if model is None or folder is None:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            model.save_pretrained(folder, prompt_name=model.active_prompt, **self.prompt_details)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)


def _rows_apart(value: Any, lengths: Sequence[int]) -> Any:
    """Every `(1, N, …)` tensor of a packed batch as `(B, T, …)`; other values are left alone."""
    if isinstance(value, (tuple, list)):
        return type(value)(_rows_apart(one, lengths) for one in value)
    if isinstance(value, torch.Tensor) and tuple(value.shape[:2]) == (1, sum(lengths)):
        return unpacked(value, lengths, IGNORE_INDEX)
    return value
