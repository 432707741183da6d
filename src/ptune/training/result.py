"""What a run gave: as a value, as a prompt folder with plot and metrics, and as lines for people."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedTokenizerBase, TrainingArguments

from ptune.answering import Answerer
from ptune.choices import FILL, LM
from ptune.data.records import Examples
from ptune.data.tasks import TaskExamples, TaskTemplate
from ptune.data.template import Template
from ptune.errors import ConfigError, TrainingError
from ptune.evaluation.held_out_loss import HeldOutLoss
from ptune.frozen.fingerprint import tokenizer_fingerprint
from ptune.frozen.parameters import parameters_line
from ptune.memory.measure import MemoryReport
from ptune.model.prompted import PromptedModel
from ptune.model.wrapper import PTunedModel
from ptune.recipe import TrainRecipe
from ptune.saved.peft import ADAPTER_WEIGHTS
from ptune.training.output import OutputFolder
from ptune.training.plot import plot_loss
from ptune.training.progress import clock, read_metrics
from ptune.training.recorded import recorded_run
from ptune.training.rows import Rows


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run gave. Losses are nats per answer token."""

    folder: Path
    model: PromptedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template | TaskTemplate
    train_loss: float
    """Mean over the steps."""
    before: HeldOutLoss | None
    """Held-out loss of the frozen model alone; None without held-out data."""
    after: HeldOutLoss | None
    """Held-out loss with the prompt."""
    steps: int
    tokens: int
    """Text tokens trained on, padding and virtual tokens not counted."""
    seconds: float
    memory: MemoryReport
    examples: Examples | TaskExamples
    held_out: Examples | TaskExamples | None

    @property
    def tokens_per_second(self) -> float:
        """Text tokens a second over the whole training, evaluations and checkpoints included."""
        return self.tokens / max(self.seconds, 1e-9)

    def answerer(self) -> Answerer:
        """The finished prompt of a causal language model, ready to answer.

        Raises:
            ConfigError: It is for another task.
        """
        if not isinstance(self.model, PTunedModel):
            raise ConfigError(
                f"a prompt for {self.model.task.value} does not answer questions.", hint="Use TaskAnswerer.open."
            )
        template: Any = self.template
        return Answerer(self.model, self.tokenizer, template)

    def metrics(self) -> dict[str, Any]:
        """What is noted in the prompt folder."""
        return {
            "train_loss": _finite(self.train_loss),
            "held_out_loss_before": None if self.before is None else _finite(self.before.loss),
            "held_out_loss_after": None if self.after is None else _finite(self.after.loss),
            "steps": self.steps,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        trainable, total = self.model.get_nb_trainable_parameters()
        return {
            "output": str(self.folder),
            "trainable_parameters": trainable,
            "all_parameters": total,
            **self.metrics(),
            "tokens": self.tokens,
            "seconds": round(self.seconds, 2),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "memory": self.memory.to_dict(),
            "rows": len(self.examples),
            "held_out_rows": 0 if self.held_out is None else len(self.held_out),
        }


def _finite(value: float) -> float | None:
    """The value, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None


def prompt_details(
    recipe: TrainRecipe, args: TrainingArguments, tokenizer: PreTrainedTokenizerBase, rows: Rows
) -> dict[str, Any]:
    """What a prompt folder says about how it was made, and a checkpoint about how to go on."""
    task: dict[str, Any] = {} if recipe.task == LM else {"task": recipe.task}
    if rows.labels:
        task["labels"] = list(rows.labels)
    if recipe.task == FILL:
        task["verbalizer"] = dict(recipe.verbalizer or {label: label for label in rows.labels})
    return {
        **task,
        "template": rows.template.text,
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "data": ", ".join(recipe.sources),
        "data_report": rows.examples.report.to_dict(),
        "tokens_report": rows.tokens.report.to_dict(),
        **recorded_run(recipe, args, rows.tokens.dataset),
    }


def check_finite(model: PromptedModel) -> None:
    """Raise `TrainingError` when training has left values in the prompt that are not finite."""
    with torch.no_grad():
        if bool(torch.isfinite(model.encode()).all()):
            return
    raise TrainingError(
        "training diverged: the prompt holds values that are not finite, and was not saved.",
        hint="Lower learning_rate, or train in another dtype than float16.",
    )


def save_result(result: TrainResult, recipe: TrainRecipe, details: dict[str, Any], folder: OutputFolder) -> None:
    """Write the prompt with its metrics, and the plot."""
    result.model.save_pretrained(folder.path, **details, metrics=result.metrics())
    plot_loss(
        read_metrics(folder.metrics),
        folder.plot,
        title=f"{recipe.encoder}, {recipe.num_virtual_tokens} virtual tokens",
        before=None if result.before is None else result.before.loss,
        after=None if result.after is None else result.after.loss,
    )


def show_result(result: TrainResult, folder: OutputFolder, console: Console) -> None:
    """Say what came out and where everything is."""
    kilobytes = (folder.path / ADAPTER_WEIGHTS).stat().st_size / 1000
    for line in (
        (
            f"trained {result.steps:,} steps in {clock(result.seconds)} ({result.tokens_per_second:.0f} tokens/s), "
            f"mean loss {result.train_loss:.4f}"
        ),
        result.memory.line(),
        f"prompt ({kilobytes:.0f} kB): {folder.path}   plot: {folder.plot}   log: {folder.metrics}",
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if folder.events.is_dir():
        show_line(f"TensorBoard: tensorboard --logdir {folder.events}", console)


def show_rows(rows: Rows, console: Console) -> None:
    """What was read and what was left out."""
    for line in rows.lines():
        show_line(line, console)


def show_parameters(model: PromptedModel, console: Console) -> None:
    """The line on trainable parameters, as the tutorial prints it."""
    show_line(parameters_line(*model.get_nb_trainable_parameters()), console)


def show_line(line: str, console: Console) -> None:
    """Print a line as it is."""
    console.print(line, highlight=False, soft_wrap=True, markup=False)
