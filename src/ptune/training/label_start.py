"""Tokens that are typical of labelled rows, for a prompt to start from.

Lester et al. 2021, section 3.2, start from the words of the classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ptune.data.own_tokens import frequent_tokens


def label_tokens(
    labels: Sequence[str], rows: Sequence[dict[str, list[int]]], tokenizer: PreTrainedTokenizerBase, count: int
) -> list[int]:
    """At most `count` tokens to start at: of the labels' names, then the most frequent ones of the rows."""
    special = tokenizer.all_special_ids
    named = [token for label in labels for token in tokenizer(f" {label}", add_special_tokens=False)["input_ids"]]
    first = [token for token in dict.fromkeys(named) if token not in special][:count]
    return [*first, *frequent_tokens(rows, count - len(first), [*special, *first])]
