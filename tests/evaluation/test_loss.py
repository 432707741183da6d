"""Held-out loss: the same tokens, whatever the batches, with the prompt and without."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F

from architectures import PAD, build
from prompting import encoder_prompt, relative_error, texts
from ptune.data.collate import PackingCollator, PaddingCollator
from ptune.evaluation.held_out_loss import held_out_loss

LENGTHS = (9, 3, 12, 7, 5)


def _dataset(*, unsupervised: int) -> Dataset:
    rows = [row.tolist() for row in texts(LENGTHS)]
    return Dataset.from_list(
        [
            {
                "input_ids": row,
                "attention_mask": [1] * len(row),
                "labels": [-100] * unsupervised + row[unsupervised:],
            }
            for row in rows
        ]
    )


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("unsupervised", [0, 2])
@pytest.mark.parametrize("with_prompt", [True, False])
@pytest.mark.parametrize("collate", [PaddingCollator(PAD), PackingCollator()], ids=["padded", "packed"])
def test_each_token_weighs_the_same(
    collate: PaddingCollator | PackingCollator, with_prompt: bool, unsupervised: int, batch_size: int
) -> None:
    model = encoder_prompt(build("llama"))
    total, count = torch.zeros(()), 0
    with torch.no_grad():
        vectors = model.encode() if with_prompt else torch.zeros(0, 32)
        for row in texts(LENGTHS):
            embeds = torch.cat([vectors, model.base.get_input_embeddings()(row)])[None]
            logits = model.base(inputs_embeds=embeds).logits[0]
            # The frozen model alone predicts no first token.
            start = unsupervised if with_prompt else max(unsupervised, 1)
            total = total + F.cross_entropy(logits[len(vectors) + start - 1 : -1], row[start:], reduction="sum")
            count += len(row) - start
    done: list[int] = []
    found = held_out_loss(
        model.train(),
        _dataset(unsupervised=unsupervised),
        collate,
        batch_size=batch_size,
        with_prompt=with_prompt,
        progress=done.append,
    )
    assert found.tokens == count
    assert relative_error(torch.tensor(found.loss), total / count) < 1e-5
    assert done[-1] == len(LENGTHS)
    assert model.training
