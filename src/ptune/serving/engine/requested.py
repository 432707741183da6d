"""What the engine is asked for, and what it says while it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ptune.serving.served_prompt import ServedPrompt

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How each token is chosen, in the terms of OpenAI's API and of transformers' `generate`."""

    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    seed: int | None = None
    """Makes sampling repeatable; each choice has draws of its own."""
    repetition_penalty: float = 1.0
    """transformers': on tokens of the text and of the answer."""
    presence_penalty: float = 0.0
    """OpenAI's: subtracted from the logit of a token that the answer holds."""
    frequency_penalty: float = 0.0
    """The same for each time that it holds it."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of tokens."""

    @property
    def plain(self) -> bool:
        """Whether the likeliest token of the model's own logits is taken."""
        changed = self.presence_penalty or self.frequency_penalty or self.logit_bias or self.repetition_penalty != 1.0
        return self.temperature == 0.0 and not changed


@dataclass(frozen=True)
class TokenLogprob:
    """One token of an answer, with its likelihood before temperature, penalties and biases."""

    token: int
    text: str
    logprob: float
    """Natural logarithm."""
    top: tuple[tuple[int, str, float], ...]
    """The likeliest tokens of its place: id, text, log-probability."""
    offset: int
    """Characters of the answer before it."""


@dataclass(frozen=True)
class Piece:
    """A piece of one choice."""

    choice: int
    text: str
    tokens: tuple[TokenLogprob, ...] = ()
    """Tokens whose text has been sent with this piece, where log-probabilities are asked for."""
    finish_reason: FinishReason | None = None
    """Set in the last piece of a choice."""
    new_tokens: int = 0
    """In the last piece: how many tokens the model has written, the end token included."""


@dataclass(frozen=True)
class Failed:
    """The request is over without an answer."""

    error: BaseException


Event = Piece | Failed


@dataclass(eq=False, kw_only=True)
class Job:
    """One text to be answered, once or several times. `emit` is called by the engine's thread."""

    ids: Sequence[int]
    """Token ids of the text; virtual tokens inside it below 0 (`ptune.data.blocks`)."""
    prompt: ServedPrompt | None
    """None: the frozen model alone."""
    sampling: Sampling
    max_new_tokens: int
    emit: Callable[[Event], None]
    choices: int = 1
    stop: tuple[str, ...] = ()
    """Texts that end an answer and are no part of it."""
    ignore_eos: bool = False
    """Whether end tokens are written like any other; only the number of tokens ends the answer then."""
    logprobs: int | None = None
    """How many of the likeliest tokens are told at each place; None tells no log-probabilities at all."""
    streamed: bool = True
    """Whether its pieces are sent on as they come; otherwise nothing is sent before all of it is complete."""
    cancelled: bool = False
    """Set by whoever asked, when nobody waits for the answer any more."""

    @property
    def total(self) -> int:
        """Positions that the longest answer takes: virtual tokens, text and new tokens."""
        return (self.prompt.leading if self.prompt else 0) + len(self.ids) + self.max_new_tokens
