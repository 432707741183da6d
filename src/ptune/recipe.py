"""Everything `ptune train` can be told beyond `transformers.TrainingArguments`.

A field is a flag, a YAML key and an argument. Kept free of torch and transformers, so that help and checks of flags
are quick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ptune import choices
from ptune.config import PromptEncoderConfig, PromptTuningInit
from ptune.deep_config import CartridgeConfig, PrefixTuningConfig, PromptConfig
from ptune.errors import ConfigError, refuse, unknown
from ptune.field_types import type_faults

MOST_WEIGHT = 1000
VIRTUAL_TOKENS = 10
"""How many there are where neither the recipe nor its template says."""
_INIT = {"random": PromptTuningInit.RANDOM, "text": PromptTuningInit.TEXT}
"""The others start from the vocabulary, however its tokens are chosen."""
_AT_LEAST = {
    "early_stopping_patience": 1,
    "max_length": 2,
    "limit": 1,
    "num_proc": 1,
    "eval_rows": 0,
    "num_frozen_tokens": 0,
    "tokens_per_batch": 1,
    "target_length": 1,
}
_DATA, _PROMPT, _BATCHES, _OUTPUT, _STOP = "model and data", "prompt", "batches", "output", "early stopping"


def _flag(group: str, default: Any, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": text, "group": group, **metadata})


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """What to train, on what, and how the prompt encoder is built. A field's help is its documentation.

    Raises:
        ConfigError: Values that are missing, of the wrong type or do not go together; all of them at once.
    """

    model: str = _flag(_DATA, "", "hub id, folder, .gguf file, or builtin:smollm2-135m", required=True)
    data: str | Sequence[str] = _flag(
        _DATA,
        "",
        "JSON, JSONL, CSV, Excel, text, Parquet, Arrow folder, folder of such files, or hub id; or several of them",
        required=True,
    )
    task: str = _flag(
        _DATA,
        choices.LM,
        "what the model is for: a causal language model (lm), texts or pairs and their classes (classify), tags of "
        "words (tag), answers marked in a context (qa), texts for texts (seq2seq), or a word in a gap (fill)",
        choices=choices.TASKS,
    )
    data_weights: Sequence[float] | None = _flag(
        _DATA,
        None,
        "how often each row of each of DATA stands in an epoch, in their order: 2 is twice, 0.5 is a random half",
        metavar="X",
    )
    columns: Mapping[str, str] | None = _flag(
        _DATA, None, "columns of other names, as instruction=QUESTION output=ANSWER", nargs="+"
    )
    split: str = _flag(_DATA, "train", "split of a hub data set, a folder, or a JSON object of lists")
    encoding: str | None = _flag(_DATA, None, "encoding of text files, such as gb18030; by default UTF-8")
    sheet: str | None = _flag(_DATA, None, "sheet of an Excel file; by default the first one")
    limit: int | None = _flag(_DATA, None, "use only this many rows of each of DATA, from the start")
    eval_data: str | None = _flag(_DATA, None, "held-out data, for the loss before and after")
    eval_rows: int = _flag(_DATA, 0, "hold out this many random rows of DATA instead")
    eval_metrics: Sequence[str] | None = _flag(
        _DATA,
        None,
        f"what else to measure the held-out rows by at each evaluation (docs/evaluate.md); metric_for_best_model may "
        f"name one: {', '.join(choices.METRIC_NAMES)}; {', '.join(choices.METRIC_GROUPS)} stand for several",
        metavar="NAME",
    )
    template: str = _flag(
        _DATA,
        "tutorial",
        "tutorial, chat, a text with {instruction}, {input}, {output}, or @file; for other tasks a text with {text}, "
        "{text2}, {mask}, by default the text as it is; {prompt:3} is a place for three virtual tokens",
    )
    verbalizer: Mapping[str, str] | None = _flag(
        _DATA, None, "for fill: the word of each label, as positive=great negative=terrible", metavar="LABEL=WORD"
    )
    train_on: str = _flag(
        _DATA,
        choices.LAST_TURN,
        "the answers of a conversation that are learned: the last one, or those of all turns",
        choices=choices.TRAIN_ON_NAMES,
    )
    max_length: int = _flag(_DATA, 256, "longest row in tokens, template included, virtual tokens not")
    target_length: int = _flag(_DATA, 128, "for seq2seq: longest text to write in tokens")
    num_proc: int | None = _flag(_DATA, None, "processes for tokenization")
    dtype: str = _flag(
        _DATA,
        "auto",
        "weights of the frozen model; auto is bfloat16 where GPU or CPU multiplies it, else float32",
        choices=choices.DTYPE_NAMES,
    )
    quantization: str | None = _flag(
        _DATA,
        None,
        "quantize the frozen model: int8 by torchao, 8bit and 4bit by bitsandbytes",
        choices=choices.QUANTIZATION_NAMES,
    )
    device_map: str | Mapping[str, str | int] | None = _flag(
        _DATA,
        None,
        "spread the model over several devices: auto, balanced, sequential, a device (cuda:1), in a recipe a table too",
        metavar="MAP",
    )
    attn_implementation: str | None = _flag(
        _DATA,
        None,
        "attention of transformers' own layers: eager, sdpa, flash_attention_2, …; packed rows have ptune's",
    )
    revision: str | None = _flag(_DATA, None, "revision of the model on the hub")
    trust_remote_code: bool = _flag(_DATA, False, "run model code that comes from the hub")
    self_check: bool = _flag(
        _DATA, True, "try the model on a short text first, and take no way through it that gives wrong numbers"
    )
    encoder: str = _flag(
        _PROMPT,
        choices.EMBEDDING,
        "prompt encoder; embedding is prompt tuning; prefix and prefix-mlp give keys and values of every layer",
        choices=choices.ENCODER_NAMES,
    )
    num_virtual_tokens: int | None = _flag(
        _PROMPT, None, f"virtual tokens; by default those of the template, or {VIRTUAL_TOKENS}"
    )
    encoder_hidden_size: int | None = _flag(
        _PROMPT, None, "width of the encoder's hidden layers; by default the model's"
    )
    encoder_num_layers: int = _flag(_PROMPT, 2, "LSTM layers, or hidden layers of the MLP")
    encoder_dropout: float = _flag(_PROMPT, 0.0, "dropout inside the encoder")
    num_frozen_tokens: int = _flag(
        _PROMPT, 0, "for prefix: the first virtual tokens, which do not train (Cartridges freeze 1)"
    )
    head_learning_rate: float | None = _flag(
        _PROMPT, None, "learning rate of a classifier's head, which trains with the prompt; by default its own"
    )
    pool_virtual_tokens: bool = _flag(
        _PROMPT,
        False,
        "for classify: an encoder's classifier reads the virtual tokens too, as PEFT's does; export --to peft needs it",
    )
    init: str | None = _flag(
        _PROMPT,
        None,
        "start of the prompt: tokens that the answers of the data have in common, then its most frequent ones (data); "
        "the most frequent ones alone; sampled vocabulary; random; or a text. By default text with --init-text, else "
        "data",
        choices=choices.INIT_NAMES,
    )
    init_text: str | None = _flag(
        _PROMPT, None, "start from the vectors of this text, for example a description of the task"
    )
    init_text_tokens: str | None = _flag(
        _PROMPT,
        None,
        "for prefix and prefix-mlp: which tokens of a longer init text give keys and values; by default the first",
        choices=choices.TEXT_TOKENS,
    )
    init_from: str | None = _flag(
        _PROMPT,
        None,
        "start from a finished prompt: with its encoder as it is, or another one from its vectors, which run through "
        "the model for prefix and prefix-mlp",
        metavar="DIR",
    )
    packing: bool = _flag(
        _BATCHES, True, "rows one after another in a batch, without padding, where the model can keep them apart"
    )
    tokens_per_batch: int | None = _flag(
        _BATCHES, None, "fill training batches up to this many text tokens, instead of a number of rows"
    )
    output: str = _flag(
        _OUTPUT,
        "",
        "folder for the prompt; checkpoints lie in OUTPUT/checkpoint-N",
        required=True,
        aliases=("output_dir",),
    )
    overwrite: bool = _flag(_OUTPUT, False, "replace what an earlier run left in OUTPUT")
    resume: str | bool | None = _flag(
        _OUTPUT,
        None,
        "go on from the newest whole checkpoint in OUTPUT, or from CHECKPOINT, with its settings",
        metavar="CHECKPOINT",
        optional=True,
    )
    force: bool = _flag(_OUTPUT, False, "let --init-from take a prompt that was made for another model or tokenizer")
    early_stopping_patience: int | None = _flag(
        _STOP,
        None,
        "stop after this many measurements without a lower held-out loss, or a better metric_for_best_model; the best "
        "prompt is kept",
    )
    early_stopping_threshold: float = _flag(_STOP, 0.0, "how much better it must be to count")

    def __post_init__(self) -> None:
        if isinstance(self.data, (list, tuple)):
            # One is one, however it is written: what is recorded and compared does not depend on that.
            object.__setattr__(self, "data", self.data[0] if len(self.data) == 1 else tuple(self.data))
        for name in ("data_weights", "eval_metrics"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        faults = type_faults(self)
        if not faults:
            missing = [
                item.name for item in fields(self) if item.metadata.get("required") and not getattr(self, item.name)
            ]
            faults += [f"{_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing"] if missing else []
            faults += [*self._value_faults(), *self._prompt_faults()]
        refuse(faults)

    def _value_faults(self) -> list[str]:
        """Values that the data, the model or the run cannot use."""
        faults = []
        for item in fields(self):
            value, known = getattr(self, item.name), item.metadata.get("choices")
            if known and value is not None and value not in known:
                faults.append(str(unknown(item.name, str(value), known)))
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                faults.append(f"{name} must be at least {least}, not {value}")
        faults += [*self._data_faults(), *self._task_faults()]
        if self.eval_data and self.eval_rows:
            faults.append("eval_data and eval_rows exclude each other")
        if self.device_map is not None and (fault := choices.device_map_fault(self.device_map)):
            faults.append(fault)
        if not (self.eval_data or self.eval_rows):
            faults += [
                f"{name} needs held-out rows: set eval_rows or eval_data"
                for name in ("early_stopping_patience", "eval_metrics")
                if getattr(self, name) is not None
            ]
        faults += [
            str(unknown("metric in eval_metrics", name, (*choices.METRIC_NAMES, *choices.METRIC_GROUPS)))
            for name in self.eval_metrics or ()
            if name not in choices.METRIC_NAMES and name not in choices.METRIC_GROUPS
        ]
        if self.init_from is not None and (self.init is not None or self.init_text is not None):
            faults.append("init_from excludes init and init_text")
        if self.tokens_per_batch is not None and not self.packing:
            faults.append(f"tokens_per_batch={self.tokens_per_batch} needs packing")
        return faults

    def _data_faults(self) -> list[str]:
        """What is wrong with the names of data, their weights and their encoding."""
        faults = []
        if self.data and not all(self.sources):
            faults.append("data names nothing in one place")
        weights = self.data_weights
        if weights is not None and len(weights) != len(self.sources):
            faults.append(f"data has {len(self.sources)} sources, data_weights has {len(weights)} weights")
        faults += [
            f"data_weights must be above 0 and at most {MOST_WEIGHT}, not {weight:g}"
            for weight in weights or ()
            if not 0 < weight <= MOST_WEIGHT  # written so that NaN is refused too
        ]
        if self.encoding is not None:
            try:
                "a".encode(self.encoding)
            except (LookupError, ValueError):
                faults.append(f"unknown encoding {self.encoding!r}; for example utf-16, gb18030, big5, cp1252")
        return faults

    def _task_faults(self) -> list[str]:
        """What does not go with the task."""
        own = {
            "verbalizer": (choices.FILL,),
            "target_length": (choices.SEQ2SEQ,),
            "pool_virtual_tokens": (choices.CLASSIFY,),
            "head_learning_rate": choices.WITH_HEAD,
            "train_on": (choices.LM,),
            "tokens_per_batch": (choices.LM,),
            "eval_metrics": (choices.LM,),
        }
        return [
            f"{name} is for the task {' or '.join(tasks)}, not {self.task}"
            for name, tasks in own.items()
            if self.task not in tasks and getattr(self, name) != type(self).__dataclass_fields__[name].default
        ]

    @property
    def sources(self) -> tuple[str, ...]:
        """What `data` names, one by one."""
        return (self.data,) if isinstance(self.data, str) else tuple(self.data)

    def _prompt_faults(self) -> list[str]:
        """Values that no prompt can be built from."""
        if self.encoder not in choices.ENCODER_NAMES or self.init not in (None, *choices.INIT_NAMES):
            return []
        if self.init_text is not None and self.init not in (None, "text"):
            return [f"init_text is given, but init is {self.init}"]
        faults = []
        if self.num_frozen_tokens and self.encoder != choices.PREFIX:
            faults.append(f"num_frozen_tokens is for the encoder prefix, not {self.encoder}")
        if self.init_text_tokens is not None and self.encoder not in choices.DEEP_ENCODERS:
            faults.append(f"init_text_tokens is for the encoders prefix and prefix-mlp, not {self.encoder}")
        try:
            self.prompt_config()
        except ConfigError as error:
            faults.append(error.message.partition(": ")[2].replace("needed with TEXT", "needed with init text"))
        return faults

    @property
    def virtual_tokens(self) -> int:
        """How many there are, whatever the template says."""
        return VIRTUAL_TOKENS if self.num_virtual_tokens is None else self.num_virtual_tokens

    @property
    def start(self) -> str:
        """Where the prompt starts: `init`, or what stands for it where nothing is said."""
        return self.init or ("data" if self.init_text is None else "text")

    def prompt_config(self) -> PromptConfig:
        """The configuration of the prompt this recipe describes."""
        common: dict[str, Any] = {
            "num_virtual_tokens": self.virtual_tokens,
            "init": _INIT.get(self.start, PromptTuningInit.SAMPLE_VOCAB),
            "init_text": self.init_text,
            "base_model_name_or_path": self.model,
            "revision": self.revision,
            "pool_virtual_tokens": self.pool_virtual_tokens,
        }
        if self.encoder in choices.DEEP_ENCODERS:
            common |= {"init_text_tokens": self.init_text_tokens}
            if self.num_frozen_tokens:
                return CartridgeConfig(**common, num_frozen_tokens=self.num_frozen_tokens)
            width = self.encoder_hidden_size if self.encoder == choices.PREFIX_MLP else None
            return PrefixTuningConfig(
                **common, prefix_projection=self.encoder == choices.PREFIX_MLP, encoder_hidden_size=width
            )
        return PromptEncoderConfig(
            **common,
            encoder_reparameterization_type=self.encoder.upper(),
            encoder_hidden_size=self.encoder_hidden_size,
            encoder_num_layers=self.encoder_num_layers,
            encoder_dropout=self.encoder_dropout,
        )

    def trainer_defaults(self) -> dict[str, Any]:
        """Values for `TrainingArguments` that suit a soft prompt; each can be overridden under its own name.

        The learning rate depends on the model: `ptune.prompt.default_rate`.
        """
        is_table = self.encoder in (choices.EMBEDDING, choices.PREFIX)
        return {
            "load_best_model_at_end": self.early_stopping_patience is not None,
            "lr_scheduler_type": "linear",
            # Beside a head, and for the weights of a network.
            "warmup_steps": 0.1 if self.task in choices.WITH_HEAD else 0.0 if is_table else 0.05,
            **choices.ADAM_BETAS,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
            "logging_steps": 10,
            "logging_first_step": True,
            # Packed rows have no padding to save by putting rows of similar length together.
            "train_sampling_strategy": "random" if self.packing else "group_by_length",
            "save_total_limit": 2,
            "eval_strategy": "epoch" if self.eval_data or self.eval_rows else "no",
            "report_to": "none",
            "prediction_loss_only": True,
            # Every parameter that trains takes part in every step.
            "ddp_find_unused_parameters": False,
            # transformers would take its quiet log level for a wish to see no progress.
            "disable_tqdm": False,
        }


def _listed(names: list[str]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
