"""The methods by name, with a sensible learning rate for each. Kept free of torch, so that help is quick.

`full` trains every weight; `prompt-tuning` (Lester et al. 2021), `mlp`, `lstm` (Liu et al. 2021), `residual`
(Razdaibiedina et al. 2023), `prefix` (P-tuning v2, Liu et al. 2022) and `prefix-mlp` (prefix tuning, Li & Liang 2021)
are ptune's prompts; `lora` (Hu et al. 2021), `peft-mlp` and `peft-lstm` are PEFT's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass

from ptune.choices import CHECKPOINTING, DEEP_ENCODERS
from ptune.errors import ConfigError, unknown

PTUNE, PEFT, TRANSFORMERS = "ptune", "PEFT", "transformers"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to adapt a model."""

    name: str
    title: str
    """What tables call it."""
    learning_rate: float | None = None
    """A sensible rate for AdamW, from trials on SmolLM2-135M; that of a soft prompt is its encoder's."""
    encoder: str | None = None
    """The prompt encoder, where it is a soft prompt."""
    library: str = PTUNE
    """Whose code trains it."""

    @property
    def is_ptune(self) -> bool:
        """Whether `ptune train` makes it."""
        return self.library == PTUNE

    @property
    def is_deep(self) -> bool:
        """Whether it is a prompt of keys and values of every layer."""
        return self.encoder in DEEP_ENCODERS


def _prompt(name: str, title: str, encoder: str) -> Method:
    return Method(name=name, title=title, encoder=encoder)


def _peft_prompt(encoder: str) -> Method:
    title = f"p-tuning ({encoder.upper()}) by PEFT"
    return Method(name=f"peft-{encoder}", title=title, encoder=encoder, library=PEFT)


METHODS = {
    one.name: one
    for one in (
        Method(name="full", title="full fine-tuning", learning_rate=2e-5, library=TRANSFORMERS),
        _prompt("prompt-tuning", "prompt tuning", "embedding"),
        _prompt("mlp", "p-tuning (MLP)", "mlp"),
        _prompt("lstm", "p-tuning (LSTM)", "lstm"),
        _prompt("residual", "residual prompt tuning", "residual"),
        _prompt("prefix", "p-tuning v2", "prefix"),
        _prompt("prefix-mlp", "prefix tuning (MLP)", "prefix-mlp"),
        Method(name="lora", title="LoRA", learning_rate=5e-4, library=PEFT),
        _peft_prompt("mlp"),
        _peft_prompt("lstm"),
    )
}
DEFAULT_METHODS = ("full", "prompt-tuning", "mlp", "lstm", "residual", "lora")


def find_method(name: str) -> Method:
    """A method by name.

    Raises:
        ConfigError: The name is unknown, or the method needs PEFT, which is not installed.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    found = METHODS[name]
    if found.library == PEFT and importlib.util.find_spec("peft") is None:
        raise ConfigError(
            f"the method {name} needs PEFT, which is not installed.",
            hint="Run `pip install 'ptune[compare]'`, or leave it out of --methods.",
        )
    return found


def check_checkpointing(names: Iterable[str]) -> None:
    """Refuse methods that activation checkpointing does not go with.

    Raises:
        ConfigError: One of them is a prompt of keys and values of every layer.
    """
    deep = [name for name in names if METHODS[name].is_deep]
    if deep:
        raise ConfigError(
            f"{CHECKPOINTING} drops the keys and values that {' and '.join(deep)} give{'' if deep[1:] else 's'}.",
            hint="Leave it out, or leave them out of --methods.",
        )
