"""`PTuneTrainer`: a `transformers.Trainer` that knows a soft prompt.

All of Trainer's options keep their meaning. What is added: the LM head runs on supervised positions only, tokens a
second and memory stand in the log, every checkpoint is a prompt folder too, next to the trainer's own state, and the
loss of an evaluation weighs every answer token the same. (Trainer's own averages the means of the batches, so that it
depends on how the rows fall into batches.)
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from ptune.memory.measure import GIB
from ptune.model.loss import IGNORE_INDEX
from ptune.model.wrapper import PTunedModel


class PTuneTrainer(Trainer):
    """Trains the active prompt of a `PTunedModel`; arguments as for `transformers.Trainer`.

    Args:
        prompt_details: Plain values noted in every saved prompt's `ptune.json` (template, data, …).
    """

    def __init__(self, *args: Any, prompt_details: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prompt_details = dict(prompt_details or {})
        self.tokens_seen = 0
        """Text tokens of this process's training batches so far; virtual tokens and padding not counted."""
        self._since = (time.perf_counter(), 0)
        self._reads_logits = True
        self._evaluated = (0.0, 0)

    def total_tokens(self) -> int:
        """Text tokens trained on in all processes. Every process must call it."""
        seen = torch.tensor(self.tokens_seen, device=self.args.device)
        return int(self.accelerator.reduce(seen, reduction="sum"))

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
        if model.training:
            self.tokens_seen += _text_tokens(inputs)
        else:
            num_items_in_batch = None
        smooth = self.label_smoother if self.compute_loss_func is None and "labels" in inputs else None
        read = smooth is not None or self.compute_loss_func is not None or (return_outputs and self._reads_logits)
        inputs = {**inputs, "return_logits": read}
        if smooth is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # Trainer knows by the class's name whether logits are one ahead of the labels, and does not know PTunedModel.
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = smooth(outputs, labels, shift_labels=True, num_items_in_batch=num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """One evaluation batch, as in Trainer; its loss is summed on the way."""
        self._reads_logits = not prediction_loss_only
        if "labels" in inputs:
            inputs = {**inputs, "labels": self._without_repeats(inputs["labels"])}
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if loss is not None and "labels" in inputs:
            tokens = int((inputs["labels"] != IGNORE_INDEX).sum())
            total, count = self._evaluated
            self._evaluated = (total + float(loss) * tokens if tokens else total, count + tokens)
        return loss, logits, labels

    def _without_repeats(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels, masked where several processes' last batches are filled up with rows that came before."""
        state = self.accelerator.gradient_state
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return labels
        real = min(max(state.remainder - self.args.process_index * len(labels), 0), len(labels))
        labels = labels.clone()
        labels[real:] = IGNORE_INDEX
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
        self._evaluated = (0.0, 0)
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        total, tokens = self._evaluated
        if self.args.world_size > 1:
            sums = torch.tensor([total, tokens], dtype=torch.float64, device=self.args.device)
            total, tokens = self.accelerator.reduce(sums, reduction="sum").tolist()
        if tokens and output.metrics is not None:
            output.metrics[f"{metric_key_prefix}_loss"] = total / tokens
        then, seen = self._since
        self._since = (then + time.perf_counter() - start, seen)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens a second (all processes) and memory to a log of training."""
        if "loss" in logs:
            then, tokens = self._since
            now = time.perf_counter()
            rate = (self.tokens_seen - tokens) / max(now - then, 1e-9) * self.args.world_size
            self._since = (now, self.tokens_seen)
            logs = {**logs, "tokens_per_second": round(rate, 1), "memory_gib": round(_memory_gib(), 3)}
        super().log(logs, start_time)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._since = (time.perf_counter(), self.tokens_seen)
        return super()._inner_training_loop(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        folder = output_dir or self.args.output_dir
        if self.args.should_save and isinstance(model, PTunedModel) and folder is not None:
            model.save_pretrained(folder, **self.prompt_details)


def _text_tokens(inputs: Mapping[str, Any]) -> int:
    """Tokens of a batch that are not padding."""
    mask = inputs.get("attention_mask")
    return int(inputs["input_ids"].numel() if mask is None else mask.sum())


def _memory_gib() -> float:
    """What CUDA's allocator holds, or the process's resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / GIB
    return float(psutil.Process().memory_info().rss) / GIB
