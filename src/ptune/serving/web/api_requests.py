"""What the API takes: OpenAI's parameters as far as they have a meaning here, and a few that vLLM has too.

A parameter that is not known is refused, so that none is silently without effect. Those that say nothing about the
answer (`user`, `metadata`, …) are taken and ignored; those that ask for what the server cannot do are refused unless
they ask for nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MOST_CHOICES = 128
"""Answers to one request at most, as in OpenAI's API."""
MOST_STOPS = 16
MOST_STOP_LENGTH = 256
_NAME_LENGTH = 256
MOST_TOKEN_ID = 2**31 - 1


def _whole_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no text") from None
    return text


Text = Annotated[str, AfterValidator(_whole_text)]
StopText = Annotated[Text, Field(min_length=1, max_length=MOST_STOP_LENGTH)]
TokenId = Annotated[int, Field(ge=0, le=MOST_TOKEN_ID)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


def _number(least: float, most: float, default: float, about: str) -> Any:
    return Field(default, ge=least, le=most, allow_inf_nan=False, description=about)


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = Field(False, description="a last chunk with the usage")
    include_obfuscation: bool = Field(False, description="ignored")


class AnswerParameters(BaseModel):
    """What both kinds of request have."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Annotated[Text, Field(max_length=_NAME_LENGTH)] = Field(description="a prompt's name, or the frozen model's")
    temperature: float | None = _number(0, 100, 1.0, "0 takes the likeliest token")
    top_p: float | None = _number(0, 1, 1.0, "samples from this probability mass")
    top_k: int | None = Field(
        0, ge=0, le=MOST_TOKEN_ID, description="samples from so many tokens; 0: all (not OpenAI's)"
    )
    n: int | None = Field(1, ge=1, le=MOST_CHOICES, description="answers to each text")
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1, description="makes sampling repeatable")
    stop: StopText | Annotated[list[StopText], Field(max_length=MOST_STOPS)] | None = Field(
        None, description="texts that end an answer and are no part of it"
    )
    stream: bool | None = Field(False, description="server-sent events")
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = _number(-2, 2, 0.0, "off the logit of a token that the answer holds")
    frequency_penalty: float | None = _number(-2, 2, 0.0, "the same for each time that it holds it")
    repetition_penalty: float | None = _number(0.01, 100, 1.0, "transformers': above 1 repeats less (not OpenAI's)")
    logit_bias: dict[Annotated[str, Field(pattern=r"^\d{1,10}$")], Bias] | None = Field(
        None, max_length=1024, description="added to the logits of token ids"
    )
    ignore_eos: bool | None = Field(False, description="end tokens do not end an answer (not OpenAI's)")
    user: Text | None = Field(None, description="ignored")
    metadata: dict[str, Any] | None = Field(None, description="ignored")
    store: bool | None = Field(None, description="ignored")
    service_tier: str | None = Field(None, description="ignored")
    safety_identifier: str | None = Field(None, description="ignored")
    prompt_cache_key: str | None = Field(None, description="ignored")

    text_part: ClassVar[str]
    """The parameter that the text comes from."""

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(AnswerParameters):
    """`/v1/completions`."""

    text_part: ClassVar[str] = "prompt"

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_CHOICES)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MOST_CHOICES)]
    ) = Field(description="a text, token ids, or several of them")
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKEN_ID, description="longest answer; by default 128")
    logprobs: int | None = Field(None, ge=0, le=20, description="log-probabilities of so many likeliest tokens")
    echo: Literal[False] | None = None
    best_of: int | None = Field(None, ge=1, le=MOST_CHOICES, description="as n, or left out")
    suffix: Literal[""] | None = None

    @model_validator(mode="after")
    def _best_is_all(self) -> Self:
        if self.best_of not in (None, self.n or 1):
            raise ValueError("best_of differs from n: this server writes no answers that it does not give")
        return self

    @property
    def texts(self) -> list[str | list[int]]:
        """Each text, or its token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [list(self.prompt)]  # token ids, then
        return list(self.prompt)


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: Text | None = Field(None, description="ignored")
    refusal: None = None
    audio: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: None = None

    @property
    def text(self) -> str:
        """What it says."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class TextFormat(BaseModel):
    """The only form of an answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]


class ChatRequest(AnswerParameters):
    """`/v1/chat/completions`."""

    text_part: ClassVar[str] = "messages"

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKEN_ID, description="longest answer; by default 128")
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_TOKEN_ID, description="the same")
    logprobs: bool | None = Field(False, description="log-probabilities of the answer's tokens")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="and of so many likeliest ones")
    response_format: TextFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = Field(None, description="ignored")

    @model_validator(mode="after")
    def _logprobs_are_asked_for(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self


class PromptFolder(BaseModel):
    """`POST /v1/prompts`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[Text, Field(min_length=1, max_length=64)] = Field(description="what requests will call it")
    folder: Annotated[Text, Field(min_length=1, max_length=1024)] | None = Field(
        None, description="a folder below the root; by default the one of that name"
    )
