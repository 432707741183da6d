"""A `transformers.Trainer` whose runs can be cut off anywhere and go on as if nothing had happened.

Trainer goes on with weights, optimizer, schedule, random generators and the place in the data. What it forgets, and
what is kept here besides: the prompt encoder (PEFT's prompts lose theirs), the running sums behind the next logged
loss, the measurement at the end of an epoch where the last checkpoint was written before it, early stopping's patience,
that the run was over already, the time it took. Checkpoints are whole or not there (`ptune.training.checkpoints`), and
hold no pickle.

With DeepSpeed and FSDP, which keep states of their own, and for models other than a `PTunedModel`, everything is left
to Trainer.
"""

from __future__ import annotations

import logging
import random
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import DistributedType
from torch import nn
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_callback import ExportableState

from ptune.errors import OutputError, PromptError, RunStoppedError, TrainingError
from ptune.model.wrapper import PTunedModel
from ptune.saved.files import read_bytes, write_flushed
from ptune.saved.format import read_prompt
from ptune.saved.state import state_bytes, state_of
from ptune.training.checkpoints import (
    MANIFEST,
    MAX_STATE_BYTES,
    TRAINER_STATE,
    TRAINING_STATE,
    find_checkpoint,
    finish_checkpoint,
    keep_newest,
    newest_whole,
    open_staging,
    process_file,
    staging_folder,
)
from ptune.training.signals import StopRequest

WHOLE_MODEL = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""Where each process holds every parameter, and gradients meet at the last micro-batch of a step."""
_log = logging.getLogger("ptune")
_STEP, _EPOCH = "step", "epoch end"
"""Whether a checkpoint was written after a step or after what follows an epoch's last one."""


class ResumableTrainer(Trainer):
    """Trainer with whole checkpoints and exact resume; arguments as for `transformers.Trainer`.

    Args:
        prompt_details: Plain values noted in every saved prompt's `ptune.json` (template, data, …).
        stop: While it is entered, a signal ends the training after the step at hand, with a checkpoint.

    Raises:
        OutputError: A checkpoint cannot be written; the earlier ones are whole.
        TrainingError: The prompt holds numbers that are not finite.
        RunStoppedError: A signal came; what had been done is saved.
    """

    def __init__(
        self,
        *args: Any,
        prompt_details: Mapping[str, Any] | None = None,
        stop: StopRequest | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.prompt_details = dict(prompt_details or {})
        self.stop = stop
        self.tokens_seen = 0
        """Text tokens of this process's training batches so far; virtual tokens and padding not counted."""
        self._resumed: dict[str, Any] | None = None
        """What of the checkpoint is still to be restored, once the loop has set its own values."""
        self._generators_restored = False
        self._handled_step = -1
        self._saved_step = -1
        self._seconds_before = 0.0
        self._last_step: dict[str, Any] = {}

    @property
    def prompted(self) -> PTunedModel | None:
        """The model, where this class keeps its checkpoints; None where Trainer does."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model if isinstance(model, PTunedModel) and self.accelerator.distributed_type in WHOLE_MODEL else None

    def last_good(self) -> str:
        """Where the run can go on from, in words."""
        found = newest_whole(Path(self.args.output_dir or ""), lambda _: None)
        return "no checkpoint was written" if found is None else f"the last good checkpoint is {found}"

    # ---- the loop ----------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer's own, from the start or from a checkpoint; True is the newest whole one in `output_dir`."""
        if resume_from_checkpoint is True and self.prompted is not None:
            resume_from_checkpoint = str(find_checkpoint(True, Path(self.args.output_dir or ""), _log.warning))
        self._resumed, self._generators_restored = None, False
        self._handled_step = self._saved_step = -1
        self._seconds_before, self.tokens_seen = 0.0, 0
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        settings = kwargs.get("args") or self.args
        asked = settings.eval_on_start
        if kwargs.get("resume_from_checkpoint") is not None:
            settings.eval_on_start = False  # the first run has done it
        self._began = time.time()
        try:
            return super()._inner_training_loop(*args, **kwargs)
        finally:
            settings.eval_on_start = asked

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, checkpoint: Any, trial: Any
    ) -> tuple[int, int]:
        found: tuple[int, int] = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial
        )
        self._steps_of_epoch = num_update_steps_per_epoch
        if checkpoint is not None and self.prompted is not None:
            # Where Trainer looks for it, it may have been moved since.
            best = Path(self.args.output_dir or "") / f"checkpoint-{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(best) if best.is_dir() else self.state.best_model_checkpoint
            kept: Any = self.state.stateful_callbacks
            noted = kept.get(EarlyStoppingCallback.__name__)
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, EarlyStoppingCallback) and isinstance(noted, dict):
                    vars(callback).update(noted["attributes"])
        return found

    def _run_epoch(self, model: nn.Module, epoch: int, *args: Any, **kwargs: Any) -> None:
        if self._resumed is not None and self._continue(epoch, str(kwargs.get("resume_from_checkpoint"))):
            return
        super()._run_epoch(model, epoch, *args, **kwargs)  # type: ignore[no-untyped-call]

    def _finalize_training(self, trial: Any, num_train_samples: float, start_time: float) -> Any:
        if self._resumed is not None:
            self._continue(int(self.state.epoch or 1) - 1, self._resumed["checkpoint"])
        start = start_time - self._seconds_before
        return super()._finalize_training(trial, num_train_samples, start)  # type: ignore[no-untyped-call]

    def _continue(self, epoch: int, checkpoint: str) -> bool:
        """Take up what the loop of the first run had in hand; whether that run had come to its end."""
        resumed, self._resumed = self._resumed, None
        assert resumed is not None
        self._tr_loss = resumed["loss_sum"].to(self.args.device)
        self._total_loss_scalar = resumed["loss_total"]
        self._globalstep_last_logged = resumed["last_logged"]
        self._initial_global_step = resumed["first_step"]
        self.tokens_seen = resumed["tokens_seen"]
        self._seconds_before = resumed["seconds"]
        over = bool(resumed["over"]) or self.state.global_step >= self.state.max_steps
        at_end = self.state.global_step % self._steps_of_epoch == 0
        self._handled_step = self._saved_step = self.state.global_step
        if resumed["phase"] == _STEP and (over or at_end):
            self._load_rng_state(checkpoint)
            self._generators_restored = True
            self.control.should_training_stop = over
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            last = resumed["last_step"]
            self._maybe_log_save_evaluate(
                self._tr_loss, last["grad_norm"], self.model_wrapped, None, epoch, None, self._began,
                learning_rate=last["learning_rate"],
            )  # fmt: skip
            over = over or self.control.should_training_stop
        self.control.should_training_stop = over
        return over

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        """Trainer's own; then a stop that was asked for. The second call for a step is the end of its epoch."""
        self._phase = _EPOCH if self._handled_step == self.state.global_step else _STEP
        self._handled_step = self.state.global_step
        number = grad_norm.item() if isinstance(grad_norm, torch.Tensor) else grad_norm
        self._last_step = {"grad_norm": number, "learning_rate": kwargs.get("learning_rate")}
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)
        if (number := self._stop_signal()) is not None:
            if self._saved_step != self.state.global_step:
                self._save_checkpoint(self.model_wrapped, None)
            raise RunStoppedError(
                f"stopped after step {self.state.global_step} of {self.state.max_steps}; it is saved in "
                f"{Path(self.args.output_dir or '') / f'checkpoint-{self.state.global_step}'}.",
                signal_number=number,
            )

    def _stop_signal(self) -> int | None:
        """The signal that asked to stop, the same in every process."""
        if self.stop is None or self.prompted is None:
            return None
        number = self.stop.signal_number or 0
        if self.args.world_size > 1:
            asked = torch.tensor(number, device=self.args.device)
            torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
            number = int(asked)
        return number or None

    # ---- writing -----------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        prompted = self.prompted
        if prompted is None or trial is not None:
            super()._save_checkpoint(model, trial)
            return
        # The numbers themselves: to encode the prompt would draw on the random generators.
        if not all(bool(torch.isfinite(one).all()) for one in prompted.prompts.parameters()):
            raise TrainingError(
                f"the prompt is not finite after step {self.state.global_step}, and was not saved; {self.last_good()}.",
                hint="Lower learning_rate, or train in another dtype than float16.",
            )
        self.store_flos()
        output, step = Path(self.args.output_dir or ""), self.state.global_step
        try:
            self._write(prompted, output, step)
        except OSError as error:
            # What was begun has no name yet, and its room is wanted.
            staged = staging_folder(output, step)
            if self.args.should_save:
                shutil.rmtree(staged, ignore_errors=True)
            reason = error.message if isinstance(error, OutputError) else f"cannot write {output}: {error.strerror}."
            raise OutputError(
                f"the checkpoint of step {step} could not be written: {reason.rstrip('.')}; {self.last_good()}.",
                hint="Free some space or make the folder writable, then go on with --resume.",
            ) from error
        self._saved_step = step

    def _write(self, model: PTunedModel, output: Path, step: int) -> None:
        """Write a checkpoint; every process adds its own file. Raises `OSError`."""
        first, staged = self.args.should_save, staging_folder(output, step)
        if first:
            open_staging(output, step)
            model.save_pretrained(staged, prompt_name=model.active_prompt, **self.prompt_details)
            best = f"checkpoint-{self.state.best_global_step}"
            if self.state.best_global_step and (best == f"checkpoint-{step}" or (output / best).is_dir()):
                self.state.best_model_checkpoint = str(output / best)
            kept: Any = self.state.stateful_callbacks
            for one in (*self.callback_handler.callbacks, self.control):
                if isinstance(one, ExportableState):
                    kept[type(one).__name__] = one.state()
            self.state.save_to_json(str(staged / TRAINER_STATE))
            if not self.args.save_only_model:
                write_flushed(staged / TRAINING_STATE, state_bytes(self._run_state()))
        self.accelerator.wait_for_everyone()
        if not self.args.save_only_model:
            write_flushed(staged / process_file(self.args.process_index), state_bytes(self._process_state()))
        self.accelerator.wait_for_everyone()
        if first:
            finish_checkpoint(staged, output, step, resumable=not self.args.save_only_model)
            best_one = self.state.best_model_checkpoint
            keep_newest(output, self.args.save_total_limit, [] if best_one is None else [Path(best_one)])
        self.accelerator.wait_for_everyone()

    def _run_state(self) -> dict[str, Any]:
        """What all processes share."""
        scaler = getattr(self.accelerator, "scaler", None)
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "phase": self._phase,
            # By early stopping, say; whether the last step has been done is seen from its number.
            "over": self.control.should_training_stop and self.state.global_step < self.state.max_steps,
            "last_step": self._last_step,
            "last_logged": self._globalstep_last_logged,
            "first_step": getattr(self, "_initial_global_step", 0),
            "loss_total": self._total_loss_scalar,
            "seconds": self._seconds_before + time.time() - self._began,
        }

    def _process_state(self) -> dict[str, Any]:
        """What each process has of its own."""
        generators: dict[str, Any] = {
            "python": random.getstate(),
            "numpy": np.random.get_state(legacy=False),
            "torch": torch.random.get_rng_state(),
        }
        if torch.cuda.is_available():
            generators["cuda"] = torch.cuda.random.get_rng_state(self.args.device)
        return {
            "processes": self.args.world_size,
            "generators": generators,
            "loss_sum": self._tr_loss,
            "tokens_seen": self.tokens_seen,
        }

    # ---- reading -----------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._kept_here(resume_from_checkpoint):
            self._load_prompt(Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is not None and self._kept_here(best):
            self._load_prompt(Path(best))
        else:
            super()._load_best_model()

    def _kept_here(self, checkpoint: str | None) -> bool:
        return checkpoint is not None and self.prompted is not None and (Path(checkpoint) / MANIFEST).is_file()

    def _load_prompt(self, checkpoint: Path) -> None:
        """Put a checkpoint's encoder into the model.

        Raises:
            PromptError: It is damaged, or of another kind or size.
        """
        model = self.prompted
        assert model is not None
        saved = read_prompt(checkpoint)
        assert model.active_prompt is not None
        try:
            model.prompts[model.active_prompt].load_state_dict(dict(saved.encoder or {}))
        except RuntimeError as error:
            raise PromptError(
                f"the prompt encoder in {checkpoint} is not the one that trains here: {_first_fault(error)}",
                hint="Go on with the settings it was begun with.",
            ) from error

    def check_resumable(self, checkpoint: Path) -> None:
        """Read all that a checkpoint has to go on from, and load its prompt; so that what is wrong is said at once.

        Raises:
            PromptError: It is damaged, or of another run.
        """
        if self._kept_here(str(checkpoint)):
            self._load_prompt(checkpoint)
            self._read(checkpoint, TRAINING_STATE)
            self._own_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self._kept_here(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(str(checkpoint))
        whole, own = self._read(folder, TRAINING_STATE), self._own_state(folder)
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        self.optimizer.load_state_dict(whole["optimizer"])
        self.lr_scheduler.load_state_dict(whole["scheduler"])
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and whole["scaler"] is not None:
            scaler.load_state_dict(whole["scaler"])
        self._resumed = {**whole, **own, "checkpoint": str(checkpoint)}

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self._generators_restored:
            return
        if not self._kept_here(checkpoint):
            super()._load_rng_state(checkpoint)
            return
        generators = self._own_state(Path(str(checkpoint)))["generators"]
        random.setstate(generators["python"])
        np.random.set_state(generators["numpy"])
        torch.random.set_rng_state(generators["torch"])
        if torch.cuda.is_available() and "cuda" in generators:
            torch.cuda.random.set_rng_state(generators["cuda"], self.args.device)

    def _own_state(self, checkpoint: Path) -> dict[str, Any]:
        """This process's file.

        Raises:
            PromptError: The checkpoint was written by another number of processes, or is damaged.
        """
        own = self._read(checkpoint, process_file(self.args.process_index))
        if own["processes"] != self.args.world_size:
            raise PromptError(
                f"{checkpoint} was written by {own['processes']} processes, not {self.args.world_size}.",
                hint="Go on with as many as it was begun with.",
            )
        return own

    def _read(self, checkpoint: Path, name: str) -> dict[str, Any]:
        value = state_of(read_bytes(checkpoint, name, limit=MAX_STATE_BYTES), str(checkpoint / name))
        if not isinstance(value, dict):
            raise PromptError(f"{checkpoint / name} is no state of a training run.")
        return value


def _first_fault(error: RuntimeError) -> str:
    """The first of the tensors that do not fit, as torch lists them."""
    lines = [line.strip() for line in str(error).splitlines()]
    return (lines[1] if len(lines) > 1 else lines[0]).rstrip(".") + "."
