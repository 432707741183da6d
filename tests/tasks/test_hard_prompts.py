"""Every row of a padded batch is the row by itself behind real tokens, through the bare model and its own head.

A soft prompt that is the embeddings of real tokens must give what those tokens give. The head reads the text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch

from ptune import PrefixTuningConfig
from ptune.config import TaskType
from ptune.model.task_model import PTunedTaskModel
from tasks.wide_models import (
    DECODERS,
    DEEP_ENCODERS,
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


@cache
def behind(name: str, task: TaskType) -> PTunedTaskModel:
    """A model behind `PROMPT`; and behind a prompt of the same vectors of which two stand inside the text."""
    model = behind_tokens(name, task, PROMPT)
    put_tokens(model, "inside", PROMPT, tokens_in_text=2)
    model.set_prompt("default")
    return model.eval()


@torch.no_grad()
def alone(name: str, task: TaskType, whole: torch.Tensor, keep: Sequence[int], kinds: torch.Tensor | None) -> Any:
    """What the bare model gives for the tokens to keep of one row of real ones, the prompt's among them."""
    bare = untouched(name, task)
    types = {} if kinds is None else {"token_type_ids": kinds[None]}
    read = inner_of(bare)(whole[None], output_hidden_states=True, **types)
    states = read.last_hidden_state[:, list(keep)]
    found = {} if name in DECODERS else {"hidden_states": tuple(one[0, list(keep)] for one in read.hidden_states)}
    if task is TaskType.FEATURE_EXTRACTION:
        found["last_hidden_state"] = states[0]
        if getattr(bare, "pooler", None) is not None:
            pooled = bare.pooler_activation(bare.pooler(states[:, 0])) if name == "albert" else bare.pooler(states)
            found["pooler_output"] = pooled[0]
        return found
    made = head_on(name, bare, task, states)[0]
    if task is TaskType.QUESTION_ANS:
        return found | {"start_logits": made[:, 0], "end_logits": made[:, 1]}
    return found | {"logits": made}


def check(
    name: str, task: TaskType, output: Any, rows: list[torch.Tensor], mask: torch.Tensor, kinds: Kinds | None = None
) -> None:
    """Compare a batch's output with each row alone behind the prompt's tokens."""
    for at, row in enumerate(rows):
        given = None if kinds is None else torch.cat([torch.zeros(P, dtype=torch.long), kinds[at]])
        wanted = alone(name, task, torch.cat([PROMPT, row]), range(P, P + len(row)), given)
        compare(task, output, at, mask, wanted)


def compare(task: TaskType, output: Any, at: int, mask: torch.Tensor, wanted: dict[str, Any]) -> None:
    """Compare a row of an output with what is wanted under each name, and what stands at its padding."""
    text = mask[at].bool()
    for key, value in wanted.items():
        if key == "hidden_states":
            layers = output.get(key)
            assert layers is None or all(close(one[at][text], own) for one, own in zip(layers, value, strict=True)), at
        elif key == "pooler_output" or (key == "logits" and task is TaskType.SEQ_CLS):
            assert close(output[key][at], value), (key, at)
        else:
            found = output[key][at]
            assert close(found[text], value), (key, at)
            # No answer begins or ends at padding; other outputs are zero there.
            assert bool((found[~text] == (torch.finfo(found.dtype).min if "_logits" in key else 0)).all())


def first(output: Any) -> torch.Tensor:
    """The logits, or the hidden states."""
    return output[next(key for key in ("logits", "start_logits", "last_hidden_state") if output.get(key) is not None)]


def noisy(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The same text with any tokens at its padding."""
    return torch.where(mask.bool(), ids, tokens(ids.numel(), seed=3).view_as(ids))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_every_row_is_as_if_alone(name: str, task: TaskType, side: str) -> None:
    """With the hidden states of every layer of an encoder; nothing at padding matters."""
    model, rows = behind(name, task), texts()
    ids, mask = padded(rows, side, pad_of(name))
    # A decoder's layers take ways of their own, where these are not to be had.
    asked = {} if name in DECODERS else {"output_hidden_states": True}
    with torch.no_grad():
        output = model(ids, mask, **asked)
        assert name in DECODERS or output.hidden_states is not None
        check(name, task, output, rows, mask)
        assert torch.equal(first(model(noisy(ids, mask), mask)), first(output))


@pytest.mark.parametrize("name", [*DEEP_ENCODERS, *DECODERS])
def test_every_row_is_as_if_alone_behind_keys_and_values(name: str) -> None:
    """However it is padded; `test_steps_beside_peft` says that they are seen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = PTunedTaskModel(build(name, TaskType.SEQ_CLS), PrefixTuningConfig(num_virtual_tokens=P)).eval()
    rows = texts()
    with torch.no_grad():
        singly = [model(row[None]).logits[0] for row in rows]
        for side in SIDES:
            ids, mask = padded(rows, side, pad_of(name))
            logits = model(ids, mask).logits
            for at, wanted in enumerate(singly):
                assert close(logits[at], wanted), (side, at)
            assert torch.equal(model(noisy(ids, mask), mask).logits, logits)


@pytest.mark.parametrize("task", READING)
@pytest.mark.parametrize("name", WITH_TYPES)
def test_pairs_of_texts(name: str, task: TaskType) -> None:
    """Virtual tokens are of type 0; the types of the text move with it."""
    model, rows = behind(name, task), texts()
    kinds = [(torch.arange(len(row)) >= len(row) // 2).long() for row in rows]
    for side in SIDES:
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
        model = behind("llama", TaskType.TOKEN_CLS)
        assert torch.equal(model(ids, mask, token_type_ids=types).logits, model(ids, mask).logits)
        model = behind("gpt2", TaskType.TOKEN_CLS)
        together = model(ids, mask, token_type_ids=types).logits
        assert not close(together, model(ids, mask).logits)
        for at, row in enumerate(rows):
            one = model(row[None], token_type_ids=kinds[at][None]).logits[0]
            assert close(together[at][mask[at].bool()], one)


@pytest.mark.parametrize("task", [TaskType.SEQ_CLS, TaskType.TOKEN_CLS])
@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS])
def test_embeddings_in_place_of_ids(name: str, task: TaskType) -> None:
    model, rows = behind(name, task), texts()
    for side in SIDES:
        ids, mask = padded(rows, side, pad_of(name))
        with torch.no_grad():
            output = model(inputs_embeds=model.base.get_input_embeddings()(ids), attention_mask=mask)
        check(name, task, output, rows, mask)


@pytest.mark.parametrize("task", READING)
@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama"])
def test_no_mask_means_no_padding(name: str, task: TaskType) -> None:
    """Even where the text holds the padding token's id, but for a decoder's class, which looks for that."""
    model, rows = behind(name, task), texts([6, 6, 6, 6])
    ids = torch.stack(rows)
    with torch.no_grad():
        check(name, task, model(ids), rows, torch.ones_like(ids))
        if name == "bert" or (name, task) in (("llama", TaskType.TOKEN_CLS), ("llama", TaskType.FEATURE_EXTRACTION)):
            rows[1][-1] = pad_of(name)
            ids = torch.stack(rows)
            output = model(ids)
            check(name, task, output, rows, torch.ones_like(ids))
            assert torch.equal(first(model(ids, torch.ones_like(ids))), first(output))


INSIDE = [pair for pair in PAIRS if pair[1] in (TaskType.SEQ_CLS, TaskType.TOKEN_CLS, TaskType.MASKED_LM)]


@pytest.mark.parametrize(("name", "task"), INSIDE)
def test_virtual_tokens_inside_the_text(name: str, task: TaskType) -> None:
    """Two of four before the text; one more behind its first token, and one at its end."""
    model = behind(name, task)
    third, fourth = torch.tensor([-3]), torch.tensor([-4])
    rows = [torch.cat([row[:1], third, row[1:], fourth]) for row in texts([7, 5, 2, 9])]
    for side in SIDES:
        ids, mask = padded(rows, side, pad_of(name))
        with torch.no_grad():
            output = model(ids, mask, prompt_names="inside")
        for at, row in enumerate(rows):
            whole = torch.cat([PROMPT[:2], torch.where(row < 0, PROMPT[(-1 - row).clamp_min(0)], row)])
            # What stands inside the text is of the text: the output lines up with it.
            compare(task, output, at, mask, alone(name, task, whole, range(2, len(whole)), None))


@pytest.mark.parametrize("side", SIDES)
def test_a_mean_over_the_text_alone(side: str) -> None:
    """ModernBERT's classifier may read the mean of a text, by the mask."""
    model, rows = behind_tokens("modernbert", TaskType.SEQ_CLS, PROMPT, classifier_pooling="mean"), texts()
    ids, mask = padded(rows, side)
    with torch.no_grad():
        logits = model(ids, mask).logits
        bare: Any = build("modernbert", TaskType.SEQ_CLS, classifier_pooling="mean")
        for at, row in enumerate(rows):
            states = bare.model(torch.cat([PROMPT, row])[None]).last_hidden_state[:, P:]
            assert close(logits[at], head_on("modernbert", bare, TaskType.SEQ_CLS, states)[0])


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
