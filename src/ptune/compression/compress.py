"""A compression, top to bottom: read the text, let the model study it, train a prompt on that, report.

`compress` is what `ptune compress` calls. The teacher is the frozen model with the text in front; the prompt learns to
give what it gives without the text: context distillation (Snell et al. 2022), with keys and values of every layer that
of Eyuboglu et al. 2025, "Cartridges".
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from ptune.answering import Answerer
from ptune.compression.compress_report import MARKDOWN, REPORT, CompressionReport, make_report, write_report
from ptune.compression.compress_settings import (
    ARGUMENT_DEFAULTS,
    OWN_DEFAULTS,
    SETTINGS_FILE,
    STUDY,
    CompressSettings,
    recorded,
    split_settings,
)
from ptune.compression.excerpts import StudiedText
from ptune.compression.self_study import Study
from ptune.compression.study_files import ROWS, STUDIED, LinesFile, check_study, open_study
from ptune.compression.study_task import (
    cut_for,
    given_questions,
    same_study,
    study_rows,
    template_of_rows,
    text_line,
)
from ptune.compression.taught_rows import TaughtRows, start_at_text
from ptune.data.example import Example
from ptune.data.opened import read_text
from ptune.data.records import load_examples
from ptune.errors import ConfigError, OutputError, shown, unknown
from ptune.loading.load import load_tokenizer
from ptune.prompt.build import check_room
from ptune.recipe import TrainRecipe
from ptune.saved.files import make_folder, write_atomic
from ptune.training.checkpoints import newest_whole
from ptune.training.deep_run import check_deep_run
from ptune.training.output import OutputFolder
from ptune.training.processes import take_over_sharding
from ptune.training.result import TrainResult, show_line
from ptune.training.run_model import causal_model
from ptune.training.teaching import Teaching
from ptune.training.train import train, training_arguments

__all__ = ["CompressResult", "compress", "run_compression"]


@dataclass(frozen=True)
class CompressResult:
    """A compressed prompt."""

    trained: TrainResult
    """The model with its prompt, and its folder."""
    report: CompressionReport | None
    """What it is worth beside the whole text and beside nothing; None where that was left out."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        report = None if self.report is None else self.report.to_dict()
        return {**self.trained.to_dict(), "report": report}


def compress(text: str | Path, *, console: Console | None = None, **settings: Any) -> CompressResult:
    """Compress a text into a prompt.

    Args:
        text: The text file.
        console: Where to report; nowhere by default.
        settings: `model` and `output`, and as wanted the other fields of `CompressSettings` and `TrainRecipe`, and
            training arguments, by their names: `num_virtual_tokens`, `encoder`, `questions`, `learning_rate`, …

    Returns:
        The prompt, and the report. The output folder is a prompt folder; `study/` in it holds the questions and
        answers.

    Raises:
        PTuneError: Anything the user can fix.
    """
    names = {item.name for item in fields(TrainingArguments) if item.init}
    own, recipe, given = split_settings({"text": str(text), **settings})
    for name in given:
        if name not in names:
            raise unknown("setting", name, sorted({*own.__dataclass_fields__, *recipe.__dataclass_fields__, *names}))
    arguments = {**ARGUMENT_DEFAULTS, **given}
    return run_compression(own, recipe, arguments, console or Console(quiet=True), given=given)


def run_compression(
    settings: CompressSettings,
    recipe: TrainRecipe,
    arguments: TrainingArguments | Mapping[str, Any],
    say: Console,
    *,
    given: Mapping[str, Any],
) -> CompressResult:
    """`compress`, with everything split; `given` are the training arguments that somebody chose."""
    args = arguments if isinstance(arguments, TrainingArguments) else training_arguments(recipe, arguments)
    args.remove_unused_columns = False  # the soft labels are columns
    if take_over_sharding(args) is not None or args.world_size > 1:
        raise ConfigError(f"a compression runs in one process, not in {args.world_size}.", hint="Start it without.")
    resume = settings.resume not in (None, False)
    folder = Path(recipe.output)
    begin = check_folder(folder, resume=resume, overwrite=recipe.overwrite)
    text = read_text(Path(settings.text), recipe.encoding)
    questions = given_questions(settings, recipe.encoding)
    asked = None if recipe.eval_data is None else list(load_examples(recipe.eval_data, encoding=recipe.encoding))
    tokenizer = load_tokenizer(recipe.model, trust_remote_code=recipe.trust_remote_code, revision=recipe.revision)
    template = template_of_rows(settings, tokenizer)
    model = causal_model(recipe, args, tokenizer).eval()
    check_room(recipe.prompt_config(), model.context_length)
    check_deep_run(recipe, args, 0, model.base)
    answerer = Answerer(model, tokenizer, template)
    studied = cut_for(text, answerer, settings, questions, (asked or ())[: settings.report_rows])
    study = Study(answerer, studied, settings, _study_folder(settings, folder), args.seed, say)
    at_work = same_study(study, text, questions)
    if settings.study is not None:
        check_study(study.folder, at_work)
    if begin:
        _clear(folder)
    if settings.study is None:
        open_study(study.folder, at_work, begin=begin)
    _note(folder, settings, recipe, given)
    show_line(text_line(studied), say)
    rows_file = _studied(study, questions, folder)
    recipe = replace(
        recipe, data=str(rows_file), template=template.text, encoding=None,
        eval_data=None, eval_rows=_held_out(recipe, rows_file),
        overwrite=True, resume=_checkpoint(folder, say) if resume else None,
    )  # fmt: skip
    if not recipe.eval_rows:
        args.eval_strategy = IntervalStrategy.NO
    teaching = Teaching(
        model=model,
        label=TaughtRows(study, recipe.max_length).labelled,
        start=partial(start_at_text, answerer, studied, settings, recipe),
        details={"compression": _details(settings, studied)},
    )
    show_line("the loss is the divergence from the model with the text in front: KL, nats a token", say)
    trained = train(recipe, args, say, given={*given}, teaching=teaching)
    report = None
    if settings.report_rows:
        report = make_report(
            trained.answerer(), studied, _report_rows(trained, asked, settings),
            scored=asked is not None, new_tokens=settings.answer_tokens, top_k=settings.top_k, say=say,
        )  # fmt: skip
        write_report(report, folder)
        show_line(f"report: {folder / MARKDOWN}", say)
    return CompressResult(trained, report)


# ---- folders ---------------------------------------------------------------------------------------------------------


def check_folder(folder: Path, *, resume: bool, overwrite: bool) -> bool:
    """Whether a compression begins in a folder; False where it goes on.

    Raises:
        OutputError: Something else is there.
    """
    OutputFolder(folder, overwrite=True)
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()
    if not there:
        return True
    if not {SETTINGS_FILE, STUDY} & there:
        raise OutputError(f"the output folder {folder} is not empty, and no compression's.", hint="Choose another one.")
    if not (resume or overwrite):
        raise OutputError(
            f"{folder} holds a compression already.",
            hint="Pass --resume to go on with it, --overwrite to begin it anew, or choose another folder.",
        )
    return not resume


def _study_folder(settings: CompressSettings, folder: Path) -> Path:
    """Where the study lies.

    Raises:
        ConfigError: None is in the folder that is named.
    """
    if settings.study is None:
        return folder / STUDY
    named = Path(settings.study)
    found = named / STUDY if (named / STUDY).is_dir() else named
    if not all((found / name).is_file() for name in (STUDIED, ROWS)):
        raise ConfigError(
            f"there is no finished study in {shown(str(named), 200)}.", hint="Name a compression's folder."
        )
    return found


def _studied(study: Study, questions: Sequence[Example] | None, folder: Path) -> Path:
    """The rows of the study; whoever stops it is told how to go on."""
    try:
        return study_rows(study, questions)
    except KeyboardInterrupt:
        go_on = f"ptune compress --resume {shlex.quote(str(folder))}"
        show_line(f"stopped; what the model asked and answered is kept. Go on with: {go_on}", study.say)
        raise


def _clear(folder: Path) -> None:
    """Remove what an earlier compression made, but for its study: no checkpoint of it is gone on from.

    Raises:
        OutputError: It cannot be removed.
    """
    OutputFolder(folder, overwrite=True).claim()
    for name in (REPORT, MARKDOWN):
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot remove {folder / name}: {error.strerror}.", hint="Choose another --output."
            ) from error


def _note(folder: Path, settings: CompressSettings, recipe: TrainRecipe, given: Mapping[str, Any]) -> None:
    """Write down every flag, to go on with."""
    make_folder(folder)
    values = recorded(settings, recipe, given)
    write_atomic(folder / SETTINGS_FILE, yaml.safe_dump(values, allow_unicode=True, sort_keys=False).encode())


def _checkpoint(folder: Path, say: Console) -> str | None:
    found = newest_whole(folder, partial(show_line, console=say))
    return None if found is None else str(found)


def _report_rows(trained: TrainResult, asked: Sequence[Example] | None, settings: CompressSettings) -> list[Example]:
    """The questions of the report: those of eval_data, or held-out ones of the study."""
    rows: Any = asked if asked is not None else trained.held_out or trained.examples
    return list(rows)[: settings.report_rows]


def _details(settings: CompressSettings, text: StudiedText) -> dict[str, Any]:
    return {"text": Path(settings.text).name, "tokens": text.tokens, "windows": len(text.windows)}


def _held_out(recipe: TrainRecipe, rows: Path) -> int:
    """Rows that are held out: as many as asked for, and no more than a quarter; at least one of several."""
    count = sum(bool(str(line.get("output") or "").strip()) for line in LinesFile(rows).lines)
    return max(min(recipe.eval_rows or OWN_DEFAULTS["eval_rows"], count // 4), min(1, count - 1))
