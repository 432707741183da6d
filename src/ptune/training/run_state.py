"""The place in a run: what `transformers.Trainer` forgets of a run that is cut off, and how it is taken up again.

Trainer goes on with weights, optimizer, schedule, random generators and the place in the data. What it forgets is kept
here besides: the running sums behind the next logged loss, the measurement at the end of an epoch where the last
checkpoint was written before it, early stopping's patience, that the run was over already, the time it took.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from typing_extensions import override

from ptune.errors import RunStoppedError
from ptune.internals import LossSums, finish_epoch, loss_sums, set_loss_sums
from ptune.training.checkpoint_store import CheckpointStore
from ptune.training.generators import generator_states, set_generators
from ptune.training.signals import StopRequest
from ptune.training.token_rate import TokenRate
from ptune.training.trained import trained_prompt

_STEP, _EPOCH = "step", "epoch end"
"""Whether a checkpoint was written after a step or after what follows an epoch's last one."""


class RunState(TrainerCallback):
    """Follows a run, so that its checkpoints say all of where it was; it must be the trainer's last callback.

    Args:
        trainer: The one that it belongs to.
        store: Its checkpoints.
        tokens: Counts the tokens of its batches.
        stop: While it is entered, a signal ends the training after the step at hand, with a checkpoint.
    """

    def __init__(self, trainer: Trainer, store: CheckpointStore, tokens: TokenRate, stop: StopRequest | None) -> None:
        self.trainer = trainer
        self.store = store
        self.tokens = tokens
        self.stop = stop
        self.over = False
        """The run has come to its end: no step follows."""
        self.generators_set = False
        self.grad_norm: Any = None
        self.seconds_before = 0.0
        """What the run took before it was cut off."""
        self._resumed: Mapping[str, Any] | None = None
        """What of the checkpoint is still to be restored, once the loop has set its own values."""
        self._began = 0.0
        self._phase = _STEP
        self._learning_rate: float | None = None
        self._stopped_by: int | None = None

    # ---- writing -----------------------------------------------------------------------------------------------

    def shared(self) -> dict[str, Any]:
        """What all processes share."""
        state, sums = self.trainer.state, loss_sums(self.trainer)
        norm = self.grad_norm
        return {
            "phase": self._phase,
            # By early stopping, say; whether the last step has been done is seen from its number.
            "over": self.trainer.control.should_training_stop and state.global_step < state.max_steps,
            "last_step": {
                "grad_norm": norm.item() if isinstance(norm, torch.Tensor) else norm,
                "learning_rate": self._learning_rate,
            },
            "last_logged": sums.last_logged,
            "first_step": sums.first_step,
            "loss_total": sums.total,
            "seconds": self.seconds_before + time.time() - self._began,
        }

    def own(self) -> dict[str, Any]:
        """What each process has of its own."""
        return {
            "generators": generator_states(self.trainer.args.device),
            "loss_sum": loss_sums(self.trainer).running,
            "tokens_seen": self.tokens.seen,
        }

    # ---- reading -----------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """A new run begins."""
        self._resumed = None

    def resume(self, found: Mapping[str, Any]) -> None:
        """Take note of what a checkpoint holds; it is taken up when the training begins."""
        self._resumed = found

    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up what the loop of the first run had in hand."""
        resumed, self._resumed = self._resumed, None
        self._began, self._stopped_by = time.time(), None
        self.over = self.generators_set = False
        self.seconds_before = 0.0 if resumed is None else resumed["seconds"]
        self.tokens.begin(0 if resumed is None else resumed["tokens_seen"])
        if resumed is None:
            return
        running = resumed["loss_sum"].to(args.device)
        sums = LossSums(running, resumed["loss_total"], resumed["last_logged"], resumed["first_step"])
        set_loss_sums(self.trainer, sums)
        self._find_best()
        self._restore_patience()
        self.over = bool(resumed["over"]) or state.global_step >= state.max_steps
        if resumed["phase"] == _STEP and (self.over or float(state.epoch).is_integer()):
            self._end_epoch(resumed)

    def _find_best(self) -> None:
        """The best checkpoint may have been moved since, together with the others."""
        state = self.trainer.state
        best = self.store.output / f"checkpoint-{state.best_global_step}"
        state.best_model_checkpoint = str(best) if best.is_dir() else state.best_model_checkpoint

    def _restore_patience(self) -> None:
        kept: Any = self.trainer.state.stateful_callbacks
        noted = kept.get(EarlyStoppingCallback.__name__)
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback) and isinstance(noted, dict):
                vars(callback).update(noted["attributes"])

    def _end_epoch(self, resumed: Mapping[str, Any]) -> None:
        """Do what follows an epoch's last step, which the first run had no time for."""
        trainer, last = self.trainer, resumed["last_step"]
        set_generators(resumed["generators"], trainer.args.device)
        self.generators_set = True
        self.grad_norm, self._learning_rate = last["grad_norm"], last["learning_rate"]
        trainer.control.should_training_stop = self.over
        trainer.control = trainer.callback_handler.on_epoch_end(trainer.args, trainer.state, trainer.control)
        finish_epoch(trainer, grad_norm=last["grad_norm"], learning_rate=last["learning_rate"], began=self._began)
        self.over = self.over or trainer.control.should_training_stop

    def count_earlier_time(self, logs: dict[str, float]) -> None:
        """Let the figures of the whole run, which Trainer logs at its end, count the time before it was cut off."""
        seconds = logs["train_runtime"]
        whole = seconds + self.seconds_before
        logs["train_runtime"] = round(whole, 4)
        for name in ("train_samples_per_second", "train_steps_per_second"):
            if name in logs:
                logs[name] = round(logs[name] * seconds / max(whole, 1e-9), 3)

    # ---- following the run -------------------------------------------------------------------------------------

    @override
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the learning rate, before the schedule moves on."""
        self._learning_rate = float(kwargs["optimizer"].param_groups[0]["lr"])

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A stop that was asked for saves first."""
        self._phase = _STEP
        self._save_if_stopped(control)

    @override
    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The same."""
        self._phase = _EPOCH
        self._save_if_stopped(control)

    def _save_if_stopped(self, control: Any) -> None:
        if (number := self._stop_signal()) is not None:
            self._stopped_by, control.should_save = number, True

    @override
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the run that was asked to stop; it is saved now."""
        if self._stopped_by is not None:
            raise RunStoppedError(
                f"stopped after step {state.global_step} of {state.max_steps}; it is saved in "
                f"{self.store.output / f'checkpoint-{state.global_step}'}.",
                signal_number=self._stopped_by,
            )

    def _stop_signal(self) -> int | None:
        """The signal that asked to stop, the same in every process."""
        if self.stop is None or trained_prompt(self.trainer) is None:
            return None
        number = self.stop.signal_number or 0
        if self.trainer.args.world_size > 1:
            asked = torch.tensor(number, device=self.trainer.args.device)
            torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
            number = int(asked)
        return number or None
