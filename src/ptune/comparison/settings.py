"""What `ptune compare` can be told beyond `ptune train`. A field is a flag, and its help is its documentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ptune.errors import ConfigError, PTuneError
from ptune.methods.names import DEFAULT_METHODS, METHODS, find_method

_GROUP = "comparison"


def _flag(default: Any, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": text, "group": _GROUP, **metadata})


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """Which methods, how often, and their own sizes and rates.

    Raises:
        ConfigError: Values that cannot be used; all of them at once.
    """

    methods: str = _flag(
        ",".join(DEFAULT_METHODS), f"names with commas between them, of {', '.join(METHODS)}", aliases=("encoder",)
    )
    peft: bool = _flag(False, "add PEFT's own P-tuning, peft-mlp")
    seeds: int = _flag(1, "runs of each method, from --seed upwards")
    learning_rates: Mapping[str, float] | None = _flag(
        None, "rates other than each method's own, as mlp=1e-3 full=5e-5", nargs="+", metavar="METHOD=RATE"
    )
    lora_r: int = _flag(8, "LoRA's rank")
    lora_alpha: int = _flag(16, "LoRA's scale, over the rank")

    def __post_init__(self) -> None:
        faults = []
        for name, value in (("seeds", self.seeds), ("lora_r", self.lora_r), ("lora_alpha", self.lora_alpha)):
            if value < 1:
                faults.append(f"{name} must be at least 1, not {value}")
        names = self.names()
        if not names:
            faults.append("methods names none")
        for name in names:
            try:
                find_method(name)
            except PTuneError as error:
                faults.append(str(error).rstrip("."))
        for name, rate in (self.learning_rates or {}).items():
            if name not in names:
                faults.append(f"learning_rates has {name!r}, which is not among the methods {', '.join(names)}")
            if not rate > 0:  # written so that NaN is refused too
                faults.append(f"learning_rates: {name} must be above 0, not {rate:g}")
        if faults:
            raise ConfigError(f"{'; '.join(faults)}.")

    def names(self) -> tuple[str, ...]:
        """The methods in the order given, each once."""
        asked = [part.strip() for part in self.methods.split(",") if part.strip()]
        return tuple(dict.fromkeys([*asked, *(["peft-mlp"] if self.peft else [])]))

    def learning_rate(self, name: str) -> float | None:
        """The rate that a method was given; None leaves it at its own."""
        return (self.learning_rates or {}).get(name)
