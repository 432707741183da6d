"""Writing and reading the checkpoints of one trainer: its prompt, and the state of its run.

`ptune.training.checkpoints` says what a checkpoint is on disk, and keeps it whole or absent.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_callback import ExportableState

from ptune.errors import OutputError, PromptError, TrainingError
from ptune.model.prompted import PromptedModel
from ptune.saved.files import read_bytes, write_flushed
from ptune.saved.format import read_prompt
from ptune.saved.loss_history import TRAINER_STATE
from ptune.saved.state import state_bytes, state_of
from ptune.training.checkpoints import (
    MANIFEST,
    MAX_STATE_BYTES,
    TRAINING_STATE,
    finish_checkpoint,
    keep_newest,
    newest_whole,
    open_staging,
    process_file,
    staging_folder,
)
from ptune.training.trained import trained_prompt


class CheckpointStore:
    """The checkpoints in a trainer's output folder.

    Args:
        trainer: The one that they belong to; its arguments, state and accelerator are read.
        prompt_details: Plain values noted in every saved prompt's `ptune.json` (template, data, …).
    """

    def __init__(self, trainer: Trainer, prompt_details: Mapping[str, Any]) -> None:
        self.trainer = trainer
        self.prompt_details = dict(prompt_details)

    @property
    def output(self) -> Path:
        """The folder that the checkpoints are in."""
        return Path(self.trainer.args.output_dir or "")

    def last_good(self) -> str:
        """Where the run can go on from, in words."""
        found = newest_whole(self.output, lambda _: None)
        return "no checkpoint was written" if found is None else f"the last good checkpoint is {found}"

    def holds(self, checkpoint: str | Path | None) -> bool:
        """Whether ptune wrote this checkpoint, and reads it."""
        whole = checkpoint is not None and (Path(checkpoint) / MANIFEST).is_file()
        return whole and trained_prompt(self.trainer) is not None

    # ---- writing -----------------------------------------------------------------------------------------------

    def save_prompt(self, model: PromptedModel, folder: str | Path) -> None:
        """Write the active prompt as a prompt folder."""
        model.save_pretrained(folder, prompt_name=model.active_prompt, **self.prompt_details)

    def write(self, model: PromptedModel, run_state: Mapping[str, Any], process_state: Mapping[str, Any]) -> None:
        """Write the checkpoint of the step that has been done. Every process must call it.

        Args:
            model: The model with the prompt.
            run_state: What all processes share; the first one writes it.
            process_state: What this process has of its own.

        Raises:
            TrainingError: The prompt is not finite.
            OutputError: It cannot be written; the earlier ones are whole.
        """
        step = self.trainer.state.global_step
        # The numbers themselves: to encode the prompt would draw on the random generators.
        if not bool(torch.stack([torch.isfinite(one).all() for one in model.prompts.parameters()]).all()):
            raise TrainingError(
                f"the prompt is not finite after step {step}, and was not saved; {self.last_good()}.",
                hint="Lower learning_rate, or train in another dtype than float16.",
            )
        try:
            self._write(model, step, run_state, process_state)
        except OSError as error:
            # What was begun has no name yet, and its room is wanted.
            if self.trainer.args.should_save:
                shutil.rmtree(staging_folder(self.output, step), ignore_errors=True)
            cannot = f"cannot write {self.output}: {error.strerror}."
            reason = error.message if isinstance(error, OutputError) else cannot
            raise OutputError(
                f"the checkpoint of step {step} could not be written: {reason.rstrip('.')}; {self.last_good()}.",
                hint="Free some space or make the folder writable, then go on with --resume.",
            ) from error

    def _write(
        self, model: PromptedModel, step: int, run_state: Mapping[str, Any], process_state: Mapping[str, Any]
    ) -> None:
        """Write a checkpoint; every process adds its own file. Raises `OSError`."""
        args, state, output = self.trainer.args, self.trainer.state, self.output
        staged, wait = staging_folder(output, step), self.trainer.accelerator.wait_for_everyone
        if args.should_save:
            open_staging(output, step)
            self.save_prompt(model, staged)
            best = f"checkpoint-{state.best_global_step}"
            if state.best_global_step and (best == f"checkpoint-{step}" or (output / best).is_dir()):
                state.best_model_checkpoint = str(output / best)
            kept: Any = state.stateful_callbacks
            for one in (*self.trainer.callback_handler.callbacks, self.trainer.control):
                if isinstance(one, ExportableState):
                    kept[type(one).__name__] = one.state()
            state.save_to_json(str(staged / TRAINER_STATE))
            if not args.save_only_model:
                write_flushed(staged / TRAINING_STATE, state_bytes({**self._optimizer_state(), **run_state}))
        wait()
        if not args.save_only_model:
            own = {"processes": args.world_size, **process_state}
            write_flushed(staged / process_file(args.process_index), state_bytes(own))
        wait()
        if args.should_save:
            finish_checkpoint(staged, output, step, resumable=not args.save_only_model)
            best_one = state.best_model_checkpoint
            keep_newest(output, args.save_total_limit, [] if best_one is None else [Path(best_one)])
        wait()

    def _optimizer_state(self) -> dict[str, Any]:
        optimizer, schedule, scaler = self._stateful()
        return {
            "optimizer": optimizer.state_dict(),
            "scheduler": schedule.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def _stateful(self) -> tuple[Any, Any, Any]:
        """Optimizer, schedule and gradient scaler; the last may be None."""
        trainer = self.trainer
        assert trainer.optimizer is not None
        assert trainer.lr_scheduler is not None
        return trainer.optimizer, trainer.lr_scheduler, getattr(trainer.accelerator, "scaler", None)

    # ---- reading -----------------------------------------------------------------------------------------------

    def check_resumable(self, checkpoint: str | Path | None) -> None:
        """Read all that a checkpoint has to go on from, and load its prompt; so that what is wrong is said at once.

        Nothing where there is none.

        Raises:
            PromptError: It is damaged, or of another run.
        """
        if checkpoint is not None and self.holds(checkpoint):
            self.load_prompt(checkpoint)
            self._read(Path(checkpoint), TRAINING_STATE)
            self.process_state(checkpoint)

    def load_prompt(self, checkpoint: str | Path) -> None:
        """Put a checkpoint's encoder into the model.

        Raises:
            PromptError: It is damaged, or of another kind or size.
        """
        model = trained_prompt(self.trainer)
        assert model is not None
        assert model.active_prompt is not None
        try:
            model.prompts[model.active_prompt].load_state_dict(read_prompt(Path(checkpoint)).state())
        except RuntimeError as error:
            raise PromptError(
                f"the prompt encoder in {checkpoint} is not the one that trains here: {_first_fault(error)}",
                hint="Go on with the settings it was begun with.",
            ) from error

    def load_optimizer(self, checkpoint: str | Path) -> dict[str, Any]:
        """Load optimizer, schedule and scaler; gives the rest of what was written, of the run and of this process."""
        whole = self._read(Path(checkpoint), TRAINING_STATE)
        optimizer, schedule, scaler = self._stateful()
        optimizer.load_state_dict(whole["optimizer"])
        schedule.load_state_dict(whole["scheduler"])
        if scaler is not None and whole["scaler"] is not None:
            scaler.load_state_dict(whole["scaler"])
        return {**whole, **self.process_state(checkpoint)}

    def process_state(self, checkpoint: str | Path) -> dict[str, Any]:
        """What this process wrote.

        Raises:
            PromptError: The checkpoint was written by another number of processes, or is damaged.
        """
        args = self.trainer.args
        own = self._read(Path(checkpoint), process_file(args.process_index))
        if own["processes"] != args.world_size:
            raise PromptError(
                f"{checkpoint} was written by {own['processes']} processes, not {args.world_size}.",
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
