"""A training run from files to prompt folder, top to bottom: load, check, train, measure, save, report.

`train` is what `ptune train` calls. It works in one process or under `accelerate launch` and `torchrun`: every process reads the same data in the
same order, and only the first one prints and writes.
"""

from __future__ import annotations

import dataclasses
import os
import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PrinterCallback, PreTrainedTokenizerBase, TrainingArguments, set_seed

from ptune.checkpoint.files import make_folder
from ptune.checkpoint.format import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, ENCODER_WEIGHTS, PTUNE_CONFIG
from ptune.data.collate import PaddingCollator
from ptune.data.records import Examples, load_examples
from ptune.data.template import Template, get_template
from ptune.data.tokenize import Tokenized, tokenize_examples
from ptune.errors import ConfigError, OutputError
from ptune.evaluation.loss import HeldOutLoss, held_out_loss
from ptune.memory.measure import MemoryReport, PeakMemory
from ptune.model.backbone import check_tokenizer, load_model, load_tokenizer
from ptune.model.fingerprint import tokenizer_fingerprint
from ptune.model.wrapper import PTunedModel
from ptune.recipe import TrainRecipe
from ptune.training.plot import plot_loss
from ptune.training.progress import MetricsFile, ProgressReporter, clock, read_metrics
from ptune.training.trainer import PTuneTrainer

METRICS, PLOT = "metrics.jsonl", "loss.png"
_OWN_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, ENCODER_WEIGHTS, PTUNE_CONFIG, CARD, METRICS, PLOT)
_CHECKPOINT = re.compile(r"checkpoint-\d+")


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run gave. Losses are nats per answer token."""

    folder: Path
    model: PTunedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template
    train_loss: float
    before: HeldOutLoss | None
    """Held-out loss of the frozen model alone; None without held-out data."""
    after: HeldOutLoss | None
    """Held-out loss with the prompt."""
    steps: int
    tokens: int
    seconds: float
    memory: MemoryReport
    examples: Examples
    held_out: Examples | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        trainable, total = self.model.get_nb_trainable_parameters()
        return {
            "output": str(self.folder),
            "trainable_parameters": trainable,
            "all_parameters": total,
            "train_loss": self.train_loss,
            "held_out_loss_before": None if self.before is None else self.before.loss,
            "held_out_loss_after": None if self.after is None else self.after.loss,
            "steps": self.steps,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 2),
            "tokens_per_second": round(self.tokens / max(self.seconds, 1e-9), 1),
            "memory": self.memory.to_dict(),
            "rows": len(self.examples),
            "held_out_rows": 0 if self.held_out is None else len(self.held_out),
        }


def train(recipe: TrainRecipe, args: TrainingArguments, console: Console | None = None) -> TrainResult:
    """Train a prompt and write it to `recipe.output`.

    Args:
        recipe: Model, data and prompt encoder.
        args: Everything about training; `output_dir` must be `recipe.output`.
        console: Where to report; standard error by default. Quiet in every process but the first.

    Raises:
        PTuneError: Anything the user can mend, before anything is trained where possible.
    """
    first = args.process_index == 0
    say = console or Console(stderr=True)
    say.quiet = say.quiet or not first
    folder = Path(recipe.output)
    if first:
        prepare_output(folder, overwrite=recipe.overwrite)
    config = recipe.prompt_config()
    examples, held_out = read_rows(recipe, args.seed)
    for line in examples.report.lines():
        say.print(line, highlight=False, soft_wrap=True)
    tokenizer = load_tokenizer(recipe.model, trust_remote_code=recipe.trust_remote_code, revision=recipe.revision)
    template = get_template(recipe.template, tokenizer)
    rows = _tokenize(examples, template, tokenizer, recipe, args, say)
    held_out_rows = None if held_out is None else _tokenize(held_out, template, tokenizer, recipe, args, say)
    base = load_model(
        recipe.model,
        dtype=recipe.dtype,
        device=str(args.device),
        trust_remote_code=recipe.trust_remote_code,
        revision=recipe.revision,
    )
    check_tokenizer(base, tokenizer)
    set_seed(args.seed)
    model = PTunedModel(base, config, tokenizer=tokenizer)
    model._check_length([model.active_prompt], rows.report.longest)
    collate = PaddingCollator(pad_token_id=int(tokenizer.pad_token_id))
    before = None
    if first and held_out_rows is not None:
        before = _held_out(model, held_out_rows, collate, args, say, with_prompt=False)
    details = _details(recipe, template, tokenizer, examples, rows)
    trainer = build_trainer(model, args, rows, held_out_rows, collate, details, say, folder / METRICS)
    if first:
        _print_parameters(model, say)
    with PeakMemory() as peak:
        output = _run(trainer)
    after = None
    if first and held_out_rows is not None:
        after = _held_out(model, held_out_rows, collate, args, say, with_prompt=True)
    result = TrainResult(
        folder=folder,
        model=model,
        tokenizer=tokenizer,
        template=template,
        train_loss=float(output.training_loss),
        before=before,
        after=after,
        steps=int(output.global_step),
        tokens=trainer.tokens_seen * args.world_size,
        seconds=float(output.metrics["train_runtime"]),
        memory=peak.report,
        examples=examples,
        held_out=held_out,
    )
    if first:
        _finish(result, details, say)
    return result


def prepare_output(folder: Path, *, overwrite: bool) -> None:
    """Make sure that nothing of value is lost in the output folder; with `overwrite`, remove what an earlier run wrote there.

    Raises:
        OutputError: It is not empty (without `overwrite`), or cannot be made.
    """
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise OutputError(f"the output folder {folder} is not empty.", hint="Choose another one, or pass --overwrite.")
    make_folder(folder)
    for path in list(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and _CHECKPOINT.fullmatch(path.name):
            shutil.rmtree(path)
        elif path.name in _OWN_FILES:
            path.unlink()
    if not os.access(folder, os.W_OK):
        raise OutputError(f"the output folder {folder} cannot be written.", hint="Choose another place.")


def read_rows(recipe: TrainRecipe, seed: int) -> tuple[Examples, Examples | None]:
    """Training rows and held-out rows (None when there are none)."""
    examples = load_examples(recipe.data, columns=recipe.columns, split=recipe.split, limit=recipe.limit)
    if recipe.eval_data:
        # A hub data set or Arrow folder may have the same split names; a plain file has none.
        return examples, load_examples(recipe.eval_data, columns=recipe.columns, split=recipe.split)
    if not recipe.eval_rows:
        return examples, None
    if recipe.eval_rows >= len(examples):
        raise ConfigError(
            f"eval_rows={recipe.eval_rows} leaves none of the {len(examples)} rows to train on.", hint="Hold out fewer."
        )
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    held_out, kept = sorted(order[: recipe.eval_rows]), sorted(order[recipe.eval_rows :])
    rows = list(examples)
    return (
        Examples((rows[index] for index in kept), examples.report),
        Examples((rows[index] for index in held_out), examples.report),
    )


def build_trainer(
    model: PTunedModel,
    args: TrainingArguments,
    rows: Tokenized,
    held_out: Tokenized | None,
    collate: PaddingCollator,
    details: dict[str, Any],
    console: Console,
    metrics: Path,
) -> PTuneTrainer:
    """The trainer of a run, with ptune's progress and metrics in place of transformers' own."""
    quiet = dataclasses.replace(args, disable_tqdm=True)
    trainer = PTuneTrainer(
        model=model,
        args=quiet,
        train_dataset=rows.dataset,
        eval_dataset=None if held_out is None else held_out.dataset,
        data_collator=collate,
        callbacks=[ProgressReporter(console), MetricsFile(metrics)],
        prompt_details=details,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _run(trainer: PTuneTrainer) -> Any:
    try:
        return trainer.train()
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressReporter):
                callback.close()


def _tokenize(
    examples: Examples,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    recipe: TrainRecipe,
    args: TrainingArguments,
    console: Console,
) -> Tokenized:
    """Token ids and labels; the first process fills the cache that the others read."""
    with args.main_process_first(desc="tokenization"):
        rows = tokenize_examples(
            examples,
            template,
            tokenizer,
            max_length=recipe.max_length,
            num_proc=recipe.num_proc,
            progress=console.is_terminal and not console.quiet,
        )
    for line in rows.report.lines():
        console.print(line, highlight=False, soft_wrap=True)
    return rows


def _held_out(
    model: PTunedModel,
    rows: Tokenized,
    collate: PaddingCollator,
    args: TrainingArguments,
    console: Console,
    *,
    with_prompt: bool,
) -> HeldOutLoss:
    result = held_out_loss(
        model, rows.dataset, collate, batch_size=args.per_device_eval_batch_size, with_prompt=with_prompt
    )
    whose = "with the prompt" if with_prompt else "of the frozen model alone"
    console.print(f"held-out loss {whose}: {result.loss:.4f} ({result.tokens:,} answer tokens)", highlight=False)
    return result


def _print_parameters(model: PTunedModel, console: Console) -> None:
    trainable, total = model.get_nb_trainable_parameters()
    console.print(
        f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}",
        highlight=False,
        soft_wrap=True,
    )


def _details(
    recipe: TrainRecipe, template: Template, tokenizer: PreTrainedTokenizerBase, examples: Examples, rows: Tokenized
) -> dict[str, Any]:
    """What a prompt folder says about how it was made."""
    return {
        "template": template.text,
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "data": recipe.data,
        "data_report": examples.report.to_dict(),
        "tokens_report": rows.report.to_dict(),
        "recipe": {key: value for key, value in dataclasses.asdict(recipe).items() if key != "overwrite"},
    }


def _finish(result: TrainResult, details: dict[str, Any], console: Console) -> None:
    """Save the prompt with its metrics, draw the plot, and say where everything is."""
    metrics = {
        "train_loss": result.train_loss,
        "held_out_loss_before": None if result.before is None else result.before.loss,
        "held_out_loss_after": None if result.after is None else result.after.loss,
        "steps": result.steps,
    }
    result.model.save_pretrained(result.folder, **details, metrics=metrics)
    plot_loss(
        read_metrics(result.folder / METRICS),
        result.folder / PLOT,
        title=f"{details['recipe']['encoder']}, {details['recipe']['num_virtual_tokens']} virtual tokens",
        before=None if result.before is None else result.before.loss,
        after=None if result.after is None else result.after.loss,
    )
    speed = result.tokens / max(result.seconds, 1e-9)
    size = (result.folder / ADAPTER_WEIGHTS).stat().st_size / 1000
    for line in (
        f"trained {result.steps:,} steps in {clock(result.seconds)} ({speed:.0f} tokens/s), mean loss {result.train_loss:.4f}",
        result.memory.line(),
        f"prompt ({size:.0f} kB): {result.folder}   plot: {result.folder / PLOT}   log: {result.folder / METRICS}",
    ):
        console.print(line, highlight=False, soft_wrap=True)
