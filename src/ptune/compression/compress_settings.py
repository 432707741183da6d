"""What `ptune compress` can be told beyond `ptune train`: the text, and how the model studies it.

A field is a flag, a YAML key and an argument. Kept free of torch and transformers, so that help and checks of flags are
quick.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ptune.choices import PREFIX, TEXT_TOKENS
from ptune.errors import refuse, unknown
from ptune.field_types import type_faults
from ptune.recipe import TrainRecipe

KINDS = ("question", "detail", "use", "summary", "structure", "passage")
"""What the model asks itself; see `ptune.compression.seed_questions`."""
NOT_HERE = (
    "data",
    "data_weights",
    "columns",
    "split",
    "sheet",
    "limit",
    "train_on",
    "init",
    "init_text",
    "init_text_tokens",
    "init_from",
    "force",
    "eval_metrics",
    "template",
    "tokens_per_batch",
    "resume",
)
"""Of the recipe: what has no place where the rows are made, and where the prompt starts at the text."""
SETTINGS_FILE, STUDY = "compress.yaml", "study"
"""Every flag of a compression, and the folder of its rows, both in OUTPUT."""
_TEXT, _STUDY, _PROMPT, _REPORT = "model and data", "self-study", "prompt", "report"
_AT_LEAST = {
    "questions": 2,
    "excerpt_tokens": 16,
    "answer_tokens": 1,
    "top_k": 1,
    "study_batch_size": 1,
    "report_rows": 0,
}


def _flag(group: str, default: Any, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": text, "group": group, **metadata})


@dataclass(frozen=True, kw_only=True)
class CompressSettings:
    """The text, the questions, and the answers. A field's help is its documentation.

    Raises:
        ConfigError: Values that cannot be used, all of them at once.
    """

    text: str = _flag(_TEXT, "", "the text file; on the command line the first word, TEXT_FILE", required=True)
    template: str | None = _flag(
        _TEXT, None, "as for ptune train; by default chat, where the model has a chat template, else tutorial"
    )
    data: str | Sequence[str] | None = _flag(
        _STUDY,
        None,
        "questions to take in place of the model's own, in any form that ptune train reads; answers in it are not read",
    )
    questions: int = _flag(_STUDY, 256, "how many the model asks itself; of those in DATA, at most so many are taken")
    kinds: Sequence[str] = _flag(_STUDY, KINDS, "kinds of questions that it asks, in turn", metavar="NAME")
    excerpt_tokens: int = _flag(_STUDY, 256, "tokens of the part of the text that a question is asked about")
    temperature: float = _flag(_STUDY, 0.8, "at which questions are sampled; answers are greedy")
    answer_tokens: int = _flag(_STUDY, 64, "longest answer, in tokens")
    top_k: int = _flag(_STUDY, 64, "likeliest tokens whose probabilities are kept at each token of an answer")
    study_batch_size: int = _flag(_STUDY, 16, "questions and answers at a time")
    study: str | None = _flag(
        _STUDY,
        None,
        "folder of another compression of the same text by the same model, whose questions and answers are taken",
        metavar="DIR",
    )
    start: str = _flag(
        _PROMPT, "even", "the tokens of the text at which the prompt starts", choices=(*TEXT_TOKENS, "random")
    )
    report_rows: int = _flag(_REPORT, 64, "most held-out questions for the report at the end; 0 leaves it out")
    resume: str | bool | None = _flag(
        "output", None, "go on with the compression in OUTPUT, with its settings", metavar="OUTPUT", optional=True
    )

    def __post_init__(self) -> None:
        for name in ("kinds", "data"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        faults = type_faults(self)
        if not faults:
            faults = [] if self.text else ["text is missing"]
            faults += [
                f"{name} must be at least {least}, not {getattr(self, name)}"
                for name, least in _AT_LEAST.items()
                if getattr(self, name) < least
            ]
            if not 0 < self.temperature < math.inf:  # written so that NaN is refused too
                faults.append(f"temperature must be above 0, not {self.temperature:g}")
            faults += [str(unknown("kind of question", name, KINDS)) for name in self.kinds if name not in KINDS]
            faults += [] if self.kinds else ["kinds names none"]
            if self.start not in (*TEXT_TOKENS, "random"):
                faults.append(str(unknown("start", self.start, (*TEXT_TOKENS, "random"))))
        refuse(faults)


OWN_DEFAULTS: Mapping[str, Any] = {"encoder": PREFIX, "num_virtual_tokens": 64, "max_length": 512, "eval_rows": 32}
"""Of the recipe: what is another default here."""
ARGUMENT_DEFAULTS: Mapping[str, Any] = {"save_strategy": "epoch", "save_total_limit": 1}
"""Of the training arguments: what is another default here."""


def recorded(settings: CompressSettings, recipe: TrainRecipe, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every value that is not its default, under the names of flags."""
    own = {item.name: item.default for item in fields(CompressSettings)}
    train = {item.name: OWN_DEFAULTS.get(item.name, item.default) for item in fields(TrainRecipe)}
    values = {name: value for name, value in asdict(settings).items() if value != own[name] and name != "resume"}
    values |= {
        name: value
        for name, value in asdict(recipe).items()
        if value != train[name] and name not in NOT_HERE and name != "overwrite"
    }
    return {name: list(one) if isinstance(one, tuple) else one for name, one in {**values, **given}.items()}


def split_settings(values: Mapping[str, Any]) -> tuple[CompressSettings, TrainRecipe, dict[str, Any]]:
    """Settings of the compression, recipe of the prompt, and what is neither.

    Raises:
        ConfigError: Values that cannot be used.
    """
    own = {item.name for item in fields(CompressSettings)}
    of_recipe = {item.name for item in fields(TrainRecipe)} - set(NOT_HERE)
    settings = CompressSettings(**{name: value for name, value in values.items() if name in own})
    recipe = {**OWN_DEFAULTS, **{name: value for name, value in values.items() if name in of_recipe}}
    if recipe.get("eval_data") is not None and "eval_rows" not in values:
        recipe.pop("eval_rows")
    # What is trained on is made first: the text stands for it until then.
    made = TrainRecipe(**recipe, data=settings.text)
    return settings, made, {name: value for name, value in values.items() if name not in own | of_recipe}
