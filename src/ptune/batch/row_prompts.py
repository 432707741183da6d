"""Which soft prompt stands before which row of a batch, and whether prompt and text fit the model's context.

A prompt's first virtual tokens stand before the text; the others inside it, where a template put them.

Shapes: `B` rows, `T` text tokens, `P` virtual tokens, `A` of them before the text, `D` token dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import accumulate

import torch
from transformers import PreTrainedModel

from ptune.batch.inside import Inside, check_inside
from ptune.batch.text import check_ids
from ptune.encoders import DeepEncoder, PromptEncoder
from ptune.errors import ConfigError, ModelError
from ptune.internals import checkpoints_activations
from ptune.prefix.across_calls import PrefixCache
from ptune.prefix.across_micro_batches import SharedPrefix
from ptune.prefix.deep_prompts import layer_devices, prefix_of
from ptune.prefix.keys_values import Prefix, RowPrefix, encode_prefix, mixed_prefix, same_prefix

RowNames = str | Sequence[str | None] | None
"""A prompt's name for all rows, or one a row (None: no prompt); None for the active prompt."""


BASE_MODEL = "__base__"
"""PEFT's name for no adapter."""


def names_of_rows(names: RowNames, rows: int, active: Callable[[str | None], str]) -> list[str | None]:
    """The name of the prompt of each row.

    Args:
        names: What the caller said.
        rows: `B`.
        active: Fills in the active prompt's name for None.

    Raises:
        ConfigError: There are more or fewer names than rows.
    """
    if names is None or isinstance(names, str):
        return [active(names)] * rows
    if len(names) != rows:
        raise ConfigError(
            f"prompt_names has {len(names)} names for {rows} rows.", hint="Give one name (or None) a row."
        )
    return list(names)


def no_embeddings(prompts: RowPrompts) -> ConfigError:
    """The error for rows that do not come as token ids, behind prompts with virtual tokens inside the text."""
    name = next(iter(prompts.in_text))
    return ConfigError(
        f"the prompt {name!r} has {prompts.in_text[name]} virtual tokens inside the text, whose places token ids alone "
        "can tell.",
        hint="Pass input_ids, as the prompt's template writes them.",
    )


@dataclass(frozen=True)
class RowPrompts:
    """The prompt of each row; rows may share one, and may have none. Encoded once, when it is first needed."""

    names: Sequence[str | None]
    """For each of the `B` rows the name of its prompt, or None for no prompt."""
    encoders: Mapping[str, PromptEncoder]
    """Each prompt that a row names, once."""
    dtype: torch.dtype
    """Of the model's embeddings."""
    shared: SharedPrefix
    """What the micro-batches of an optimizer step share."""
    kept: PrefixCache
    """What is kept from one call to the next where no gradients are taken."""
    filler_id: int | None = None
    """The token id that virtual tokens go by; see `Capability`."""
    in_text: Mapping[str, int] = field(default_factory=dict)
    """How many virtual tokens of a prompt stand inside the text; none of a prompt that is not named."""

    @cached_property
    def encoded(self) -> Mapping[str, torch.Tensor]:
        """What the encoder of each prompt that a row names gives, in the dtype of the model's embeddings."""
        return {name: self.shared.vectors(name, encoder, self.dtype) for name, encoder in self.encoders.items()}

    @cached_property
    def deep(self) -> Mapping[str, DeepEncoder]:
        """The prompts that are keys and values of every layer, in place of vectors."""
        return {name: encoder for name, encoder in self.encoders.items() if isinstance(encoder, DeepEncoder)}

    @cached_property
    def vectors(self) -> Mapping[str, torch.Tensor]:
        """The `(P, D)` vectors of each of the others."""
        return {name: vectors for name, vectors in self.encoded.items() if name not in self.deep}

    @cached_property
    def before(self) -> Mapping[str, int]:
        """`A` of each prompt."""
        return {name: one.num_virtual_tokens - self.in_text.get(name, 0) for name, one in self.encoders.items()}

    @cached_property
    def leading(self) -> Mapping[str, torch.Tensor]:
        """`(A, D)` of each prompt that has vectors and any of them before the text."""
        return {name: self._led(name, vectors) for name, vectors in self.vectors.items() if self.before[name]}

    def _led(self, name: str, vectors: torch.Tensor) -> torch.Tensor:
        """`(A, D)` of `(P, D)` vectors of a prompt."""
        return vectors[: self.before[name]] if self.in_text.get(name) else vectors

    @cached_property
    def inside(self) -> Inside | None:
        """The vectors that stand inside the text; None where there are none."""
        parts = {name: self.vectors[name] for name in self.encoders if self.in_text.get(name)}
        if not parts:
            return None
        starts = dict(zip(parts, accumulate(map(len, parts.values()), initial=0), strict=False))
        return Inside(
            torch.cat([*parts.values()]), tuple(0 if name is None else starts.get(name, 0) for name in self.names)
        )

    @property
    def width(self) -> int:
        """The most virtual tokens before a text; 0 when there is none before any."""
        return max(self.before.values(), default=0)

    @cached_property
    def differ(self) -> bool:
        """Whether not as many virtual tokens stand before every row."""
        return len(set(self.sizes())) > 1

    def of(self, rows: Sequence[int]) -> RowPrompts:
        """The prompts of some of the rows."""
        names = [self.names[row] for row in rows]
        return replace(self, names=names, encoders={name: self.encoders[name] for name in names if name is not None})

    def sizes(self) -> list[int]:
        """Virtual tokens before each row."""
        return [0 if name is None else self.before[name] for name in self.names]

    def check_ids(self, base: PreTrainedModel, ids: torch.Tensor) -> None:
        """Raise `ModelError` for a token that neither the model nor a prompt has a vector for; ids of any shape."""
        most = max((one.num_virtual_tokens for one in self.encoders.values()), default=0)
        check_ids(base, ids, virtual=most if self.in_text else 0)

    def check_inside(self, ids: torch.Tensor, lengths: Sequence[int]) -> None:
        """Raise `PromptError` unless rows hold the virtual tokens inside the text; arguments as for `check_inside`."""
        if self.in_text:
            whole = [0 if name is None else self.encoders[name].num_virtual_tokens for name in self.names]
            check_inside(ids, lengths, self.names, list(zip(self.sizes(), whole, strict=True)))

    def each(self) -> list[torch.Tensor | None]:
        """What stands before every row, where no prompt is a deep one (`ptune.batch.path` sees to that)."""
        assert not self.deep
        leading = self.leading
        self.shared.settle()
        return [None if name is None else leading.get(name) for name in self.names]

    def prefix(self, base: PreTrainedModel) -> RowPrefix:
        """The prefix of every row; each different prompt runs through the model once at most. Needs one prompt."""
        prefixes = {name: self._prefix(base, name) for name, size in self.before.items() if size}
        if len(prefixes) == 1 and all(self.sizes()):
            return same_prefix(next(iter(prefixes.values())), len(self.names))
        return mixed_prefix(list(prefixes.values()), self.choice(list(prefixes)))

    def choice(self, order: Sequence[str]) -> list[int | None]:
        """For each row the place of its prompt among these; None where nothing stands before it."""
        return [order.index(name) if name is not None and name in order else None for name in self.names]

    def _prefix(self, base: PreTrainedModel, name: str) -> Prefix:
        """The prefix of one prompt."""
        if name in self.deep:
            return self._deep_prefix(base, name)

        def make() -> Prefix:
            encode = partial(encode_prefix, base, filler_id=self.filler_id)
            return self.shared.prefix(name, self.vectors[name], lambda vectors: encode(self._led(name, vectors)))

        return self.kept.prefix(name, base, self.encoders[name], make)

    def _deep_prefix(self, base: PreTrainedModel, name: str) -> Prefix:
        """The prefix of a deep prompt: what its encoder gives, in another form."""
        encoder, vocab_size = self.deep[name], int(base.config.get_text_config().vocab_size)
        sizes = {"layers": encoder.layers, "heads": encoder.heads, "vocab_size": vocab_size}
        return prefix_of(self.encoded[name], **sizes, devices=layer_devices(base))

    def outside(
        self, model: PreTrainedModel, encode: Callable[[torch.Tensor], Prefix], rows: Sequence[bool]
    ) -> dict[str, Prefix]:
        """The prompts of a packed batch as keys and values, where they are not part of its sequence; else none.

        They are not where one of them is deep, and where micro-batches share the batch's one prompt. Activation
        checkpointing drops a filled cache, and so shares the vectors alone.

        Args:
            model: The model that the batch runs through.
            encode: Runs it over a prompt's vectors.
            rows: Which rows have any text.
        """
        used = {name for name, has_text in zip(self.names, rows, strict=True) if has_text}
        names = [name for name, size in self.before.items() if size and name in used]

        def made(name: str) -> Prefix:
            if name in self.deep:
                return self._deep_prefix(model, name)
            return self.shared.prefix(name, self.vectors[name], lambda every: encode(self._led(name, every)))

        drops = checkpoints_activations(model) and model.training
        one_shared = len(self.vectors) == len(names) == 1 and self.shared.holds(names[0])
        if self.deep or (one_shared and not drops):
            return {name: made(name) for name in names}
        self.shared.settle()
        return {}

    def check_length(self, limit: int | None, text_length: int, new_tokens: int = 0) -> None:
        """Refuse what does not fit the context, before anything is computed.

        Args:
            limit: The model's context in tokens; None where it has no limit.
            text_length: `T`.
            new_tokens: The most tokens to generate.

        Raises:
            ModelError: Prompt, text and new tokens are more than the limit.
        """
        if limit is None or self.width + text_length + new_tokens <= limit:
            return
        new = f" and {new_tokens} new tokens" if new_tokens else ""
        raise ModelError(
            f"{self.width} virtual tokens and {text_length} text tokens{new} exceed the model's context of {limit} "
            "tokens.",
            hint=f"Shorten the text to {max(limit - self.width - new_tokens, 0)} tokens, or use fewer of the others.",
        )
