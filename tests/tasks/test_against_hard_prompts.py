"""Every row comes out as if it were alone behind real tokens whose embeddings are the prompt, whatever its padding."""

from __future__ import annotations

import pytest
import torch

from ptune import PromptTuningConfig, PTunedTaskModel
from task_models import (
    CONFIGS,
    DECODERS,
    ENCODERS,
    SEQUENCES,
    SPANS,
    STATES,
    TOKENS,
    VIRTUAL,
    WORDS,
    eight,
    hard_prompt,
    make,
    padded,
    reader,
    sequence_logits,
    texts,
    token_logits,
)

SIDES = ("right", "left")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def _wrapped(family: str, kind: str) -> tuple[PTunedTaskModel, torch.Tensor]:
    base = make(family, kind)
    model = PTunedTaskModel(base, PromptTuningConfig(num_virtual_tokens=VIRTUAL)).eval()
    return model, hard_prompt(model, base)


def _states(model: PTunedTaskModel, tokens: torch.Tensor, row: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
    """Hidden states of a text alone behind real tokens."""
    states: torch.Tensor = reader(model.base)(torch.cat([tokens, row])[None], **more).last_hidden_state[:, VIRTUAL:]
    return states


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_classes_of_texts(family: str, side: str) -> None:
    model, tokens = _wrapped(family, SEQUENCES)
    rows = eight()
    ids, mask, _ = padded(rows, side, model.base.config.pad_token_id or 0)
    found = model(input_ids=ids, attention_mask=mask).logits
    wanted = torch.cat([sequence_logits(model.base, _states(model, tokens, row)) for row in rows])
    torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", [TOKENS, SPANS])
@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_labels_of_tokens_and_places_of_answers(family: str, kind: str, side: str) -> None:
    model, tokens = _wrapped(family, kind)
    rows = eight()
    ids, mask, starts = padded(rows, side, model.base.config.pad_token_id or 0)
    output = model(input_ids=ids, attention_mask=mask)
    found = output.logits if kind == TOKENS else torch.stack([output.start_logits, output.end_logits], dim=-1)
    for row, at, states in zip(found, starts, (_states(model, tokens, one) for one in rows), strict=True):
        torch.testing.assert_close(row[at : at + states.shape[1]], token_logits(model.base, states)[0], **CLOSE)
    if kind == SPANS:
        assert bool((found[mask == 0] < -1e30).all())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_hidden_states_and_poolers(family: str, side: str) -> None:
    model, tokens = _wrapped(family, STATES)
    rows = eight()
    ids, mask, starts = padded(rows, side, model.base.config.pad_token_id or 0)
    output = model(input_ids=ids, attention_mask=mask)
    for at, row, start in zip(range(len(rows)), rows, starts, strict=True):
        states = _states(model, tokens, row)
        torch.testing.assert_close(output.last_hidden_state[at, start : start + len(row)], states[0], **CLOSE)
        if family in ("bert", "roberta", "mpnet"):
            torch.testing.assert_close(output.pooler_output[at], reader(model.base).pooler(states)[0], **CLOSE)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("family", "head"), [("bert", "cls"), ("roberta", "lm_head")])
@torch.no_grad()
def test_words_at_masks(family: str, head: str, side: str) -> None:
    model, tokens = _wrapped(family, WORDS)
    rows = eight()
    ids, mask, starts = padded(rows, side, model.base.config.pad_token_id)
    logits = model(input_ids=ids, attention_mask=mask).logits
    for found, row, start in zip(logits, rows, starts, strict=True):
        wanted = getattr(model.base, head)(_states(model, tokens, row))[0]
        torch.testing.assert_close(found[start : start + len(row)], wanted, **CLOSE)


@torch.no_grad()
def test_types_of_the_texts_of_a_pair() -> None:
    model, tokens = _wrapped("bert", SEQUENCES)
    rows = texts()
    ids, mask, starts = padded(rows, "left", 1)
    types = torch.zeros_like(ids)
    for at, (row, start) in enumerate(zip(rows, starts, strict=True)):
        types[at, start + len(row) // 2 : start + len(row)] = 1
    found = model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
    for at, (row, start) in enumerate(zip(rows, starts, strict=True)):
        own = torch.cat([torch.zeros(VIRTUAL, dtype=torch.long), types[at, start : start + len(row)]])[None]
        wanted = sequence_logits(model.base, _states(model, tokens, row, token_type_ids=own))
        torch.testing.assert_close(found[at : at + 1], wanted, **CLOSE)
    plain = model(input_ids=ids, attention_mask=mask).logits
    assert not torch.allclose(found, plain, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama"])
@torch.no_grad()
def test_embeddings_in_place_of_tokens(family: str) -> None:
    model, _ = _wrapped(family, SEQUENCES)
    ids, mask, _ = padded(texts(), "left", model.base.config.pad_token_id)
    found = model(inputs_embeds=model.base.get_input_embeddings()(ids), attention_mask=mask).logits
    torch.testing.assert_close(found, model(input_ids=ids, attention_mask=mask).logits, **CLOSE)


@pytest.mark.parametrize("family", ["bert", "llama"])
@torch.no_grad()
def test_virtual_tokens_inside_the_text(family: str) -> None:
    base = make(family, SEQUENCES)
    config = PromptTuningConfig(num_virtual_tokens=VIRTUAL, tokens_in_text=1)
    model = PTunedTaskModel(base, config).eval()
    tokens, last = hard_prompt(model, base), -VIRTUAL
    rows = [torch.cat([row[:2], torch.tensor([last]), row[2:]]) for row in texts()]
    ids, mask, _ = padded(rows, "left", base.config.pad_token_id)
    found = model(input_ids=ids, attention_mask=mask).logits
    real = [torch.where(row == last, tokens[-1], row) for row in rows]
    for at, row in enumerate(real):
        states = reader(base)(torch.cat([tokens[:-1], row])[None]).last_hidden_state[:, VIRTUAL - 1 :]
        torch.testing.assert_close(found[at : at + 1], sequence_logits(base, states), **CLOSE)


@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_a_decoder_finds_its_last_token_by_the_mask(family: str) -> None:
    """Where the padding token is one that stands in texts too, as where it is the end token."""
    model, _ = _wrapped(family, SEQUENCES)
    rows = texts()
    rows[0][-1] = rows[1][2] = 0
    ids, mask, _ = padded(rows, "right", 0)
    found = model(input_ids=ids, attention_mask=mask).logits
    alone = torch.cat([model(input_ids=row[None], attention_mask=torch.ones_like(row)[None]).logits for row in rows])
    torch.testing.assert_close(found, alone, **CLOSE)
    model.base.config.pad_token_id = None
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, found)


@torch.no_grad()
def test_a_decoders_rows_without_a_mask_end_where_its_class_has_it() -> None:
    model, _ = _wrapped("llama", SEQUENCES)
    ids, mask, _ = padded(texts(), "right", 0)
    torch.testing.assert_close(
        model(input_ids=ids).logits, model(input_ids=ids, attention_mask=mask).logits, rtol=0, atol=0
    )


@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_packed_rows_are_padded_rows(family: str) -> None:
    model, _ = _wrapped(family, TOKENS)
    assert model.packs_rows
    ids, mask, _ = padded(texts(), "left", 0)
    packed = model(input_ids=ids, attention_mask=mask).logits
    model._layers[0].pack_batches = False
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, packed, **CLOSE)


@pytest.mark.parametrize("family", ENCODERS)
def test_keys_and_values_where_an_encoder_takes_them(family: str) -> None:
    from ptune import PrefixTuningConfig
    from ptune.errors import ModelError

    base = make(family, SEQUENCES)
    if family in ("bert", "roberta", "electra"):
        model = PTunedTaskModel(base, PrefixTuningConfig(num_virtual_tokens=VIRTUAL)).eval()
        rows = texts()
        ids, mask, _ = padded(rows, "left", 1)
        with torch.no_grad():
            found = model(input_ids=ids, attention_mask=mask).logits
            alone = torch.cat([model(input_ids=row[None]).logits for row in rows])
        torch.testing.assert_close(found, alone, **CLOSE)
        return
    with pytest.raises(ModelError, match=r"takes no cache of keys and values.*embedding"):
        PTunedTaskModel(base, PrefixTuningConfig(num_virtual_tokens=VIRTUAL))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
@torch.no_grad()
def test_the_hidden_states_of_every_layer(family: str) -> None:
    """The text's alone, whether the encoder has a pooler of its own or not."""
    model, tokens = _wrapped(family, STATES)
    row = texts()[0]
    found = model(input_ids=row[None], output_hidden_states=True).hidden_states
    wanted = model.base(torch.cat([tokens, row])[None], output_hidden_states=True).hidden_states
    assert len(found) == len(wanted)
    for mine, whole in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, whole[:, VIRTUAL:], **CLOSE)
