"""Where a classifier starts: its prompt at tokens that are typical of the rows, its head at the labels' words.

Lester et al. 2021, section 3.2, start the prompt from the words of the classes. A decoder's last hidden state says
which token comes next; where its LM head is its token embeddings, a head that begins at the embeddings of the labels'
words begins as the frozen model's own choice among them.

Shapes: `D` hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ptune.data.own_tokens import frequent_tokens
from ptune.frozen.parts import embedding_table
from ptune.frozen.product import is_plain
from ptune.model.task_model import PTunedTaskModel


def label_tokens(
    labels: Sequence[str], rows: Sequence[dict[str, list[int]]], tokenizer: PreTrainedTokenizerBase, count: int
) -> list[int]:
    """At most `count` tokens to start at: of the labels' names, then the most frequent ones of the rows."""
    special = tokenizer.all_special_ids
    named = [token for label in labels for token in tokenizer(f" {label}", add_special_tokens=False)["input_ids"]]
    first = [token for token in dict.fromkeys(named) if token not in special][:count]
    return [*first, *frequent_tokens(rows, count - len(first), [*special, *first])]


@torch.no_grad()
def start_head(model: PTunedTaskModel, labels: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Start the active prompt's head at the labels' words; False where the model has no such words for its head.

    A row of the head is the mean of the word's token embeddings, less the mean over the labels, which says nothing.

    Args:
        model: The model with its prompt.
        labels: In the order of the head's rows.
        tokenizer: Makes their tokens.
    """
    head, config = model.encoder_of(model.active_adapter).head, model.base.config.get_text_config()
    layers = [] if head is None else [one for one in head.modules() if isinstance(one, nn.Linear)]
    table = embedding_table(model.base)
    if len(layers) != 1 or not (model.reads_ahead and getattr(config, "tie_word_embeddings", False)):
        return False
    if tuple(layers[0].weight.shape) != (len(labels), table.shape[1]) or not is_plain(table):
        return False
    tokens = [tokenizer(f" {label}", add_special_tokens=False)["input_ids"] for label in labels]
    if not all(tokens):
        return False
    rows = torch.stack([table[torch.tensor(ids, device=table.device)].float().mean(dim=0) for ids in tokens])
    layers[0].weight.copy_(rows - rows.mean(dim=0))
    if layers[0].bias is not None:
        layers[0].bias.zero_()
    return True
