"""What `ptune tune` can be told beyond `ptune train`: what is searched, how long, and where the study is kept.

A field is a flag, a YAML key and an argument. The four that are searched have the names they have in `ptune train`, and
take several values. Kept free of optuna, so that help and checks of flags are quick.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import Any

from ptune.choices import ENCODER_NAMES, INIT_NAMES, SOFT_ENCODERS
from ptune.errors import ConfigError, refuse, unknown
from ptune.field_types import type_faults
from ptune.recipe import TrainRecipe

PRUNERS = ("median", "halving", "none")
NOT_HERE = ("init_from", "force", "early_stopping_patience", "early_stopping_threshold", "resume")
"""Of the recipe: what has no place in a search. `resume` is the search's own."""
NOT_FOR_TRIALS = (
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "load_best_model_at_end",
    "resume_from_checkpoint",
    "report_to",
    "push_to_hub",
    "torch_compile",
)
"""Training arguments that a search decides itself, or that a trial is too short-lived for."""
_OFF = ("no", "none", "false", "[]")
SEARCHED = ("encoder", "num_virtual_tokens", "init", "learning_rate")
"""The names of what is searched."""
SETTINGS_FILE = "tune.yaml"
"""Every flag of a search, in its folder."""
_SPACE, _STUDY = "what is searched", "study"
_TEXT = "text"


def _flag(group: str, default: Any, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": text, "group": group, **metadata})


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """What is searched, how long, and where the study is kept. A field's help is its documentation.

    A single value in place of several fixes what it stands for.

    Raises:
        ConfigError: Values that cannot be used, all of them at once; or optuna is not installed.
    """

    encoder: Sequence[str] = _flag(_SPACE, SOFT_ENCODERS, "prompt encoders to try", metavar="NAME")
    num_virtual_tokens: Sequence[int] = _flag(_SPACE, (5, 10, 20, 50), "numbers of virtual tokens to try")
    init: Sequence[str] | None = _flag(
        _SPACE,
        None,
        f"starts to try, of {', '.join(INIT_NAMES)}; by default all of them, text only with --init-text",
        metavar="NAME",
    )
    learning_rate: Sequence[float] | None = _flag(
        _SPACE,
        None,
        "least and greatest rate, for every encoder; or one rate; by default a tenth to ten times each encoder's own",
    )
    trials: int = _flag(_STUDY, 20, "trials in all, those of other processes and of earlier runs counted")
    time_limit: float | None = _flag(
        _STUDY, None, "begin no trial after so many minutes of this run", metavar="MINUTES"
    )
    measurements: int = _flag(
        _STUDY, 4, "times that the held-out loss of a trial is measured: at its end, half of it, a quarter, …"
    )
    pruner: str = _flag(
        _STUDY,
        "median",
        "give a trial up at a measurement where it is worse than the median of the complete ones (from the sixth trial "
        "on), or not in the better half (successive halving)",
        choices=PRUNERS,
    )
    storage: str | None = _flag(
        _STUDY, None, "database of the study, as optuna takes it; by default sqlite in OUTPUT/study.db", metavar="URL"
    )
    study_name: str = _flag(_STUDY, "ptune", "the study's name in its database")
    resume: str | bool | None = _flag(
        _STUDY,
        None,
        "go on with the study in OUTPUT or --storage, beside other processes too; begin it where there is none",
        metavar="OUTPUT",
        optional=True,
    )

    def __post_init__(self) -> None:
        for name in SEARCHED:
            value = getattr(self, name)
            if type(value) in (str, int, float):
                value = (value,)
            if isinstance(value, (list, tuple)):
                once = [one for number, one in enumerate(value) if one not in value[:number]]
                object.__setattr__(self, name, tuple(once))
        faults = type_faults(self)
        refuse(faults or [*self._space_faults(), *self._study_faults()])
        if find_spec("optuna") is None:
            raise ConfigError(
                "ptune tune needs the package optuna, which is not installed.", hint='pip install "ptune[tune]".'
            )

    def _space_faults(self) -> list[str]:
        faults = [f"{name} names nothing to try" for name in SEARCHED if getattr(self, name) == ()]
        for name, known in (("encoder", ENCODER_NAMES), ("init", INIT_NAMES)):
            faults += [str(unknown(name, one, known)) for one in getattr(self, name) or () if one not in known]
        faults += [
            f"num_virtual_tokens must be at least 1, not {length}" for length in self.num_virtual_tokens if length < 1
        ]
        rates = self.learning_rate or ()
        if not all(0 < rate < math.inf for rate in rates):  # written so that NaN is refused too
            faults.append(f"learning_rate must be above 0, not {' '.join(f'{rate:g}' for rate in rates)}")
        elif len(rates) > 2 or list(rates) != sorted(rates):
            faults.append(
                f"learning_rate takes the least and the greatest rate, not {' '.join(f'{rate:g}' for rate in rates)}"
            )
        return faults

    def _study_faults(self) -> list[str]:
        faults = [
            f"{name} must be at least 1, not {getattr(self, name)}"
            for name in ("trials", "measurements")
            if getattr(self, name) < 1
        ]
        if self.time_limit is not None and not self.time_limit > 0:
            faults.append(f"time_limit must be above 0 minutes, not {self.time_limit:g}")
        if self.pruner not in PRUNERS:
            faults.append(str(unknown("pruner", self.pruner, PRUNERS)))
        if not self.study_name.strip():
            faults.append("study_name is empty")
        return faults

    def inits(self, recipe: TrainRecipe) -> tuple[str, ...]:
        """The starts that are tried with a recipe."""
        if self.init is not None:
            return tuple(self.init)
        return tuple(name for name in INIT_NAMES if name != _TEXT or recipe.init_text is not None)

    def space(self, recipe: TrainRecipe) -> dict[str, Any]:
        """What is searched with a recipe, by its names."""
        return {**{name: getattr(self, name) for name in SEARCHED}, "init": self.inits(recipe)}


def check_search(settings: TuneSettings, recipe: TrainRecipe, given: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for settings that do not go together, all of them at once.

    Args:
        settings: The search's.
        recipe: What each trial trains, but for what is searched.
        given: The training arguments that somebody chose.
    """
    defaults = {item.name: item.default for item in fields(TrainRecipe)}
    faults = [f"{name} does not go with a search" for name in NOT_HERE if getattr(recipe, name) != defaults[name]]
    faults += [
        f"{name} is decided by the search"
        for name in NOT_FOR_TRIALS
        if name in given and str(given[name]).lower() not in _OFF
    ]
    if "learning_rate" in given:
        faults.append("learning_rate is searched: give it to TuneSettings")
    if not (recipe.eval_data or recipe.eval_rows):
        faults.append("a search needs held-out rows: set eval_rows or eval_data")
    if _TEXT in settings.inits(recipe) and recipe.init_text is None:
        faults.append("init text needs init_text")
    refuse(faults)
