"""What a prompt is made of: the configuration classes, under PEFT's names. Those of deep prompts: `ptune.deep_config`.

`PromptEncoderConfig` and `PromptTuningConfig` take the arguments of the classes of the same name in PEFT 0.21 with
the same defaults, so that a script written for PEFT runs after changing one import. They differ from PEFT in being
frozen and keyword-only, in checking everything at construction and reporting every fault at once, in refusing by
name what ptune does not do, and in offering initialisation (`init`, `init_text`) to every encoder.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ptune.errors import ConfigError, shown, unknown


class TaskType(str, enum.Enum):
    """Kinds of task, as PEFT names them. `MASKED_LM` is ptune's addition."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"
    MASKED_LM = "MASKED_LM"


class PromptEncoderReparameterizationType(str, enum.Enum):
    """How the prompt encoder turns its table into virtual tokens. `RESIDUAL` and `EMBEDDING` are ptune's additions."""

    MLP = "MLP"
    LSTM = "LSTM"
    RESIDUAL = "RESIDUAL"
    EMBEDDING = "EMBEDDING"


class PromptTuningInit(str, enum.Enum):
    """Where the first vectors of a prompt come from, as PEFT names it."""

    TEXT = "TEXT"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    RANDOM = "RANDOM"


class PeftType(str, enum.Enum):
    """The kinds of adapter that are soft prompts, as PEFT names them."""

    P_TUNING = "P_TUNING"
    PROMPT_TUNING = "PROMPT_TUNING"
    PREFIX_TUNING = "PREFIX_TUNING"
    CARTRIDGE = "CARTRIDGE"


_TEXTS = (
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "init_text",
    "prompt_tuning_init_text",
    "tokenizer_name_or_path",
)
_COUNTS = ("num_attention_heads", "num_layers")


def coerce(value: Any, kind: type[enum.Enum], name: str, faults: list[str]) -> Any:
    """`value` as a member of `kind`, upper or lower case; a fault is noted otherwise."""
    if isinstance(value, kind):
        return value
    # PEFT has enums of the same values; a half-moved script may pass one.
    plain = getattr(value, "value", value)
    if not isinstance(plain, str):
        faults.append(f"{name} must be one of {', '.join(member.value for member in kind)}, not {shown(plain)}")
        return value
    try:
        return kind(plain.upper())
    except ValueError:
        faults.append(f"{name}: {unknown(name, plain, [member.value for member in kind])}")
        return value


@dataclass(frozen=True, kw_only=True)
class PromptLearningConfig:
    """What all kinds of prompt have in common. Use one of the subclasses."""

    PEFT_TYPE: ClassVar[PeftType]
    """What PEFT calls a subclass's kind."""

    num_virtual_tokens: int = 20
    """Virtual tokens `P` that stand before the text. (PEFT has no default here and fails later without one.)"""
    tokens_in_text: int = 0
    """How many of them stand inside the text, where a template has a place for them: the last ones of the prompt."""
    task_type: TaskType | str | None = None
    """What the model is for; None leaves it to the model's class."""
    token_dim: int | None = None
    """Size `D` of a token embedding; read from the model when None."""
    base_model_name_or_path: str | None = None
    """The frozen model this prompt belongs to; noted from the model when None."""
    revision: str | None = None
    """Revision of the base model on the hub."""
    pool_virtual_tokens: bool = False
    """Whether an encoder's classifier reads its virtual tokens too, as PEFT's does: [CLS] is looked for at the first of
    them, and a mean is taken over all of them. Here it reads the text alone by default."""
    inference_mode: bool = False
    """True freezes the prompt encoder too."""
    peft_type: PeftType | str | None = None
    """Must agree with the class when given."""
    auto_mapping: Mapping[str, Any] | None = None
    """Accepted for PEFT's files; must be None."""
    peft_version: str | None = None
    """Accepted for PEFT's files; not used."""
    num_transformer_submodules: int | None = None
    """1. Of an encoder-decoder PEFT says 2: its files have vectors for the decoder too, which it does not use."""
    num_attention_heads: int | None = None
    """Read from the model; accepted for PEFT's files."""
    num_layers: int | None = None
    """Read from the model; accepted for PEFT's files."""
    modules_to_save: list[str] | None = None
    """Children of the model that train and are saved with the prompt, beside a classifier's head, which does anyway."""

    def __post_init__(self) -> None:
        faults = self._faults()
        if faults:
            raise ConfigError(f"{type(self).__name__}: " + " | ".join(faults))

    def _faults(self) -> list[str]:
        """Every fault in the values; enum fields are brought to their enum on the way."""
        faults = self._type_faults()
        if self.task_type is not None:
            task = coerce(self.task_type, TaskType, "task_type", faults)
            object.__setattr__(self, "task_type", task)
        if not is_int(self.num_virtual_tokens) or self.num_virtual_tokens < 1:
            faults.append(
                f"num_virtual_tokens must be a whole number of at least 1, not {shown(self.num_virtual_tokens)}"
            )
        elif not is_int(self.tokens_in_text) or not 0 <= self.tokens_in_text <= self.num_virtual_tokens:
            faults.append(
                f"tokens_in_text must be from 0 to num_virtual_tokens={self.num_virtual_tokens}, not "
                f"{shown(self.tokens_in_text)}"
            )
        if self.token_dim is not None and (not is_int(self.token_dim) or self.token_dim < 1):
            faults.append(no_count("token_dim", self.token_dim))
        expected = self.PEFT_TYPE
        given = getattr(self.peft_type, "value", self.peft_type)
        if given not in (None, expected):
            faults.append(f"peft_type={shown(given)} does not fit; {type(self).__name__} is {expected.value}")
        object.__setattr__(self, "peft_type", expected)
        most = 2 if self.task_type is TaskType.SEQ_2_SEQ_LM else 1
        if self.num_transformer_submodules not in (None, *range(1, most + 1)):
            faults.append(
                f"num_transformer_submodules={shown(self.num_transformer_submodules)} is not supported; "
                + ("use 1 or 2" if most > 1 else "a model of one part has 1")
            )
        names = self.modules_to_save
        if names is not None and not (isinstance(names, (list, tuple)) and all(isinstance(one, str) for one in names)):
            faults.append(f"modules_to_save must be a list of names, not {shown(names)}")
        elif names and self.task_type is TaskType.CAUSAL_LM:
            faults.append(f"modules_to_save={shown(names)} is not supported for CAUSAL_LM; the model stays frozen")
        if self.auto_mapping:
            faults.append("auto_mapping is not supported")
        return faults

    def _type_faults(self) -> list[str]:
        """Values that are no text, count or truth value where these are wanted: a file may say anything."""
        faults = []
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in _TEXTS and not (value is None or isinstance(value, str)):
                faults.append(f"{item.name} must be text, not {shown(value)}")
            if item.name in _COUNTS and not (value is None or (is_int(value) and value >= 0)):
                faults.append(f"{item.name} must be a whole number, not {shown(value)}")
        faults += [
            f"{name} must be true or false, not {shown(getattr(self, name))}"
            for name in ("inference_mode", "pool_virtual_tokens")
            if not isinstance(getattr(self, name), bool)
        ]
        return faults

    @property
    def leading_tokens(self) -> int:
        """How many virtual tokens stand before the text."""
        return self.num_virtual_tokens - self.tokens_in_text

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        plain: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            plain[item.name] = value.value if isinstance(value, enum.Enum) else value
        return plain


def is_int(value: Any) -> bool:
    """Whether a value is a whole number, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def no_count(name: str, value: Any) -> str:
    """The fault of a value that is no whole number of at least 1."""
    return f"{name} must be a whole number of at least 1, not {shown(value)}"


@dataclass(frozen=True, kw_only=True)
class PromptEncoderConfig(PromptLearningConfig):
    """P-tuning (Liu et al. 2021, "GPT Understands, Too"): a table run through an MLP or an LSTM.

    Beyond PEFT: the types `RESIDUAL` and `EMBEDDING`, `encoder_num_layers` and `encoder_dropout` honoured by the
    MLP, and initialisation.
    """

    PEFT_TYPE = PeftType.P_TUNING
    encoder_reparameterization_type: PromptEncoderReparameterizationType | str = PromptEncoderReparameterizationType.MLP
    """MLP, LSTM, RESIDUAL or EMBEDDING."""
    encoder_hidden_size: int | None = None
    """Width of the encoder's hidden layers; the token dimension when None, as in PEFT."""
    encoder_num_layers: int = 2
    """Layers of the LSTM, or hidden layers of the MLP (2 hidden layers and the output make PEFT's 3 linear layers)."""
    encoder_dropout: float = 0.0
    """Dropout between LSTM layers, or after each hidden layer of the MLP and of the residual encoder."""
    init: PromptTuningInit | str = PromptTuningInit.RANDOM
    """Where the table's first vectors come from: RANDOM, SAMPLE_VOCAB or TEXT."""
    init_text: str | None = None
    """The text whose token embeddings are the first vectors; needed with TEXT."""

    def _faults(self) -> list[str]:
        faults = super()._faults()
        kind = PromptEncoderReparameterizationType
        value = coerce(self.encoder_reparameterization_type, kind, "encoder_reparameterization_type", faults)
        object.__setattr__(self, "encoder_reparameterization_type", value)
        if self.encoder_hidden_size is not None and (
            not is_int(self.encoder_hidden_size) or self.encoder_hidden_size < 1
        ):
            faults.append(
                f"encoder_hidden_size must be a whole number of at least 1, not {shown(self.encoder_hidden_size)}"
            )
        if not is_int(self.encoder_num_layers) or self.encoder_num_layers < 1:
            faults.append(
                f"encoder_num_layers must be a whole number of at least 1, not {shown(self.encoder_num_layers)}"
            )
        number = isinstance(self.encoder_dropout, (int, float)) and not isinstance(self.encoder_dropout, bool)
        if not number or not 0.0 <= self.encoder_dropout < 1.0:
            faults.append(f"encoder_dropout must be in [0, 1), not {shown(self.encoder_dropout)}")
        init = (
            PromptTuningInit.TEXT if self.init_text is not None and self.init == PromptTuningInit.RANDOM else self.init
        )
        object.__setattr__(self, "init", coerce(init, PromptTuningInit, "init", faults))
        faults.extend(text_faults(self.init, self.init_text, "init_text"))
        return faults


@dataclass(frozen=True, kw_only=True)
class PromptTuningConfig(PromptLearningConfig):
    """Prompt tuning (Lester et al. 2021): the table is the prompt, with no network behind it."""

    PEFT_TYPE = PeftType.PROMPT_TUNING
    prompt_tuning_init: PromptTuningInit | str = PromptTuningInit.RANDOM
    """Where the first vectors come from: RANDOM, SAMPLE_VOCAB or TEXT."""
    prompt_tuning_init_text: str | None = None
    """The text whose token embeddings are the first vectors; needed with TEXT."""
    tokenizer_name_or_path: str | None = None
    """The tokenizer for `prompt_tuning_init_text`; needed with TEXT unless `get_peft_model` is given one."""
    tokenizer_kwargs: Mapping[str, Any] | None = None
    """Arguments for loading that tokenizer. `trust_remote_code` is refused here."""

    def _faults(self) -> list[str]:
        faults = super()._faults()
        init = coerce(self.prompt_tuning_init, PromptTuningInit, "prompt_tuning_init", faults)
        object.__setattr__(self, "prompt_tuning_init", init)
        faults.extend(text_faults(init, self.prompt_tuning_init_text, "prompt_tuning_init_text"))
        if self.tokenizer_kwargs is not None and not isinstance(self.tokenizer_kwargs, Mapping):
            faults.append(f"tokenizer_kwargs must be a table, not {shown(self.tokenizer_kwargs)}")
            return faults
        if self.tokenizer_kwargs and init is not PromptTuningInit.TEXT:
            faults.append("tokenizer_kwargs is only for prompt_tuning_init=TEXT")
        if self.tokenizer_kwargs and self.tokenizer_kwargs.get("trust_remote_code"):
            faults.append(
                "tokenizer_kwargs: trust_remote_code is refused; pass a loaded tokenizer to get_peft_model instead"
            )
        return faults


def text_faults(init: Any, text: str | None, name: str) -> list[str]:
    """Faults of an initial text against the kind of initialisation."""
    if text is not None and not isinstance(text, str):
        return []  # said by `_type_faults`
    if init is PromptTuningInit.TEXT and not (text and text.strip()):
        return [f"{name} is needed with TEXT and must not be empty"]
    if init is not PromptTuningInit.TEXT and text is not None:
        return [f"{name} is given, but the initialisation is {getattr(init, 'value', None) or shown(init)}, not TEXT"]
    return []
