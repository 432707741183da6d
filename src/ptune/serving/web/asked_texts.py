"""The token ids of what a request asks.

A chat goes through the template that the prompt was trained with, as in `ptune chat`: the last message is the
instruction, earlier ones are its history, a system message stands where the template has a place for one. The frozen
model alone has its tokenizer's own chat template. The text of a completion stands behind the virtual tokens as it is,
with the tokenizer's own first token.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ptune.choices import NEW_TOKENS
from ptune.data.chat_template import chat_template
from ptune.data.segments import Segments
from ptune.data.template import Template
from ptune.data.tokenize import encode_prompt
from ptune.serving.served_prompt import ServedPrompt
from ptune.serving.web.api_errors import ApiError
from ptune.serving.web.api_requests import Message


def chat_ids(messages: Sequence[Message], prompt: ServedPrompt | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a conversation up to where the answer begins.

    Raises:
        ApiError: The last message is not the user's.
        ConfigError: The template has no place for a part of it, or the frozen model has no chat template.
        DataError: The chat template refuses it.
    """
    systems = [one.text for one in messages if one.role in ("system", "developer")]
    turns = [(one.role, one.text) for one in messages if one.role in ("user", "assistant")]
    if not turns or turns[-1][0] != "user":
        raise ApiError(400, "The last message is not the user's: there is nothing to answer.", param="messages")
    template: Template = chat_template(tokenizer) if prompt is None else prompt.template
    segments = template.prompt(turns[-1][1], history=turns[:-1], system="\n\n".join(filter(None, systems)) or None)
    return encode_prompt(segments, tokenizer)


def completion_ids(
    text: str | Sequence[int], prompt: ServedPrompt | None, tokenizer: PreTrainedTokenizerBase, vocabulary: int
) -> list[int]:
    """The ids of a text, or those given.

    Args:
        text: The text, or its ids.
        prompt: What it stands behind.
        tokenizer: Of the frozen model.
        vocabulary: How many tokens the model has embeddings for.

    Raises:
        ApiError: It is empty, an id is none, or the prompt has virtual tokens inside the text.
    """
    if prompt is not None and prompt.inside:
        raise ApiError(
            400,
            f"The prompt {prompt.name!r} has virtual tokens inside its template, whose places a plain text does not "
            "have. Use /v1/chat/completions.",
            param="prompt",
        )
    ids = encode_prompt(Segments(text, "", True), tokenizer) if isinstance(text, str) else list(text)
    if not ids:
        raise ApiError(400, "The text is empty.", param="prompt")
    if max(ids) >= vocabulary:
        raise ApiError(400, f"There is no token {max(ids)}: the model knows {vocabulary}.", param="prompt")
    return ids


def new_tokens(
    ids: Sequence[int], prompt: ServedPrompt | None, *, context: int | None, asked: int | None, most: int, part: str
) -> int:
    """How long an answer may be: what was asked, or 128 tokens, or what the model's context has room for.

    Args:
        ids: The text.
        prompt: What it stands behind.
        context: Of the model, in tokens; None where it has no limit.
        asked: What the request says.
        most: What the server allows.
        part: The part of the request that the text comes from.

    Raises:
        ApiError: There is no room for it, or it is more than the server allows.
    """
    if asked is not None and asked > most:
        raise ApiError(400, f"max_tokens is {asked}, and this server writes {most} at most.", param="max_tokens")
    virtual = prompt.leading if prompt else 0
    room = most if context is None else context - virtual - len(ids)
    if room < (asked or 1):
        raise ApiError(
            400,
            f"The model's context is {context} tokens. {virtual} virtual tokens and {len(ids)} tokens of text leave "
            f"{max(room, 0)} for the answer{f', and {asked} are asked for' if asked else ''}. Shorten the text"
            f"{' or lower max_tokens' if asked else ''}.",
            param=part if room < 1 else "max_tokens",
            code="context_length_exceeded",
        )
    return asked or min(NEW_TOKENS, room, most)
