"""`PTuneTrainer`: a `transformers.Trainer` that knows a soft prompt.

All of Trainer's options keep their meaning. What is added: the LM head runs on supervised positions only, batches may
be packed and fill a budget of tokens, tokens a second and memory stand in the log, and four collaborators do the rest:

| what | who |
| --- | --- |
| one optimizer step: a prefix for all its micro-batches, too little memory, NaN | `optimizer_step.OptimizerStep` |
| checkpoints: whole or not there, and without a pickle | `checkpoint_store.CheckpointStore` |
| the place in a run, so that one that is cut off goes on as if nothing had happened | `run_state.RunState` |
| the loss of an evaluation, every answer token weighing the same | `evaluation_loss.EvaluationLoss` |

The private methods that are overridden here stand in `ptune.internals.TRAINER_HOOKS`, each with its reason.

Shapes: `B` rows, `T` tokens of the longest row, `N` tokens of all rows of a packed batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput

from ptune.data.batching import TokenBudgetBatchSampler
from ptune.data.collate import PackingCollator, unpacked
from ptune.data.first_labels import without_first_labels
from ptune.data.labels import IGNORE_INDEX
from ptune.data.soft_labels import TEACHER_IDS
from ptune.errors import ConfigError, listed
from ptune.frozen.transfer import pins
from ptune.internals import training_columns, use_one_gpu
from ptune.memory.allocator import keep_freed_memory
from ptune.memory.measure import memory_now
from ptune.model.task_model import PTunedTaskModel
from ptune.model.taught import divergence
from ptune.model.wrapper import PTunedModel
from ptune.training.batches import budget_loader, budget_sampler
from ptune.training.checkpoint_store import CheckpointStore
from ptune.training.checkpoints import find_checkpoint
from ptune.training.evaluation_loss import EvaluationLoss
from ptune.training.generators import set_generators
from ptune.training.head_steps import HeadSteps
from ptune.training.micro_batches import text_tokens
from ptune.training.optimizer_step import OptimizerStep
from ptune.training.processes import shard, take_over_sharding
from ptune.training.run_state import RunState
from ptune.training.signals import StopRequest
from ptune.training.token_rate import TokenRate
from ptune.training.trained import trained_prompt, warn_of_missing_names

_log = logging.getLogger("ptune")


class PTuneTrainer(Trainer):
    """Trains the active prompt of a `PTunedModel`; arguments as for `transformers.Trainer`.

    Args:
        tokens_per_batch: Training batches of up to so many text tokens, in place of `per_device_train_batch_size` rows.
        head_steps: How a classifier's head learns that trains with the prompt; at the prompt's rate by default.
        more_metrics: Gives more scores of each evaluation, by their names without `eval_`.
        prompt_details: Plain values noted in every saved prompt's `ptune.json` (template, data, …).
        stop: While it is entered, a signal ends the training after the step at hand, with a checkpoint.
        name_row: What a row of these token ids is called in an error; its number in the data by default.
        say: Takes a line for people when something is done differently than asked; a warning in the log by default.

    Raises:
        ConfigError: Shards that no prompt can be trained on; rows or options that do not go with `tokens_per_batch`, or
            with packed batches; on training, other prompts are set to train than the active one, which alone is saved.
        OutputError: A checkpoint cannot be written; the earlier ones are whole.
        TrainingError: The prompt, a loss or a gradient is not finite, or one row alone needs more memory than there is.
        RunStoppedError: A signal came; what had been done is saved.
    """

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *more: Any,
        tokens_per_batch: int | None = None,
        head_steps: HeadSteps | None = None,
        more_metrics: Callable[[], Mapping[str, float]] | None = None,
        prompt_details: Mapping[str, Any] | None = None,
        stop: StopRequest | None = None,
        name_row: Callable[[list[int]], str] | None = None,
        say: Callable[[str], None] = _log.warning,
        **kwargs: Any,
    ) -> None:
        if args is not None and isinstance(model, PTunedModel) and (mesh := take_over_sharding(args)) is not None:
            shard(model, mesh)
        if args is not None and args.n_gpu > 1:
            # One process drives one GPU: Trainer would use DataParallel, whose replicas share the first one's weights.
            use_one_gpu(args)
            say("several GPUs are visible, and one is used; for all of them: accelerate launch, or torchrun")
        if args is not None:
            _pin_batches(args)
        super().__init__(model, args, *more, **kwargs)
        warn_of_missing_names()
        self.stop = stop
        self.more_metrics = more_metrics
        self.head_steps = head_steps
        self.store = CheckpointStore(self, prompt_details or {})
        self.tokens = TokenRate()
        self.run_state = RunState(self, self.store, self.tokens, stop)
        self.optimizer_step = OptimizerStep(
            self, super().training_step, name_row=name_row, say=say, last_good=self.store.last_good
        )
        self.evaluation_loss = EvaluationLoss(self)
        self.budget_sampler: TokenBudgetBatchSampler | None = None
        if tokens_per_batch is not None:
            self.budget_sampler = budget_sampler(self.train_dataset, tokens_per_batch, self.args)
        if isinstance(self.data_collator, PackingCollator) and "inputs" in self.args.include_for_metrics:
            raise ConfigError("include_for_metrics=inputs needs rows, not packed batches.", hint="Use PaddingCollator.")
        self._order = torch.Generator()
        self._reads_logits = True

    # ---- the run -----------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer's own, from the start or from a checkpoint; True is the newest whole one in `output_dir`."""
        ours = trained_prompt(self) is not None
        if resume_from_checkpoint is True and ours:
            resume_from_checkpoint = str(find_checkpoint(True, self.store.output, _log.warning))
        self.run_state.forget()
        for callback in (self.optimizer_step, self.run_state):  # behind those that were added since
            self.pop_callback(callback)
            self.add_callback(callback)
        eval_on_start = self.args.eval_on_start
        if resume_from_checkpoint and ours:
            self.args.eval_on_start = False  # the first run has done it
        try:
            with keep_freed_memory() if self.args.device.type == "cpu" else nullcontext():
                return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.args.eval_on_start = eval_on_start

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Trainer's own, once it is sure that it is the active prompt which trains."""
        if (model := trained_prompt(self)) is not None:
            trained = [name for name, one in model.prompts.items() if any(p.requires_grad for p in one.parameters())]
            if not trained:
                raise ConfigError("no prompt of the model trains.", hint="Add one, or load it with trainable=True.")
            if trained != [model.active_prompt]:
                raise ConfigError(
                    f"{type(self).__name__} trains the active prompt alone, {model.active_prompt!r}; set to train: "
                    f"{listed(trained)}.",
                    hint="Call set_prompt(NAME). To train several at once use transformers.Trainer or a loop of your "
                    "own, and save each: save_pretrained(DIR, prompt_name=NAME).",
                )
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        head = None if model is None else model.encoder_of(model.active_adapter).head
        if head is not None and self.head_steps is not None:
            self.head_steps.begin(optimizer, head)
        return optimizer

    def _run_epoch(self, model: nn.Module, epoch: int, *args: Any, **kwargs: Any) -> None:
        if self.run_state.over:
            self.control.should_training_stop = True
            return
        self._order.manual_seed((self.args.seed if self.args.data_seed is None else self.args.data_seed) + epoch)
        # accelerate does not tell a sampler the epoch behind both a shard and the skipping of a resumed run.
        if self.budget_sampler is not None:
            self.budget_sampler.set_epoch(epoch)
        super()._run_epoch(model, epoch, *args, **kwargs)  # type: ignore[no-untyped-call]

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """One micro-batch of an optimizer step; see `OptimizerStep.run`."""
        self.tokens.add(text_tokens(inputs))
        # Trainer sums losses on its own device, which is not that of every model that is spread over several.
        return self.optimizer_step.run(model, inputs, num_items_in_batch).to(self.args.device)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        self.run_state.grad_norm = norm
        self.optimizer_step.check_finite(norm)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens a second (all processes) and memory to a log of training."""
        if "loss" in logs:
            rate = self.tokens.per_second() * self.args.world_size
            memory = {name: round(size, 3) for name, size in memory_now().items()}
            logs = {**logs, "tokens_per_second": round(rate, 1), **memory}
        if "train_runtime" in logs:
            self.run_state.count_earlier_time(logs)
        super().log(logs, start_time)

    def total_tokens(self) -> int:
        """Text tokens trained on in all processes. Every process must call it."""
        seen = torch.tensor(self.tokens.seen, device=self.args.device)
        return int(self.accelerator.reduce(seen, reduction="sum"))

    # ---- training batches --------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Trainer's own, or one that fills the budget of tokens."""
        if self.budget_sampler is None:
            loader = super().get_train_dataloader()
            batches = getattr(loader, "batch_sampler", None)
            sampler = getattr(getattr(batches, "batch_sampler", batches), "sampler", None)
            if isinstance(sampler, LengthGroupedSampler):
                # It would draw on torch's global generator, which a resumed run finds elsewhere, and every process too.
                sampler.generator = self._order
            return loader
        dataset, collate = training_columns(self, self.train_dataset, self.data_collator)
        filled: DataLoader[Any] = self.accelerator.prepare(
            budget_loader(dataset, self.budget_sampler, collate, self.args)
        )
        return filled

    def get_total_train_batch_size(self, args: Any) -> int:
        """Rows of an optimizer step, in the mean where batches fill a budget of tokens."""
        if self.budget_sampler is None:
            return int(super().get_total_train_batch_size(args))
        batches = int(args.gradient_accumulation_steps * args.world_size)
        return round(batches * self.budget_sampler.rows / len(self.budget_sampler))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The batches of a step and the number of their labels; labels that no prompt predicts are left out."""
        if self._lacks_first_labels():
            epoch_iterator = map(without_first_labels, epoch_iterator)
        found: tuple[list[Any], torch.Tensor | int | None] = super().get_batch_samples(
            epoch_iterator, num_batches, device
        )
        return found

    def _lacks_first_labels(self) -> bool:
        model = trained_prompt(self)
        return model is not None and model.active_prompt is not None and not model.predicts_first_tokens

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
        prompted = trained_prompt(self)
        if isinstance(prompted, PTunedModel) and TEACHER_IDS in inputs:
            loss = divergence(prompted, inputs, num_items=num_items_in_batch)
            return (loss, {}) if return_outputs else loss
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
        return partial(self.label_smoother, shift_labels=not isinstance(trained_prompt(self), PTunedTaskModel))

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
        if self._lacks_first_labels():
            inputs = without_first_labels(inputs)
        if "labels" in inputs:
            inputs = {**inputs, "labels": self.evaluation_loss.without_repeats(inputs)}
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if loss is not None and "labels" in inputs:
            self.evaluation_loss.add(loss, inputs["labels"])
        if "row_lengths" in inputs:
            logits, labels = (_rows_apart(value, inputs["row_lengths"]) for value in (logits, labels))
        return loss, logits, labels

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Trainer's loop, with the loss over all answer tokens of all processes; its time is not training time."""
        self.evaluation_loss.begin()
        with self.tokens.paused():
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            more = self.more_metrics() if self.more_metrics is not None and metric_key_prefix == "eval" else {}
        mean = self.evaluation_loss.mean()
        if mean.tokens and output.metrics is not None:
            output.metrics[f"{metric_key_prefix}_loss"] = mean.loss
            output.metrics.update({f"{metric_key_prefix}_{name}": score for name, score in more.items()})
        return output

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The prompt folder, and the tokenizer where the trainer was given one."""
        model, folder = trained_prompt(self), output_dir or self.args.output_dir
        if model is None or folder is None:
            super().save_model(output_dir, _internal_call)
            return
        if self.args.should_save:
            self.store.save_prompt(model, folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        prompted = trained_prompt(self)
        if prompted is None or trial is not None:
            super()._save_checkpoint(model, trial)
            return
        self.store_flos()
        self.store.write(prompted, self.run_state.shared(), self.run_state.own())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.store.holds(resume_from_checkpoint):
            self.store.load_prompt(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is not None and self.store.holds(best):
            self.store.load_prompt(best)
        else:
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.store.holds(checkpoint):
            self.run_state.resume(self.store.load_optimizer(checkpoint))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.store.holds(checkpoint):
            super()._load_rng_state(checkpoint)
        elif not self.run_state.generators_set:
            set_generators(self.store.process_state(checkpoint)["generators"], self.args.device)


def _pin_batches(args: TrainingArguments) -> None:
    """Copy batches while the host goes on, where a device can: from pinned memory, which Trainer alone waits for."""
    args.dataloader_pin_memory = args.dataloader_pin_memory and pins(args.device)
    config: Any = args.accelerator_config
    config.non_blocking = args.dataloader_pin_memory or config.non_blocking


def _rows_apart(value: Any, lengths: Sequence[int]) -> Any:
    """Every `(1, N, …)` tensor of a packed batch as `(B, T, …)`; other values are left alone."""
    if isinstance(value, (tuple, list)):
        return type(value)(_rows_apart(one, lengths) for one in value)
    if isinstance(value, torch.Tensor) and tuple(value.shape[:2]) == (1, sum(lengths)):
        return unpacked(value, lengths, IGNORE_INDEX)
    return value
