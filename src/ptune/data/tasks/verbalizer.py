"""The word of each label, and its token: a masked model says a label by one token in the gap.

Schick & Schütze 2021, "Exploiting Cloze Questions" call it a verbalizer; Liu et al. 2021, "GPT Understands, Too" use
one for few-shot SuperGLUE. A word must be one token where the gap stands: in vocabularies where words begin with their
blank (RoBERTa's), ` great` behind a blank is another token than `great` at the start of a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ptune.data.blocks import Block
from ptune.data.tasks.task_templates import Part, Place, TaskTemplate
from ptune.data.text_ids import ids_of
from ptune.errors import ConfigError, ModelError, listed, shown, unknown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def verbalizer_ids(
    labels: Sequence[str],
    verbalizer: Mapping[str, str] | None,
    template: TaskTemplate,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[int, ...]:
    """The token of each label's word, in the order of the labels.

    Args:
        labels: All of them.
        verbalizer: Label → word; None takes the labels themselves.
        template: Says what stands before the gap.
        tokenizer: Makes the tokens.

    Raises:
        ConfigError: A label without a word, a word that is not one token there, or two labels with one token.
        ModelError: The tokenizer has no mask token.
    """
    if tokenizer.mask_token is None:
        raise ModelError(
            f"the tokenizer ({type(tokenizer).__name__}) has no mask token, so there is no gap to fill.",
            hint="Take a masked model such as BERT or RoBERTa, or the task classify.",
        )
    words = _words(labels, verbalizer)
    before, after = _around(template.parts())
    ids = {label: _one_token(word, before, after, tokenizer) for label, word in words.items()}
    for label, one in ids.items():
        first = next(other for other in labels if ids[other] == one)
        if first != label:
            raise ConfigError(
                f"verbalizer: {shown(words[first])} of the label {shown(first)} and {shown(words[label])} of "
                f"{shown(label)} are one token ({tokenizer.convert_ids_to_tokens(one)!r}).",
                hint="Give every label a word of its own.",
            )
    return tuple(ids[label] for label in labels)


def _words(labels: Sequence[str], verbalizer: Mapping[str, str] | None) -> dict[str, str]:
    """The word of each label."""
    if verbalizer is None:
        return {label: label for label in labels}
    given = {str(label): word for label, word in verbalizer.items()}
    for label in given:
        if label not in labels:
            raise unknown("label in verbalizer", label, labels)
    if missing := [label for label in labels if label not in given]:
        raise ConfigError(
            f"verbalizer: there is no word for {listed(map(shown, missing))}.",
            hint=f"Write {missing[0]}=<word>, one token of the model's vocabulary.",
        )
    for label, word in given.items():
        if not isinstance(word, str) or not word.strip():
            raise ConfigError(
                f"verbalizer: the word of {shown(label)} is {shown(word)}.", hint="Give a word of the vocabulary."
            )
    return {label: given[label].strip() for label in labels}


def _around(parts: Sequence[Part]) -> tuple[str, str]:
    """Words of the template directly before the gap, and directly behind it.

    A full stop stands for the end of a text that fills the place next to them.
    """
    at = parts.index(Place.MASK)
    before = parts[at - 1] if at else ""
    if isinstance(before, Place):
        before = "."
    elif isinstance(before, str) and at > 1 and isinstance(parts[at - 2], Place):
        before = f".{before}"
    after = parts[at + 1] if at + 1 < len(parts) else ""
    return (
        "" if isinstance(before, Block) else before,
        after if isinstance(after, str) else "",
    )


def _one_token(word: str, before: str, after: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token of a word in the gap."""
    given, made, whole = ids_of([before.rstrip(), before + word, before + word + after], tokenizer)
    pieces = made[len(given) :] if made[: len(given)] == given else made
    if len(pieces) != 1 or made[: len(given)] != given or whole[: len(made)] != made:
        shown_pieces = tokenizer.convert_ids_to_tokens(pieces if whole[: len(made)] == made else whole)
        raise ConfigError(
            f"verbalizer: {shown(word)} is not one token of the model's vocabulary in the gap: {listed(shown_pieces)}.",
            hint="Take a shorter or more common word with --verbalizer label=word; mind the blank before {mask}.",
        )
    if pieces[0] == tokenizer.unk_token_id:
        raise ConfigError(
            f"verbalizer: {shown(word)} is not in the model's vocabulary ({tokenizer.unk_token}).",
            hint="Take a word that is.",
        )
    return pieces[0]
