"""Texts to token ids, and the special tokens that a tokenizer puts around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def ids_of(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each text, with no special tokens added."""
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def leading_special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts before a text, e.g. `[BOS]`; often none.

    Those it puts behind a text are left out: an end token between prompt and answer would end the text there.
    """
    return special_frame(tokenizer)[0]


def special_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before a text and behind it, e.g. `[CLS]` and `[SEP]`."""
    bare = ids_of(["a"], tokenizer)[0]
    whole: list[int] = tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []
