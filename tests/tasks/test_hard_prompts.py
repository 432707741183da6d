"""Every row of a padded batch is the row by itself behind real tokens, through the bare model and its own head.

A soft prompt that is the embeddings of real tokens must give what those tokens give. The head reads the text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch

from ptune.config import TaskType
from tasks.wide_models import (
    DECODERS,
    ENCODERS,
    LABELS,
    PAIRS,
    READING,
    WITH_TYPES,
    behind_tokens,
    build,
    close,
    head_on,
    inner_of,
    pad_of,
    padded,
    put_tokens,
    texts,
    tokens,
)

PROMPT = tokens(4, seed=7)
P = len(PROMPT)
SIDES = ("right", "left")
Kinds = Sequence[torch.Tensor | None]


@cache
def untouched(name: str, task: TaskType) -> Any:
    """A bare model that no prompt ever stood in front of."""
    return build(name, task)


@torch.no_grad()
def alone(name: str, task: TaskType, whole: torch.Tensor, keep: Sequence[int], kinds: torch.Tensor | None) -> Any:
    """What the bare model gives for the tokens to keep of one row of real ones, the prompt's among them."""
    bare = untouched(name, task)
    types = {} if kinds is None else {"token_type_ids": kinds[None]}
    read = inner_of(bare)(whole[None], output_hidden_states=True, **types)
    states = read.last_hidden_state[:, list(keep)]
    if task is TaskType.FEATURE_EXTRACTION:
        found = {"last_hidden_state": states[0], "hidden_states": read.hidden_states[1][0, list(keep)]}
        if getattr(bare, "pooler", None) is not None:
            pooled = bare.pooler_activation(bare.pooler(states[:, 0])) if name == "albert" else bare.pooler(states)
            found["pooler_output"] = pooled[0]
        return found
    made = head_on(name, bare, task, states)[0]
    if task is TaskType.QUESTION_ANS:
        return {"start_logits": made[:, 0], "end_logits": made[:, 1]}
    return {"logits": made}


def check(
    name: str, task: TaskType, output: Any, rows: list[torch.Tensor], mask: torch.Tensor, kinds: Kinds | None = None
) -> None:
    """Compare a batch's output with each row alone behind the prompt's tokens."""
    for at, row in enumerate(rows):
        given = None if kinds is None else torch.cat([torch.zeros(P, dtype=torch.long), kinds[at]])
        wanted = alone(name, task, torch.cat([PROMPT, row]), range(P, P + len(row)), given)
        compare(task, output, at, mask, wanted)


def compare(task: TaskType, output: Any, at: int, mask: torch.Tensor, wanted: dict[str, torch.Tensor]) -> None:
    """Compare a row of an output with what is wanted under each name."""
    for key, value in wanted.items():
        if key == "hidden_states":
            if output.get(key) is not None:
                assert close(output[key][1][at][mask[at].bool()], value), (key, at)
            continue
        of_the_row = key == "pooler_output" or (key == "logits" and task is TaskType.SEQ_CLS)
        assert close(output[key][at] if of_the_row else output[key][at][mask[at].bool()], value), (key, at)


def first(output: Any) -> torch.Tensor:
    """The logits, or the hidden states."""
    return output[next(key for key in ("logits", "start_logits", "last_hidden_state") if output.get(key) is not None)]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_every_row_is_as_if_alone(name: str, task: TaskType, side: str) -> None:
    model, rows = behind_tokens(name, task, PROMPT), texts()
    ids, mask = padded(rows, side, pad_of(name))
    # A decoder's layers take ways of their own, where these are not to be had.
    asked = {} if name in DECODERS else {"output_hidden_states": True}
    with torch.no_grad():
        output = model(ids, mask, **asked)
        check(name, task, output, rows, mask)
        # Nothing at padding matters.
        noise = torch.where(mask.bool(), ids, tokens(ids.numel(), seed=3).view_as(ids))
        assert torch.equal(first(model(noise, mask)), first(output))


@pytest.mark.parametrize("task", READING)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", WITH_TYPES)
def test_pairs_of_texts(name: str, side: str, task: TaskType) -> None:
    """Virtual tokens are of type 0; the types of the text move with it."""
    model, rows = behind_tokens(name, task, PROMPT), texts()
    kinds = [(torch.arange(len(row)) >= len(row) // 2).long() for row in rows]
    ids, mask = padded(rows, side, pad_of(name))
    with torch.no_grad():
        output = model(ids, mask, token_type_ids=padded(kinds, side)[0])
        check(name, task, output, rows, mask, kinds)
        assert not torch.equal(first(output), first(model(ids, mask)))


def test_types_in_front_of_gpt2() -> None:
    """A decoder that knows types looks them up among its tokens; one that knows none has no use for them."""
    rows = texts()
    kinds = [(torch.arange(len(row)) >= len(row) // 2).long() for row in rows]
    (ids, mask), (types, _) = padded(rows, "left"), padded(kinds, "left")
    with torch.no_grad():
        model = behind_tokens("llama", TaskType.TOKEN_CLS, PROMPT)
        assert torch.equal(model(ids, mask, token_type_ids=types).logits, model(ids, mask).logits)
        model = behind_tokens("gpt2", TaskType.TOKEN_CLS, PROMPT)
        together = model(ids, mask, token_type_ids=types).logits
        assert not close(together, model(ids, mask).logits)
        for at, row in enumerate(rows):
            one = model(row[None], token_type_ids=kinds[at][None]).logits[0]
            assert close(together[at][mask[at].bool()], one)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("task", [TaskType.SEQ_CLS, TaskType.TOKEN_CLS])
@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS])
def test_embeddings_in_place_of_ids(name: str, task: TaskType, side: str) -> None:
    model, rows = behind_tokens(name, task, PROMPT), texts()
    ids, mask = padded(rows, side, pad_of(name))
    with torch.no_grad():
        output = model(inputs_embeds=model.base.get_input_embeddings()(ids), attention_mask=mask)
    check(name, task, output, rows, mask)


@pytest.mark.parametrize("task", READING)
@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama"])
def test_no_mask_means_no_padding(name: str, task: TaskType) -> None:
    """Even where the text holds the padding token's id, but for a decoder's class, which looks for that."""
    model, rows = behind_tokens(name, task, PROMPT), texts([6, 6, 6, 6])
    ids = torch.stack(rows)
    with torch.no_grad():
        check(name, task, model(ids), rows, torch.ones_like(ids))
        if name == "bert" or (name, task) in (("llama", TaskType.TOKEN_CLS), ("llama", TaskType.FEATURE_EXTRACTION)):
            rows[1][-1] = pad_of(name)
            ids = torch.stack(rows)
            output = model(ids)
            check(name, task, output, rows, torch.ones_like(ids))
            assert torch.equal(first(model(ids, torch.ones_like(ids))), first(output))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("task", [TaskType.SEQ_CLS, TaskType.TOKEN_CLS, TaskType.MASKED_LM])
@pytest.mark.parametrize("name", ENCODERS)
def test_virtual_tokens_inside_the_text(name: str, task: TaskType, side: str) -> None:
    """Two of four before the text; one more behind its first token, and one at its end."""
    model = behind_tokens(name, task, PROMPT)
    put_tokens(model, "inside", PROMPT, tokens_in_text=2)
    model.set_prompt("inside")
    plain = texts([7, 5, 2, 9])
    third, fourth = torch.tensor([-3]), torch.tensor([-4])
    rows = [torch.cat([row[:1], third, row[1:], fourth]) for row in plain]
    ids, mask = padded(rows, side, pad_of(name))
    with torch.no_grad():
        output = model(ids, mask)
    for at, row in enumerate(rows):
        whole = torch.cat([PROMPT[:2], torch.where(row < 0, PROMPT[(-1 - row).clamp_min(0)], row)])
        # What stands inside the text is of the text: the output lines up with it.
        compare(task, output, at, mask, alone(name, task, whole, range(2, len(whole)), None))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_virtual_tokens_inside_the_text_of_a_decoder(name: str) -> None:
    model = behind_tokens(name, TaskType.TOKEN_CLS, PROMPT)
    put_tokens(model, "inside", PROMPT, tokens_in_text=2)
    rows = [torch.cat([row[:1], torch.tensor([-3, -4]), row[1:]]) for row in texts([7, 5, 2, 9])]
    ids, mask = padded(rows, "left", pad_of(name))
    with torch.no_grad():
        output = model(ids, mask, prompt_names="inside")
    for at, row in enumerate(rows):
        whole = torch.cat([PROMPT[:2], torch.where(row < 0, PROMPT[(-1 - row).clamp_min(0)], row)])
        compare(
            TaskType.TOKEN_CLS, output, at, mask, alone(name, TaskType.TOKEN_CLS, whole, range(2, len(whole)), None)
        )


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("side", SIDES)
def test_a_mean_over_the_text_alone(pooling: str, side: str) -> None:
    """ModernBERT's classifier may read the mean of a text, by the mask."""
    model, rows = behind_tokens("modernbert", TaskType.SEQ_CLS, PROMPT, classifier_pooling=pooling), texts()
    ids, mask = padded(rows, side)
    with torch.no_grad():
        logits = model(ids, mask).logits
        bare: Any = build("modernbert", TaskType.SEQ_CLS, classifier_pooling=pooling)
        for at, row in enumerate(rows):
            states = bare.model(torch.cat([PROMPT, row])[None]).last_hidden_state[:, P:]
            pooled = states[:, 0] if pooling == "cls" else states.mean(dim=1)
            assert close(logits[at], bare.classifier(bare.head(pooled))[0])


def test_one_label_and_many() -> None:
    rows = texts()
    ids, mask = padded(rows, "left")
    for count in (1, LABELS + 4):
        model = behind_tokens("bert", TaskType.SEQ_CLS, PROMPT, num_labels=count)
        bare: Any = build("bert", TaskType.SEQ_CLS, num_labels=count)
        with torch.no_grad():
            logits = model(ids, mask).logits
            for at, row in enumerate(rows):
                states = bare.bert(torch.cat([PROMPT, row])[None]).last_hidden_state[:, P:]
                assert close(logits[at], bare.classifier(bare.bert.pooler(states))[0])
