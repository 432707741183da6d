"""How likely tokens are in padded rows, behind keys and values or with the prompt concatenated.

Shapes: `B` rows, `T` tokens of the longest row, `M` questions, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from transformers import PreTrainedModel

from ptune.batch.text import Text
from ptune.batch.token_queries import TokenAnswers, TokenQueries, look_up
from ptune.padded.padded_forward import concatenated_output, prefixed_output
from ptune.padded.padded_loss import head_at
from ptune.prefix.keys_values import RowPrefix


def prefixed_answers(
    base: PreTrainedModel,
    prefix: RowPrefix,
    text: Text,
    queries: TokenQueries,
    *,
    filler_id: int | None,
    narrow: bool,
) -> TokenAnswers:
    """Answer what is asked about rows behind their prefixes; see `ptune.batch.token_queries`.

    Args:
        base: The frozen model.
        prefix: Of each row.
        text: The rows.
        queries: The questions.
        filler_id: The token id that virtual tokens inside the text go by, where the model needs ids.
        narrow: Run the LM head at the places asked about alone.
    """
    queries, answers = queries.to(text.device), TokenAnswers.unknown(len(queries.tokens))
    predicting = torch.tensor(prefix.predicting, device=text.device)
    first = ((queries.places == 0) & (predicting[queries.rows] > 0)).nonzero().squeeze(1)
    answers.put(first, *look_up(prefix.logits[queries.rows[first]], queries.tokens[first]))
    inner = (queries.places > 0).nonzero().squeeze(1)
    if len(inner):
        rows, columns = queries.rows[inner], queries.places[inner] - 1
        with head_at(base, rows, columns) if narrow else nullcontext():
            logits = prefixed_output(base, prefix, text, filler_id, {}).logits
        answers.put(inner, *look_up(logits[0] if narrow else logits[rows, columns], queries.tokens[inner]))
    return answers


def concatenated_answers(
    base: PreTrainedModel,
    prompts: Sequence[torch.Tensor | None],
    text: Text,
    queries: TokenQueries,
    *,
    filler_id: int | None,
    narrow: bool,
) -> TokenAnswers:
    """The same with each row's prompt `(P, D)` in front of it; arguments as for `prefixed_answers`."""
    queries, answers = queries.to(text.device), TokenAnswers.unknown(len(queries.tokens))
    lengths = torch.tensor([0 if prompt is None else len(prompt) for prompt in prompts], device=text.device)
    columns = lengths[queries.rows] + queries.places - 1
    known = (columns >= 0).nonzero().squeeze(1)
    if len(known):
        rows, columns = queries.rows[known], columns[known]
        with head_at(base, rows, columns) if narrow else nullcontext():
            logits = concatenated_output(base, prompts, text, filler_id, {}).logits
        answers.put(known, *look_up(logits[0] if narrow else logits[rows, columns], queries.tokens[known]))
    return answers
