"""How likely tokens are in packed rows: one run through the layers, the LM head at the places asked about.

Shapes: `B` rows, `M` questions, `Q` positions of the sequence, `V` vocabulary.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ptune.batch.row_prompts import RowPrompts
from ptune.batch.text import Text
from ptune.batch.token_queries import CHUNK_BYTES, TokenAnswers, TokenQueries, look_up, look_up_in_chunks
from ptune.packed.head import FrozenHead
from ptune.packed.packed_forward import first_predictors, through_the_layers


def packed_answers(view: PreTrainedModel, text: Text, prompts: RowPrompts, queries: TokenQueries) -> TokenAnswers:
    """Answer what is asked about rows; see `ptune.batch.token_queries`.

    Args:
        view: The model's packed view.
        text: The rows, none of them empty.
        prompts: The prompt of each.
        queries: The questions.
    """
    made, head = through_the_layers(view, text, prompts), FrozenHead(view)
    spans, answers = made.rows.rows, TokenAnswers.unknown(len(queries.tokens))
    device = made.hidden.device
    starts = torch.tensor([span.start for span in spans], device=device)
    inside = not made.outside
    before = torch.tensor(
        [span.prefix_start + span.prefix_length - 1 if inside and span.prefix_length else -1 for span in spans],
        device=device,
    )
    queries = queries.to(device)
    positions = torch.where(queries.places == 0, before[queries.rows], starts[queries.rows] + queries.places - 1)
    known = (positions >= 0).nonzero().squeeze(1)
    found = look_up_in_chunks(
        lambda at: head.logits(made.hidden[at]),
        positions[known],
        queries.tokens[known],
        chunk=max(CHUNK_BYTES // (4 * head.vocab_size), 16),
    )
    answers.put(known, *found)
    if made.outside:
        numbers = torch.tensor(first_predictors(made.rows, made.outside), device=device)[queries.rows]
        first = ((queries.places == 0) & (numbers >= 0)).nonzero().squeeze(1)
        logits = torch.cat([prefix.logits for prefix in made.outside])[numbers[first]]
        answers.put(first, *look_up(logits, queries.tokens[first]))
    return answers
