"""Prompts of a model for a task, their heads, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from ptune import (
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    PTunedModel,
    PTunedTaskModel,
    get_peft_model,
)
from ptune.errors import ConfigError, ModelError
from task_models import DECODERS, SEQUENCES, SPANS, STATES, TOKENS, VIRTUAL, WORDS, make, make_writer, padded, texts

CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def _batch(family: str, kind: str, side: str = "left") -> dict[str, torch.Tensor]:
    ids, mask, starts = padded(texts(), side, 0 if family in DECODERS else 1)
    batch = {"input_ids": ids, "attention_mask": mask}
    if kind == SPANS:
        at = torch.tensor(starts)
        return {**batch, "start_positions": at + 1, "end_positions": at + 2}
    if kind == SEQUENCES:
        return {**batch, "labels": torch.tensor([0, 2, 1, 1])}
    return {**batch, "labels": torch.where(mask.bool(), ids % 3, -100)}


def _row(batch: dict[str, torch.Tensor], at: int) -> dict[str, torch.Tensor]:
    """One row without its padding."""
    kept = batch["attention_mask"][at].bool()
    first = int(kept.to(torch.int8).argmax())
    wide = {name: value[at : at + 1, kept] for name, value in batch.items() if value.dim() > 1}
    narrow = {name: value[at : at + 1] for name, value in batch.items() if value.dim() == 1}
    return {**wide, **{name: value - (first if "positions" in name else 0) for name, value in narrow.items()}}


@pytest.mark.parametrize("kind", [SEQUENCES, TOKENS, SPANS])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_batch_is_its_rows_one_by_one(family: str, kind: str) -> None:
    """The loss too, and its gradient: rows are padded on the left, and labels counted over all of them."""
    model = PTunedTaskModel(make(family, kind), PromptTuningConfig(num_virtual_tokens=VIRTUAL)).eval()
    batch, encoder = _batch(family, kind), model.prompts["default"]
    count = 4 if kind != TOKENS else int((batch["labels"] != -100).sum())
    model(**batch, num_items_in_batch=count).loss.backward()
    together = [parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None]
    model.zero_grad()
    whole = model(**batch, num_items_in_batch=count).loss
    alone = [model(**_row(batch, at), num_items_in_batch=count).loss for at in range(4)]
    torch.testing.assert_close(torch.stack(alone).sum(), whole, **CLOSE)
    torch.stack(alone).sum().backward()
    for parameter, grad in zip(encoder.parameters(), together, strict=True):
        torch.testing.assert_close(parameter.grad, grad, **CLOSE)


@pytest.mark.parametrize("kind", [SEQUENCES, TOKENS, SPANS])
def test_nothing_supervised_is_a_loss_of_zero(kind: str) -> None:
    model = PTunedTaskModel(make("bert", kind), PromptTuningConfig(num_virtual_tokens=VIRTUAL))
    batch = _batch("bert", kind)
    nothing = {
        name: torch.full_like(value, -100)
        for name, value in batch.items()
        if name not in ("input_ids", "attention_mask")
    }
    loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **nothing).loss
    loss.backward()
    assert float(loss) == 0
    assert all(float(one.grad.abs().sum()) == 0 for one in model.prompts.parameters())


def test_a_place_outside_the_text_has_no_part_in_the_loss() -> None:
    """Beyond the row or before it, and at its padding too."""
    model = PTunedTaskModel(make("bert", SPANS), PromptTuningConfig(num_virtual_tokens=VIRTUAL)).eval()
    batch = _batch("bert", SPANS)
    outside = batch["end_positions"].clone()
    outside[:3] = torch.tensor([-1, 99, 0])  # column 0 of the third row is padding
    with torch.no_grad():
        found = model(**{**batch, "end_positions": outside}).loss
        ends = model(**_row({**batch, "end_positions": outside}, 3))
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    starts = F.cross_entropy(logits.start_logits, batch["start_positions"])
    last = F.cross_entropy(logits.end_logits[3:], batch["end_positions"][3:])
    torch.testing.assert_close(found, (starts + last) / 2, **CLOSE)
    assert bool(torch.isfinite(ends.loss))


def test_an_encoder_decoder_wants_answers() -> None:
    model = PTunedTaskModel(make_writer("t5"), PromptTuningConfig(num_virtual_tokens=VIRTUAL)).eval()
    with pytest.raises(ConfigError, match=r"neither labels nor decoder_input_ids\. Give one of them, or call generate"):
        model(input_ids=texts()[0][None])


@pytest.mark.parametrize(("labels", "kind"), [(1, "regression"), (3, "several labels a row")])
def test_other_losses_of_a_classifier_are_its_class_s(labels: int, kind: str) -> None:
    base = make("bert", SEQUENCES, num_labels=labels)
    model = PTunedTaskModel(base, PromptTuningConfig(num_virtual_tokens=VIRTUAL)).eval()
    batch = _batch("bert", SEQUENCES)
    wanted = torch.rand(4, labels).round(decimals=1)
    output = model(**{**batch, "labels": wanted})
    own = F.mse_loss if labels == 1 else F.binary_cross_entropy_with_logits
    torch.testing.assert_close(output.loss, own(output.logits, wanted), **CLOSE)
    assert kind


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_frozen_model_stays_as_it_is(family: str) -> None:
    base = make(family, SEQUENCES)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = PTunedTaskModel(base, PromptEncoderConfig(num_virtual_tokens=VIRTUAL)).train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.1)
    losses = []
    for _ in range(8):
        loss = model(**_batch(family, SEQUENCES)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert trained
    assert all(name.startswith("prompts.default.") for name in trained)
    assert any(".head." in name for name in trained)


@pytest.mark.parametrize("family", ["bert", "llama"])
@torch.no_grad()
def test_rows_with_prompts_and_heads_of_their_own(family: str) -> None:
    model = PTunedTaskModel(make(family, SEQUENCES), PromptTuningConfig(num_virtual_tokens=VIRTUAL)).eval()
    model.add_prompt("other", PromptTuningConfig(num_virtual_tokens=2))
    for parameter in model.prompts["other"].parameters():
        parameter.add_(0.3)
    ids, mask, _ = padded(texts(), "left", model.base.config.pad_token_id)
    names = ["default", "other", "other", "default"]
    mixed = model(input_ids=ids, attention_mask=mask, prompt_names=names).logits
    alone = torch.cat(
        [model(input_ids=row[None], prompt_names=[name]).logits for row, name in zip(texts(), names, strict=True)]
    )
    torch.testing.assert_close(mixed, alone, **CLOSE)
    assert not torch.allclose(mixed, model(input_ids=ids, attention_mask=mask).logits)


@pytest.mark.parametrize("family", ["bert", "llama"])
@torch.no_grad()
def test_the_bare_model(family: str) -> None:
    base = make(family, SEQUENCES)
    model = PTunedTaskModel(base, PromptTuningConfig(num_virtual_tokens=VIRTUAL)).eval()
    batch = _batch(family, SEQUENCES, "right")
    with model.disable_adapter():
        found = model(**batch)
    wanted = base(**batch)
    torch.testing.assert_close(found.logits, wanted.logits)
    torch.testing.assert_close(found.loss, wanted.loss)


@torch.no_grad()
def test_a_trainer_may_put_the_model_into_bfloat16() -> None:
    model = PTunedTaskModel(make("bert", SEQUENCES), PromptTuningConfig(num_virtual_tokens=VIRTUAL)).eval()
    batch = _batch("bert", SEQUENCES)
    wanted = model(**batch).logits
    model.to(torch.bfloat16)
    assert {one.dtype for one in model.prompts.parameters()} == {torch.float32}
    torch.testing.assert_close(model(**batch).logits, wanted, rtol=0, atol=0.02)


def test_what_is_refused() -> None:
    bert, llama = make("bert", SEQUENCES), make("llama", SEQUENCES)
    vectors, deep = PromptTuningConfig(num_virtual_tokens=2), PrefixTuningConfig(num_virtual_tokens=2)
    with pytest.raises(
        ConfigError,
        match=r"task_type=TOKEN_CLS, but a Bert.* is for SEQ_CLS.*AutoModelForTokenClassification",
    ):
        PTunedTaskModel(bert, PromptTuningConfig(task_type="TOKEN_CLS"))
    with pytest.raises(ConfigError, match=r"modules_to_save names 'encoder', which .*It has classifier\."):
        PTunedTaskModel(bert, PromptTuningConfig(modules_to_save=["encoder"]))
    with pytest.raises(ModelError, match=r"LlamaForSeq.* is no causal language model.*PTunedTaskModel"):
        PTunedModel(llama, vectors)
    causal = LlamaForCausalLM(llama.config)
    with pytest.raises(ModelError, match=r"causal language model\. Wrap it with PTunedModel"):
        PTunedTaskModel(causal, vectors)
    with pytest.raises(ConfigError, match="num_virtual_tokens=64 leaves no room in the model's context of 64"):
        PTunedTaskModel(bert, PromptTuningConfig(num_virtual_tokens=64))
    model = PTunedTaskModel(bert, vectors).eval()
    ids = texts()[0][None]
    with pytest.raises(ModelError, match="2 virtual tokens and 70 text tokens exceed the model's context of 64"):
        model(input_ids=ids.repeat(1, 10))
    with pytest.raises(ModelError, match="forward takes no position_ids"):
        model(input_ids=ids, position_ids=torch.arange(7)[None])
    with pytest.raises(ConfigError, match="row 0 of the batch has no tokens"):
        model(input_ids=ids, attention_mask=torch.zeros_like(ids))
    with pytest.raises(ModelError, match="a model for SEQ_CLS writes no answers"):
        model.generate(ids)
    model.add_prompt("deep", deep)
    with pytest.raises(ConfigError, match="keys and values cannot stand in one batch with rows behind vectors"):
        model(input_ids=ids.repeat(2, 1), prompt_names=["default", "deep"])
    with pytest.raises(ConfigError, match="task_type=CAUSAL_LM, but the model is wrapped for SEQ_CLS"):
        model.add_prompt("other", PromptTuningConfig(task_type="CAUSAL_LM"))
    with pytest.raises(ConfigError, match="task_type=SEQ_2_SEQ_LM, but a BertModel is for FEATURE_EXTRACTION"):
        get_peft_model(make("bert", STATES), PromptTuningConfig(task_type="SEQ_2_SEQ_LM"))


@pytest.mark.parametrize("family", ["t5", "bart"])
@torch.no_grad()
def test_answers_of_an_encoder_decoder_are_those_of_the_row_alone(family: str) -> None:
    base = make_writer(family)
    model = PTunedTaskModel(base, PromptTuningConfig(num_virtual_tokens=VIRTUAL)).eval()
    tokens = torch.arange(20, 20 + VIRTUAL)
    model.prompts["default"].embedding.weight.copy_(base.get_input_embeddings()(tokens))  # type: ignore[union-attr, operator]
    model.add_prompt("deep", PrefixTuningConfig(num_virtual_tokens=VIRTUAL))
    ids, mask, _ = padded(texts(), "left", 1)
    how = {"max_new_tokens": 8, "do_sample": False}
    found = model.generate(ids, attention_mask=mask, **how)
    for row, answer in zip(texts(), found, strict=True):
        wanted = base.generate(torch.cat([tokens, row])[None], **how)[0]  # type: ignore[operator]
        assert torch.equal(answer[: len(wanted)], wanted)
    deep = model.generate(ids, attention_mask=mask, prompt_names="deep", **how)
    for row, answer in zip(texts(), deep, strict=True):
        alone = model.generate(row[None], prompt_names="deep", **how)[0]
        assert torch.equal(answer[: len(alone)], alone)
    labels = found[:, 1:]
    both_ways = [
        model(input_ids=ids, attention_mask=mask, labels=labels, decoder_attention_mask=given, prompt_names="deep").loss
        for given in (None, torch.ones_like(labels))
    ]
    torch.testing.assert_close(*both_ways)
    with model.disable_adapter():
        assert torch.equal(model.generate(texts()[0][None], **how), base.generate(texts()[0][None], **how))  # type: ignore[operator]


def test_a_masked_model_learns_the_words_at_its_masks() -> None:
    model = PTunedTaskModel(make("bert", WORDS), PromptTuningConfig(num_virtual_tokens=VIRTUAL)).train()
    assert model.prompts["default"].head is None
    batch = _batch("bert", TOKENS)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    loss = model(**batch).loss
    places = batch["labels"] != -100
    torch.testing.assert_close(loss, F.cross_entropy(logits[places], batch["labels"][places]), rtol=0.2, atol=0.2)
