"""What one trial takes of each thing that is searched."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from transformers import TrainingArguments

from ptune.recipe import TrainRecipe
from ptune.tuning.study import RATE
from ptune.tuning.tune_settings import TuneSettings

OWN_RATE = "times_own_rate"
"""The searched number where no range of rates is given: encoders' best rates differ less as multiples of their own."""
LEAST_TIMES, MOST_TIMES = 0.1, 10.0
SPREAD = 8
"""Trials after the first that are spread evenly; then the study draws by what it has seen."""
_DIGITS = 3
"""Of a rate: enough for the search, and few enough to be read and written down."""


@dataclass(frozen=True)
class Choice:
    """Encoder, length, start and rate of one trial."""

    encoder: str
    num_virtual_tokens: int
    init: str
    learning_rate: float

    def __str__(self) -> str:
        return (
            f"{self.encoder}, {self.num_virtual_tokens} virtual tokens, start {self.init}, rate {self.learning_rate:g}"
        )

    def recipe(self, recipe: TrainRecipe, folder: Path) -> TrainRecipe:
        """The recipe that trains this choice into a folder."""
        return replace(
            recipe,
            encoder=self.encoder,
            num_virtual_tokens=self.num_virtual_tokens,
            init=self.init,
            init_text=recipe.init_text if self.init == "text" else None,
            output=str(folder),
        )

    def arguments(self, args: TrainingArguments, recipe: TrainRecipe, given: Collection[str]) -> TrainingArguments:
        """The training arguments that go with it.

        Args:
            args: Those of all trials.
            recipe: The one that trains this choice.
            given: Names of the arguments that somebody chose.
        """
        own = copy.copy(args)
        own.learning_rate, own.output_dir = self.learning_rate, recipe.output
        if "warmup_steps" not in given:  # the one default that depends on the encoder
            own.warmup_steps = recipe.trainer_defaults()["warmup_steps"]
        return own


def choose(trial: optuna.Trial, settings: TuneSettings, recipe: TrainRecipe, own_rates: Mapping[str, float]) -> Choice:
    """Ask the study for a choice, and note its learning rate in the trial; `own_rates` are the encoders' own."""
    encoder = trial.suggest_categorical("encoder", list(settings.encoder))
    length = trial.suggest_categorical("num_virtual_tokens", list(settings.num_virtual_tokens))
    init = trial.suggest_categorical("init", list(settings.inits(recipe)))
    if settings.learning_rate is None:
        own = own_rates[encoder]
        low, high = own * LEAST_TIMES, own * MOST_TIMES
        rate = own * trial.suggest_float(OWN_RATE, LEAST_TIMES, MOST_TIMES, log=True)
    else:
        low, high = settings.learning_rate[0], settings.learning_rate[-1]
        rate = trial.suggest_float(RATE, low, high, log=True)
    rate = min(max(float(f"{rate:.{_DIGITS}g}"), low), high)
    trial.set_user_attr(RATE, rate)
    return Choice(encoder, length, init, rate)


def given_choice(
    place: int, settings: TuneSettings, recipe: TrainRecipe, own_rates: Mapping[str, float], seed: int
) -> dict[str, Any] | None:
    """What the first trials take, by the study's names; None where the study is to draw.

    The first of all is the recipe as it is, as far as that is searched. The next eight are spread evenly: a scrambled
    Sobol sequence visits each eighth of the rates once, where eight random draws leave a third of them out.
    """
    if place > SPREAD:
        return None
    options = settings.space(recipe)
    relative = settings.learning_rate is None
    low, high = (LEAST_TIMES, MOST_TIMES) if relative else (options["learning_rate"][0], options["learning_rate"][-1])
    rate_name = OWN_RATE if relative else RATE
    names = ("encoder", "num_virtual_tokens", "init")
    if place:
        engine: Any = torch.quasirandom.SobolEngine(len(names) + 1, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
        *shares, share = engine.draw(place, dtype=torch.float64)[-1].tolist()
        chosen = {name: options[name][int(part * len(options[name]))] for name, part in zip(names, shares, strict=True)}
        return {**chosen, rate_name: low * (high / low) ** share}
    start = recipe.start
    own = {"encoder": recipe.encoder, "num_virtual_tokens": recipe.num_virtual_tokens, "init": start}
    chosen = {name: own[name] if own[name] in options[name] else options[name][0] for name in names}
    rate = 1.0 if relative else own_rates[chosen["encoder"]]
    return {**chosen, rate_name: rate if low <= rate <= high else math.sqrt(low * high)}
