"""What the API gives, in OpenAI's form."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from ptune.serving.engine.requested import TokenLogprob


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every response that is none of success."""

    error: ErrorDetail


class ModelCard(BaseModel):
    """A prompt, or the frozen model."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="seconds since 1970")
    owned_by: str
    root: str | None = Field(default=None, description="the frozen model behind it")
    chat: bool = Field(
        default=True, description="whether it answers chats: the frozen model needs a chat template (not OpenAI's)"
    )


class ModelList(BaseModel):
    """`/v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class PromptCard(BaseModel):
    """A prompt that is served."""

    name: str
    object: Literal["prompt"] = "prompt"
    created: int = Field(description="when this version was read, in seconds since 1970")
    virtual_tokens: int
    template: str = Field(description="tutorial, chat or custom")


class LossPoint(BaseModel):
    """A loss in nats per answer token."""

    step: int
    loss: float


class LossCurve(BaseModel):
    """The losses of the training run; of a long one some 200 points each, evenly taken."""

    training: list[LossPoint]
    held_out: list[LossPoint]
    note: str | None = Field(description="why there are no points; null where there are some")


class PromptDetails(PromptCard):
    """A prompt that is served, and how it was made; null where its folder does not say."""

    base_model: str | None
    encoder: str | None
    token_dim: int | None
    trainable_parameters: int | None
    written: int | None = Field(description="when its folder was written, in seconds since 1970")
    written_by: str | None = Field(description="ptune or PEFT")
    rows_read: int | None = Field(description="rows of the training data")
    rows_trained_on: int | None = Field(description="those that were not left out")
    steps: int | None
    train_loss: float | None = Field(description="mean of the run, in nats per answer token")
    held_out_loss_before: float | None = Field(description="of the frozen model alone")
    held_out_loss_after: float | None = Field(description="with the prompt")
    loss_curve: LossCurve


class PromptList(BaseModel):
    """`/v1/prompts`."""

    object: Literal["list"] = "list"
    data: list[PromptCard]


class DeletedPrompt(BaseModel):
    """A prompt that is served no longer."""

    name: str
    object: Literal["prompt.deleted"] = "prompt.deleted"
    deleted: Literal[True] = True


class Health(BaseModel):
    """`/health`."""

    status: Literal["ok", "stopping", "failed"]


class Usage(BaseModel):
    """Tokens of the text and of the answers. Virtual tokens are not counted; end tokens are."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(BaseModel):
    """Of `/v1/completions`."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None


class Completion(BaseModel):
    """`/v1/completions`."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ChatTokenLogprob(BaseModel):
    """A token and how likely it was."""

    token: str
    logprob: float
    bytes: list[int] | None = Field(description="null where the token is a part of a character")


class ChatLogprob(ChatTokenLogprob):
    """The same, beside the likeliest tokens of its place."""

    top_logprobs: list[ChatTokenLogprob]


class ChatLogprobs(BaseModel):
    """Of `/v1/chat/completions`."""

    content: list[ChatLogprob]
    refusal: None = None


class ChatMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None


class ChatCompletion(BaseModel):
    """`/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


def completion_logprobs(tokens: list[TokenLogprob], count: int) -> CompletionLogprobs:
    """The log-probabilities of `/v1/completions`; `count` of the likeliest were asked for."""
    return CompletionLogprobs(
        tokens=[one.text for one in tokens],
        token_logprobs=[one.logprob for one in tokens],
        top_logprobs=[_likeliest(one) for one in tokens] if count else None,
        text_offset=[one.offset for one in tokens],
    )


def _likeliest(token: TokenLogprob) -> dict[str, float]:
    """By text; of two tokens with one text the likelier, which comes first."""
    found: dict[str, float] = {}
    for _, text, logprob in token.top:
        found.setdefault(text, logprob)
    return found


def chat_logprobs(tokens: list[TokenLogprob]) -> ChatLogprobs:
    """The log-probabilities of `/v1/chat/completions`."""
    content = [
        ChatLogprob(
            **_token(one.text, one.logprob),
            top_logprobs=[ChatTokenLogprob(**_token(text, logprob)) for _, text, logprob in one.top],
        )
        for one in tokens
    ]
    return ChatLogprobs(content=content)


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}
