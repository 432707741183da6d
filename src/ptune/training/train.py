"""A training run from files to prompt folder, top to bottom: load, check, measure, train, measure, save.

`train` is what `ptune train` calls. Rows are packed where the model can, and padded otherwise (see `batches`). It
works in one process or under `accelerate launch` and `torchrun`: every process reads the same data in the same order,
and only the first one prints and writes.
"""

from __future__ import annotations

import copy
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from rich.console import Console
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)

from ptune.choices import LM
from ptune.config import TaskType
from ptune.data.blocks import with_virtual_tokens
from ptune.data.labels import IGNORE_INDEX
from ptune.data.template import get_template
from ptune.errors import ConfigError, OutputError, PTuneError, RunStoppedError, one_line
from ptune.evaluation.held_out_loss import HeldOutLoss, held_out_loss
from ptune.loading.load import load_tokenizer
from ptune.memory.measure import MemoryReport, PeakMemory
from ptune.model.prompted import PromptedModel
from ptune.model.task_model import PTunedTaskModel
from ptune.recipe import TrainRecipe
from ptune.saved.hub import upload_prompt
from ptune.training.batches import Collator, batches_line, choose_collator
from ptune.training.checkpoints import find_checkpoint
from ptune.training.deep_run import notes_of
from ptune.training.head_steps import HeadSteps
from ptune.training.held_out_metrics import HeldOutMetrics, choose_best_by, metrics_of_run
from ptune.training.learning_rate import take_learning_rate
from ptune.training.output import OutputFolder
from ptune.training.processes import processes_lines, take_over_sharding
from ptune.training.progress import MetricsFile, ProgressReporter
from ptune.training.recorded import check_same_run
from ptune.training.result import (
    TrainResult,
    check_finite,
    prompt_details,
    save_result,
    show_line,
    show_parameters,
    show_result,
    show_rows,
)
from ptune.training.rows import Rows, check_context, load_rows, place_of
from ptune.training.rows_for_task import prepare_task_rows
from ptune.training.run_model import frozen_model
from ptune.training.signals import StopRequest
from ptune.training.start import add_new_prompt
from ptune.training.teaching import Teaching
from ptune.training.trainer import PTuneTrainer

__all__ = ["TrainResult", "train"]


def train(
    recipe: TrainRecipe,
    arguments: TrainingArguments | Mapping[str, Any] | None = None,
    console: Console | None = None,
    *,
    given: Collection[str] | None = None,
    teaching: Teaching | None = None,
) -> TrainResult:
    """Train a prompt and write it to `recipe.output`.

    Args:
        recipe: Model, data and prompt encoder.
        arguments: `TrainingArguments` by name (max_steps, learning_rate, …), the others being ptune's defaults; or all
            of them, as an object whose `output_dir` is `recipe.output`.
        console: Where to report; standard error by default. Quiet in every process but the first.
        given: Names of the training arguments that somebody chose; those of `arguments` where they are a mapping.
        teaching: What the prompt learns from in place of the labels.

    Returns:
        The model with its prompt, and what came out.

    Raises:
        PTuneError: Anything the user can fix; before anything is written, where it can be known by then.
    """
    if not isinstance(arguments, TrainingArguments):
        given = set(arguments or {}) if given is None else given
        arguments = training_arguments(recipe, arguments or {})
    args = arguments
    mesh = take_over_sharding(args, recipe)
    choose_best_by(recipe, args, given)
    first = args.process_index == 0
    say = console or Console(stderr=True)
    say.quiet = say.quiet or not first
    going_on, output = recipe.resume or args.resume_from_checkpoint, Path(recipe.output)
    resume = find_checkpoint(going_on, output, partial(show_line, console=say))
    with OutputFolder(output, overwrite=recipe.overwrite, resume=resume) as folder:
        tokenizer = load_tokenizer(recipe.model, trust_remote_code=recipe.trust_remote_code, revision=recipe.revision)
        recipe, rows = prepare_rows(recipe, tokenizer, args, progress=say.is_terminal and not say.quiet)
        model = frozen_model(recipe, args, tokenizer, mesh, labels=rows.labels) if teaching is None else teaching.model
        rows = rows if teaching is None else teaching.labelled(rows)
        add_new_prompt(model, recipe, args, tokenizer, rows, start=None if teaching is None else teaching.start())
        rate = take_learning_rate(model, recipe, args, given)
        check_context(rows, model.active_peft_config.leading_tokens, model.context_length, recipe.max_length)
        collate = choose_collator(recipe, args, model, tokenizer, given or ())
        head_steps = HeadSteps.measured(model, rows.tokens.dataset, collate, rate=recipe.head_learning_rate)
        details = prompt_details(recipe, args, tokenizer, rows) | ({} if teaching is None else dict(teaching.details))
        changed = [] if resume is None else check_same_run(resume, details)
        trainer = build_trainer(
            model, args, rows, collate, recipe,
            head_steps=head_steps, more_metrics=metrics_of_run(model, tokenizer, rows, recipe, args),
            details=details, console=say, name_row=partial(place_of, rows, tokenizer, recipe),
            callbacks=[ProgressReporter(say, bar=not args.disable_tqdm), MetricsFile(folder.metrics)],
        )  # fmt: skip
        trainer.store.check_resumable(resume)
        # Whatever is wrong with the request has been said by now, in one line and with nothing written.
        show_rows(rows, say)
        show_parameters(model, say)
        rate += "" if head_steps is None else f"; of the head {head_steps.rate:g}"
        lines = [*notes_of(model, rows), rate, batches_line(recipe, args, model, collate, trainer.budget_sampler)]
        lines += processes_lines(args, sharded=mesh is not None)
        for line in [*lines, *([] if resume is None else [*changed, f"going on from {resume}"])]:
            show_line(line, say)
        before = measure(model, rows, collate, args, say, with_prompt=False)
        if first:
            folder.claim()
        with PeakMemory() as peak:
            outcome = run_trainer(trainer, resume, say, "train" if teaching is None else "compress")
        check_finite(model)
        after = measure(model, rows, collate, args, say, with_prompt=True)
        result = result_of(
            trainer, outcome, rows, folder=folder.path, model=model, tokenizer=tokenizer, before=before, after=after,
            memory=peak.report,
        )  # fmt: skip
        if first:
            publish(result, recipe, args, folder, details=details, console=say)
    return result


def prepare_rows(
    recipe: TrainRecipe, tokenizer: PreTrainedTokenizerBase, args: TrainingArguments, *, progress: bool
) -> tuple[TrainRecipe, Rows]:
    """The rows of a run, and the recipe with its number of virtual tokens; errors as for `train`."""
    if recipe.task != LM:
        return prepare_task_rows(recipe, tokenizer, args)
    asked = get_template(recipe.template, tokenizer, virtual_tokens=recipe.virtual_tokens)
    recipe = with_virtual_tokens(recipe, asked.blocks)
    return recipe, load_rows(recipe, asked, tokenizer, args, progress=progress)


def training_arguments(recipe: TrainRecipe, values: Mapping[str, Any]) -> TrainingArguments:
    """`TrainingArguments` with ptune's defaults for a recipe, and these values in their place.

    Raises:
        ConfigError: A value that cannot be used.
    """
    try:
        return TrainingArguments(**{**recipe.trainer_defaults(), "output_dir": recipe.output, **values})
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise ConfigError(f"training arguments: {one_line(error)}") from error


def publish(
    result: TrainResult,
    recipe: TrainRecipe,
    args: TrainingArguments,
    folder: OutputFolder,
    *,
    details: dict[str, Any],
    console: Console,
) -> None:
    """Write the prompt, say what came out, and upload it where that was asked for."""
    save_result(result, recipe, details, folder)
    show_result(result, folder, console)
    if args.push_to_hub:
        show_line(f"on the hub: {push(folder.path, args)}", console)


def push(folder: Path, args: TrainingArguments) -> str:
    """Upload the finished prompt under `hub_model_id`, by default the folder's name; gives the commit's address.

    Raises:
        PromptError: The hub does not take it. The folder stays.
    """
    return upload_prompt(
        folder,
        args.hub_model_id or folder.absolute().name,
        private=args.hub_private_repo,
        token=args.hub_token,
        branch=args.hub_revision,
    )


def measure(
    model: PromptedModel,
    rows: Rows,
    collate: Collator,
    args: TrainingArguments,
    console: Console,
    *,
    with_prompt: bool,
) -> HeldOutLoss | None:
    """The loss on the held-out rows, each process taking its share; None when there are none."""
    if rows.held_out_tokens is None:
        return None
    share = share_of(rows.held_out_tokens.dataset, args.process_index, args.world_size)
    result = held_out_loss(
        model,
        share,
        collate,
        batch_size=args.per_device_eval_batch_size,
        with_prompt=with_prompt,
        processes=args.world_size,
    )
    untrained = isinstance(model, PTunedTaskModel) and model.has_head
    whose = "with the prompt" if with_prompt else "of the frozen model alone" + (", its head untrained" * untrained)
    what = "answer tokens" if model.task in (TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM) else "labels"
    console.print(f"held-out loss {whose}: {result.loss:.4f} ({result.tokens:,} {what})", highlight=False)
    return result


def share_of(dataset: Dataset, process: int, processes: int) -> Dataset:
    """The rows that one of several processes measures; all have as many, some perhaps one without labels."""
    whole = -(-len(dataset) // processes)
    share = dataset.select(range(process, len(dataset), processes))
    if len(share) == whole:
        return share
    row = dataset[0]
    nothing = {name: _unlabelled(row[name]) for name in ("labels", "start_positions", "end_positions") if name in row}
    blank = Dataset.from_list([{**row, **nothing}], features=dataset.features)
    return concatenate_datasets([share, blank])


def _unlabelled(value: Any) -> Any:
    """Labels of a row, or its one label, with nothing to learn."""
    return [IGNORE_INDEX] * len(value) if isinstance(value, list) else IGNORE_INDEX


def build_trainer(
    model: PromptedModel,
    args: TrainingArguments,
    rows: Rows,
    collate: Collator,
    recipe: TrainRecipe,
    *,
    head_steps: HeadSteps | None = None,
    more_metrics: HeldOutMetrics | None = None,
    details: dict[str, Any],
    console: Console,
    name_row: Callable[[list[int]], str],
    callbacks: Sequence[TrainerCallback],
) -> PTuneTrainer:
    """The trainer of a run; `callbacks` show its progress in place of transformers' own.

    Raises:
        ConfigError: A training argument that cannot be used here.
    """
    quiet = copy.copy(args)
    quiet.disable_tqdm = True
    quiet.push_to_hub = False  # the finished prompt goes there, not every checkpoint with all it needs to go on
    say = partial(show_line, console=console)
    if recipe.early_stopping_patience is not None:
        stopping = EarlyStoppingCallback(recipe.early_stopping_patience, recipe.early_stopping_threshold)
        callbacks = [*callbacks, stopping]
    try:
        trainer = PTuneTrainer(
            model=model,
            args=quiet,
            train_dataset=rows.tokens.dataset,
            eval_dataset=None if rows.held_out_tokens is None else rows.held_out_tokens.dataset,
            data_collator=collate,
            callbacks=list(callbacks),
            prompt_details=details,
            tokens_per_batch=recipe.tokens_per_batch,
            head_steps=head_steps,
            more_metrics=more_metrics,
            stop=StopRequest(say),
            say=say,
            name_row=name_row,
        )
    except PTuneError:
        raise
    except OSError as error:
        raise OutputError(
            f"the output folder {args.output_dir} cannot be made: {error.strerror or error}.",
            hint="Choose another place.",
        ) from error
    except (ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(f"training arguments: {one_line(error)}") from error
    trainer.remove_callback(PrinterCallback)
    return trainer


def result_of(
    trainer: PTuneTrainer,
    outcome: Any,
    rows: Rows,
    *,
    folder: Path,
    model: PromptedModel,
    tokenizer: PreTrainedTokenizerBase,
    before: HeldOutLoss | None,
    after: HeldOutLoss | None,
    memory: MemoryReport,
) -> TrainResult:
    """What a run gave, `outcome` being what its `trainer.train()` returned. Every process must call it."""
    return TrainResult(
        folder=folder,
        model=model,
        tokenizer=tokenizer,
        template=rows.template,
        train_loss=float(outcome.training_loss),
        before=before,
        after=after,
        steps=int(outcome.global_step),
        tokens=trainer.total_tokens(),
        seconds=float(outcome.metrics["train_runtime"]),
        memory=memory,
        examples=rows.examples,
        held_out=rows.held_out_examples,
    )


def run_trainer(trainer: PTuneTrainer, resume: Path | None, console: Console, command: str = "train") -> Any:
    """Train; whatever ends it, the progress bar is closed, and a stop by the user is said in one line.

    Raises:
        RunStoppedError: The user stopped it, and where it was is saved.
        TrainingError: It cannot go on.
        OutputError: A checkpoint cannot be written.
        ConfigError: A training argument asks for a package that is not there.
    """
    go_on = f"Go on with: ptune {command} --resume --output {shlex.quote(str(trainer.args.output_dir))}"
    try:
        assert trainer.stop is not None
        with trainer.stop:
            return trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    except RunStoppedError as error:
        error.hint = go_on
        raise
    except KeyboardInterrupt:
        _close_bars(trainer)
        step, steps = trainer.state.global_step, trainer.state.max_steps
        show_line(f"stopped after step {step} of {steps}; {trainer.store.last_good()}", console)
        raise
    except ImportError as error:
        raise ConfigError(f"training arguments: {one_line(error)}") from error
    finally:
        _close_bars(trainer)


def _close_bars(trainer: PTuneTrainer) -> None:
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ProgressReporter):
            callback.close()
