"""`PTuneTrainer`: a `transformers.Trainer` that knows a soft prompt.

All of Trainer's options keep their meaning. What is added: the LM head runs on supervised positions only, tokens a second and memory stand in
the log, and every checkpoint is a prompt folder too, next to the trainer's own state.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import psutil
import torch
from torch import nn
from transformers import Trainer

from ptune.memory.measure import GIB
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

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss; full logits only where someone reads them (metrics, label smoothing)."""
        if model.training:
            self.tokens_seen += int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else inputs["input_ids"].numel()
        read = self.label_smoother is not None or (return_outputs and not self.args.prediction_loss_only)
        return super().compute_loss(model, {**inputs, "return_logits": read}, return_outputs, num_items_in_batch)

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
        if self.args.should_save and isinstance(model, PTunedModel):
            model.save_pretrained(output_dir or self.args.output_dir, **self.prompt_details)


def _memory_gib() -> float:
    """What CUDA's allocator holds, or the process's resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / GIB
    return float(psutil.Process().memory_info().rss) / GIB
