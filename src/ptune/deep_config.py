"""What a deep prompt is made of: keys and values of every layer, under the names of PEFT's classes.

`PrefixTuningConfig` and `CartridgeConfig` take the arguments of the classes of the same name in PEFT 0.21 with the same
defaults. Beyond PEFT, both say where the prompt starts (`init`, `init_text`, `init_text_tokens`), which PEFT leaves to
functions of their own.

Shapes: `P` virtual tokens, `L` layers, `H` key/value heads, `E` head dimension.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from ptune.config import (
    PeftType,
    PromptEncoderConfig,
    PromptLearningConfig,
    PromptTuningConfig,
    PromptTuningInit,
    coerce,
    is_int,
    no_count,
    text_faults,
)
from ptune.errors import shown


class TextTokens(str, enum.Enum):
    """Which tokens of a text a deep prompt takes keys and values of, where the text has more than `P`."""

    FIRST = "FIRST"
    LAST = "LAST"
    EVEN = "EVEN"


@dataclass(frozen=True, kw_only=True)
class DeepPromptConfig(PromptLearningConfig):
    """What both kinds of deep prompt have in common. Use one of the two subclasses.

    Here `token_dim` is `H E` and `num_attention_heads` is `H`, as in PEFT's files. The model's hidden size and its
    number of attention heads are taken for them, as PEFT takes them.
    """

    init: PromptTuningInit | str = PromptTuningInit.RANDOM
    """RANDOM, in the deviations of the model's own keys and values; or keys and values of sampled tokens of the
    vocabulary (SAMPLE_VOCAB) or of a text (TEXT)."""
    init_text: str | None = None
    """The text whose keys and values the prompt starts from; needed with TEXT."""
    init_text_tokens: TextTokens | str | None = None
    """Of a text of more than `P` tokens: the FIRST (also when None), the LAST or EVEN ones, from the first to the last
    at equal distances. The last and the even ones have seen the text before them."""

    def _faults(self) -> list[str]:
        faults = super()._faults()
        if self.tokens_in_text:
            faults.append(
                f"tokens_in_text={shown(self.tokens_in_text)} is not supported: keys and values of every layer stand "
                "before the text, and have no place inside it"
            )
        init = self.init
        if self.init_text is not None and init == PromptTuningInit.RANDOM:
            init = PromptTuningInit.TEXT
        object.__setattr__(self, "init", coerce(init, PromptTuningInit, "init", faults))
        faults.extend(text_faults(self.init, self.init_text, "init_text"))
        if self.init_text_tokens is not None:
            which = coerce(self.init_text_tokens, TextTokens, "init_text_tokens", faults)
            object.__setattr__(self, "init_text_tokens", which)
            if self.init_text is None:
                faults.append("init_text_tokens is given, but no init_text")
        width, heads = self.token_dim, self.num_attention_heads
        if is_int(width) and is_int(heads) and heads and width % heads:  # type: ignore[operator]  # both are numbers
            faults.append(f"token_dim={width} is no multiple of num_attention_heads={heads}")
        return faults


@dataclass(frozen=True, kw_only=True)
class PrefixTuningConfig(DeepPromptConfig):
    """Prefix tuning (Li & Liang 2021) and P-tuning v2 (Liu et al. 2022): a table of keys and values of every layer.

    With `prefix_projection` the table is small, and an MLP makes keys and values of it.
    """

    PEFT_TYPE = PeftType.PREFIX_TUNING
    prefix_projection: bool = False
    """Whether an MLP stands behind the table."""
    encoder_hidden_size: int | None = None
    """Width of its hidden layer; `H E` when None, as in PEFT."""
    init_weights: str | None = None
    """`zero`: all keys and values start at zero. Excludes the other starts."""

    def _faults(self) -> list[str]:
        faults = super()._faults()
        if not isinstance(self.prefix_projection, bool):
            faults.append(f"prefix_projection must be true or false, not {shown(self.prefix_projection)}")
        if self.encoder_hidden_size is not None and (
            not is_int(self.encoder_hidden_size) or self.encoder_hidden_size < 1
        ):
            faults.append(no_count("encoder_hidden_size", self.encoder_hidden_size))
        if self.init_weights not in (None, "zero"):
            faults.append(f"init_weights must be 'zero' or None, not {shown(self.init_weights)}")
        elif self.init_weights and self.init is not PromptTuningInit.RANDOM:
            faults.append(f"init_weights='zero' excludes init={_name(self.init)}")
        return faults


@dataclass(frozen=True, kw_only=True)
class CartridgeConfig(DeepPromptConfig):
    """A Cartridge (Eyuboglu et al. 2025): a table of keys and values whose first rows do not train."""

    PEFT_TYPE = PeftType.CARTRIDGE
    num_frozen_tokens: int = 1
    """The first virtual tokens, which stay as they start: many models look at the first position from everywhere."""

    def _faults(self) -> list[str]:
        faults = super()._faults()
        frozen, most = self.num_frozen_tokens, self.num_virtual_tokens
        if not is_int(frozen) or frozen < 0 or (is_int(most) and frozen > most):
            faults.append(f"num_frozen_tokens must be from 0 to num_virtual_tokens={shown(most)}, not {shown(frozen)}")
        return faults


PromptConfig = PromptEncoderConfig | PromptTuningConfig | PrefixTuningConfig | CartridgeConfig
"""A prompt of any kind."""
CONFIG_CLASSES: dict[str, type[PromptConfig]] = {
    one.PEFT_TYPE.value: one for one in (PromptEncoderConfig, PromptTuningConfig, PrefixTuningConfig, CartridgeConfig)
}
"""PEFT's type → the class here."""


def _name(value: Any) -> str:
    return str(getattr(value, "value", value))
