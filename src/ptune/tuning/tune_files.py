"""What a search writes: its settings to go on with, the best trial's recipe, its results, a picture.

Both YAML files are recipes: `tune.yaml` is every flag of the search, `best.yaml` a recipe for `ptune train`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import yaml

from ptune.errors import OutputError
from ptune.recipe import TrainRecipe
from ptune.saved.files import make_folder, write_atomic, write_json
from ptune.training.output import OutputFolder
from ptune.tuning.study import shown_url
from ptune.tuning.trial import BEST
from ptune.tuning.trials_plot import plot_trials
from ptune.tuning.tune_result import TrialResult, TuneResult
from ptune.tuning.tune_settings import NOT_HERE, SEARCHED, SETTINGS_FILE, TuneSettings

DATABASE, RECIPE, RESULTS, PICTURE, AGAIN = "study.db", "best.yaml", "results.json", "trials.png", "best-again"
_NOT_WRITTEN = ("overwrite", "trust_remote_code", *NOT_HERE, *SEARCHED, "init_text")
"""Of the recipe: what must be asked for again, is searched, or goes with what is searched."""


def check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise `OutputError` unless a search may write there.

    Another process may be about to begin it: then the database is there, and files that are being written.
    """
    OutputFolder(folder, overwrite=True)
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()
    if not there:
        return
    if SETTINGS_FILE not in there and not there <= {DATABASE, f"{DATABASE}-journal"}:
        raise OutputError(f"the output folder {folder} is not empty, and no search's.", hint="Choose another one.")
    if not (resume or overwrite):
        raise OutputError(
            f"{folder} holds a search already.",
            hint="Pass --resume to go on with it, --overwrite to begin it anew, or choose another folder.",
        )


def claim_folder(
    folder: Path, recipe: TrainRecipe, settings: TuneSettings, given: Mapping[str, Any], *, overwrite: bool
) -> None:
    """Note the search's settings in its folder, and remove what an earlier one left that is to be replaced.

    Raises:
        OutputError: It cannot be written.
    """
    make_folder(folder)
    if overwrite:
        shutil.rmtree(folder / BEST, ignore_errors=True)
        for name in (RECIPE, RESULTS, PICTURE):
            (folder / name).unlink(missing_ok=True)
    own = {name: value for name, value in _own(settings).items() if name != "resume"}
    if settings.storage is not None:
        own["storage"] = shown_url(settings.storage)
    start = {} if recipe.init_text is None else {"init_text": recipe.init_text}
    write_recipe(folder / SETTINGS_FILE, "A search; ptune tune --resume goes on with it.", {
        **recipe_values(recipe), **start, **own, **given,
    })  # fmt: skip


def recipe_values(recipe: TrainRecipe) -> dict[str, Any]:
    """The recipe's values that somebody chose, but for what is searched."""
    return {name: value for name, value in _own(recipe).items() if name not in _NOT_WRITTEN}


def _own(settings: TrainRecipe | TuneSettings) -> dict[str, Any]:
    """Values other than the defaults, as YAML has them."""
    defaults = {item.name: item.default for item in fields(settings)}
    chosen = {name: value for name, value in asdict(settings).items() if value != defaults[name]}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}


def best_values(recipe: TrainRecipe, given: Mapping[str, Any], best: TrialResult, folder: Path) -> dict[str, Any]:
    """The best trial's recipe: `ptune train` comes to the same prompt with it, bit for bit on the same machine."""
    chosen: dict[str, Any] = {
        "encoder": best.encoder,
        "num_virtual_tokens": best.num_virtual_tokens,
        "init": best.init,
        "learning_rate": best.learning_rate,
    }
    if best.init == "text":
        chosen["init_text"] = recipe.init_text
    # An evaluation draws on the random generators (its loader does), which dropout then finds elsewhere.
    chosen["eval_strategy"] = "no"
    return {**recipe_values(replace(recipe, output=str(folder / AGAIN))), **chosen, **given}


def write_recipe(path: Path, about: str, values: Mapping[str, Any]) -> Path:
    """Write a recipe.

    Raises:
        OutputError: It cannot be written.
    """
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    write_atomic(path, f"# {about}\n{text}".encode())
    return path


def write_results(result: TuneResult) -> None:
    """Write every figure as JSON, and the picture.

    Raises:
        OutputError: They cannot be written.
    """
    write_json(result.folder / RESULTS, result.to_dict())
    plot_trials(result, result.folder / PICTURE)
