"""Loss, gradients and logits are PEFT's, given PEFT's weights, wherever PEFT reads the right place."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from transformers import PreTrainedModel

from ptune import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, PTunedTaskModel, get_peft_model
from ptune.saved.peft import own_layers
from task_models import (
    SEQUENCES,
    SPANS,
    STATES,
    TOKENS,
    VIRTUAL,
    hard_prompt,
    make,
    make_writer,
    padded,
    reader,
    sequence_logits,
    texts,
)

TASKS = {SEQUENCES: "SEQ_CLS", TOKENS: "TOKEN_CLS", SPANS: "QUESTION_ANS", STATES: "FEATURE_EXTRACTION"}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "prompt-tuning": (PromptTuningConfig, peft.PromptTuningConfig, {}),
    "mlp": (PromptEncoderConfig, peft.PromptEncoderConfig, {"encoder_hidden_size": 16}),
    "lstm": (
        PromptEncoderConfig,
        peft.PromptEncoderConfig,
        {"encoder_hidden_size": 16, "encoder_reparameterization_type": "LSTM"},
    ),
    "prefix": (PrefixTuningConfig, peft.PrefixTuningConfig, {}),
    "prefix-mlp": (PrefixTuningConfig, peft.PrefixTuningConfig, {"prefix_projection": True, "encoder_hidden_size": 16}),
}


def both(base: PreTrainedModel, task: str, kind: str, **own: Any) -> tuple[PTunedTaskModel, Any]:
    """ptune's model and PEFT's, with PEFT's weights."""
    mine, theirs, sizes = KINDS[kind]
    common = {"task_type": task, "num_virtual_tokens": VIRTUAL, **sizes}
    peft_model = peft.get_peft_model(copy.deepcopy(base), theirs(**common)).eval()
    model: Any = get_peft_model(base, mine(**common, **own)).eval()
    encoder, given = model.prompts["default"], peft_model.prompt_encoder["default"].state_dict()
    table = given["embedding.weight"]
    if "transform.0.weight" not in given and len(table) > VIRTUAL:
        given["embedding.weight"] = table[:VIRTUAL]  # of an encoder-decoder PEFT keeps as many again
    heads = {name: value for name, value in encoder.state_dict().items() if name.startswith("head.")}
    encoder.load_state_dict({**heads, **given})
    return model, peft_model


def _close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def _same_step(model: Any, theirs: Any, batch: dict[str, torch.Tensor]) -> None:
    """One forward and backward: loss, gradient of the prompt, gradient of the head."""
    mine, other = model(**batch), theirs(**batch)
    _close(mine.loss, other.loss)
    mine.loss.backward()
    other.loss.backward()
    encoder, wanted = model.prompts["default"], dict(theirs.prompt_encoder["default"].named_parameters())
    for name, parameter in encoder.named_parameters():
        if not name.startswith("head."):
            _close(parameter.grad, wanted[name].grad[: len(parameter)])
    if encoder.head is not None:
        heads = [one.grad for name, one in theirs.named_parameters() if "modules_to_save" in name and one.requires_grad]
        for parameter, grad in zip(encoder.head.parameters(), heads, strict=True):
            _close(parameter.grad, grad)


def _labels(kind: str, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    if kind == SEQUENCES:
        return {"labels": torch.tensor([0, 2, 1, 1])}
    if kind == TOKENS:
        return {"labels": torch.where(mask.bool(), ids % 3, -100)}
    return {"start_positions": torch.tensor([0, 2, 1, 3]), "end_positions": torch.tensor([1, 4, 2, 8])}


@pytest.mark.parametrize("kind", [SEQUENCES, TOKENS])
@pytest.mark.parametrize("encoder", ["prefix", "prefix-mlp"])
@pytest.mark.parametrize("family", ["bert", "roberta", "llama", "gpt2", "qwen2"])
def test_keys_and_values(family: str, encoder: str, kind: str) -> None:
    if family in ("llama", "qwen2") and encoder == "prefix-mlp":
        pytest.skip("PEFT takes the model's heads for its key/value heads, and then cuts the MLP's output to fit")
    model, theirs = both(make(family, kind), TASKS[kind], encoder)
    ids, mask, _ = padded(texts(), "right", model.base.config.pad_token_id)
    _same_step(model, theirs, {"input_ids": ids, "attention_mask": mask, **_labels(kind, ids, mask)})
    assert model.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()


def test_places_of_answers_without_padding() -> None:
    """With padding PEFT lets an answer begin there."""
    model, theirs = both(make("bert", SPANS), "QUESTION_ANS", "prefix")
    ids = torch.stack([row[:3] for row in texts()])
    batch = {"start_positions": torch.tensor([0, 2, 1, 2]), "end_positions": torch.tensor([1, 2, 1, 2])}
    _same_step(model, theirs, {"input_ids": ids, "attention_mask": torch.ones_like(ids), **batch})


@pytest.mark.parametrize("kind", [STATES, TOKENS])
@pytest.mark.parametrize("encoder", ["prompt-tuning", "mlp", "lstm"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
@torch.no_grad()
def test_vectors_before_an_encoders_text(family: str, encoder: str, kind: str) -> None:
    model, theirs = both(make(family, kind), TASKS[kind], encoder)
    ids, mask, _ = padded(texts(), "right", 1)
    name = "logits" if kind == TOKENS else "last_hidden_state"
    mine, other = (one(input_ids=ids, attention_mask=mask)[name] for one in (model, theirs))
    assert other.shape[1] == mine.shape[1] + VIRTUAL
    _close(mine[mask.bool()], other[:, VIRTUAL:][mask.bool()])


@pytest.mark.parametrize("encoder", ["prompt-tuning", "mlp", "lstm"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_pooler_that_reads_the_virtual_tokens_as_pefts(family: str, encoder: str) -> None:
    model, theirs = both(make(family, SEQUENCES), "SEQ_CLS", encoder, pool_virtual_tokens=True)
    ids, mask, _ = padded(texts(), "right", 1)
    _same_step(model, theirs, {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 2, 1, 1])})
    assert model.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()


@pytest.mark.parametrize("family", ["bert", "llama"])
@torch.no_grad()
def test_where_pefts_classifier_reads_another_place(family: str) -> None:
    """BERT's pooler the first virtual token; a decoder's classifier a padding token."""
    model, theirs = both(make(family, SEQUENCES), "SEQ_CLS", "prompt-tuning")
    tokens, rows = hard_prompt(model, model.base), texts()
    theirs.prompt_encoder["default"].embedding.weight.copy_(model.prompts["default"].embedding.weight)
    ids, mask, _ = padded(rows, "right", model.base.config.pad_token_id)
    states = [reader(model.base)(torch.cat([tokens, row])[None]).last_hidden_state[:, VIRTUAL:] for row in rows]
    wanted = torch.cat([sequence_logits(model.base, one) for one in states])
    mine, other = (one(input_ids=ids, attention_mask=mask).logits for one in (model, theirs))
    _close(mine, wanted)
    assert float((other - wanted).abs().max()) > 1e-3


@pytest.mark.parametrize("encoder", ["prompt-tuning", "mlp"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_vectors_before_an_encoder_decoders_text(family: str, encoder: str) -> None:
    """PEFT's LSTM runs over the decoder's vectors too, which it does not use."""
    model, theirs = both(make_writer(family), "SEQ_2_SEQ_LM", encoder)
    ids, mask, _ = padded(texts(), "right", 1)
    answers = torch.randint(5, 99, (4, 6), generator=torch.Generator().manual_seed(3))
    answers[1, 3:] = -100
    mine, other = (one(input_ids=ids, attention_mask=mask, labels=answers) for one in (model, theirs))
    _close(mine.loss, other.loss)
    _close(mine.logits, other.logits)
    mine.loss.backward()
    other.loss.backward()
    table = theirs.prompt_encoder["default"].embedding.weight.grad[:VIRTUAL]
    _close(model.prompts["default"].embedding.weight.grad, table)


@pytest.mark.parametrize(("family", "layers"), [("t5", 4), ("bart", 3)])
@torch.no_grad()
def test_keys_and_values_of_a_decoder_as_peft_hands_them_on(family: str, layers: int) -> None:
    base = make_writer(family, layers)
    config = peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=VIRTUAL)
    theirs = peft.get_peft_model(copy.deepcopy(base), config).eval()
    model = PTunedTaskModel(base, PrefixTuningConfig(num_virtual_tokens=VIRTUAL)).eval()
    table = theirs.prompt_encoder["default"].embedding.weight
    model.prompts["default"].embedding.weight.copy_(own_layers(table, layers))  # type: ignore[union-attr, operator, arg-type]
    ids, mask, _ = padded(texts(), "right", 1)
    answers = torch.randint(5, 99, (4, 6), generator=torch.Generator().manual_seed(3))
    batch = {"input_ids": ids, "attention_mask": mask, "labels": answers}
    _close(model(**batch).logits, theirs(**batch).logits)
    for beams in (1, 3):
        how: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams}
        mine, other = (one.generate(input_ids=ids, attention_mask=mask, **how) for one in (model, theirs))
        assert torch.equal(mine, other)
