"""Encoder-decoders: rows as if alone, PEFT's loss and answers, keys and values of the decoder's own layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ptune import PrefixTuningConfig, PromptTuningConfig
from ptune.config import TaskType
from ptune.errors import ConfigError, ModelError
from ptune.model.task_model import PTunedTaskModel
from ptune.saved.peft import own_layers
from tasks.peft_pairs import P, pair, pefts, run
from tasks.wide_models import (
    ANSWERS,
    ENCODER_DECODERS,
    HIDDEN,
    behind_tokens,
    build,
    close,
    labelled,
    padded,
    put_tokens,
    texts,
    tokens,
)

TASK = TaskType.SEQ_2_SEQ_LM
PROMPT = tokens(4, seed=7)
SIDES = ("right", "left")
LAYERS = {"t5": ("num_layers", "num_decoder_layers"), "bart": ("encoder_layers", "decoder_layers")}
GREEDY = {"max_new_tokens": 8, "do_sample": False}


def deep(name: str, *, seed: int = 5, count: int = 4, **overrides: Any) -> PTunedTaskModel:
    """A model behind random keys and values, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PTunedTaskModel(build(name, TASK, **overrides), PrefixTuningConfig(num_virtual_tokens=count)).eval()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_every_row_is_as_if_alone_behind_real_tokens(name: str, side: str) -> None:
    """Logits, and the loss as the bare model has it of one row."""
    model, bare, given = behind_tokens(name, TASK, PROMPT), build(name, TASK), labelled(name, TASK, side)
    with torch.no_grad():
        output = model(**given)
        total = 0.0
        for at, row in enumerate(texts()):
            labels = given["labels"][at][: ANSWERS[at]][None]
            alone = bare(torch.cat([PROMPT, row])[None], labels=labels)
            assert close(output.logits[at, : ANSWERS[at]], alone.logits[0]), at
            one = model(row[None], labels=labels).loss
            assert float(one) == pytest.approx(float(alone.loss), rel=1e-5)
            total += float(one) * ANSWERS[at]
    assert float(output.loss) == pytest.approx(total / sum(ANSWERS), rel=1e-5)
    assert output.encoder_last_hidden_state.shape[2] == HIDDEN
    assert "past_key_values" not in output


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_every_row_is_as_if_alone_behind_keys_and_values(name: str, side: str) -> None:
    model, given = deep(name), labelled(name, TASK, side)
    with torch.no_grad():
        output = model(**given)
        bare = build(name, TASK)(**given)
        assert not close(output.logits, bare.logits, 0.05)
        for at, row in enumerate(texts()):
            labels = given["labels"][at][: ANSWERS[at]][None]
            assert close(output.logits[at, : ANSWERS[at]], model(row[None], labels=labels).logits[0]), at


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_keys_and_values_of_real_tokens(name: str) -> None:
    """Those that the decoder itself keeps of the first tokens of an answer: what follows is as behind them."""
    bare, model = build(name, TASK), deep(name)
    text, before, after = tokens(7, seed=1)[None], tokens(4, seed=2), tokens(5, seed=3)
    with torch.no_grad():
        kept = bare(text, decoder_input_ids=before[None], use_cache=True).past_key_values.self_attention_cache
        rows = [part[0].transpose(0, 1).flatten(1) for layer in kept.layers for part in (layer.keys, layer.values)]
        model.prompts["default"].embedding.weight.copy_(torch.cat(rows, dim=1))
        wanted = bare(text, decoder_input_ids=torch.cat([before, after])[None]).logits[:, 4:]
        assert close(model(text, decoder_input_ids=after[None]).logits, wanted)


@pytest.mark.parametrize("kind", ["prefix", "projection"])
@pytest.mark.parametrize(("name", "layers"), [("t5", 2), ("t5", 4), ("bart", 3), ("bart", 2)])
def test_pefts_keys_and_values(name: str, layers: int, kind: str) -> None:
    """PEFT's row for an encoder-decoder is doubled and cut into four: see `own_layers`. So are its gradients.

    It takes as many layers as the encoder has.
    """
    sizes = dict.fromkeys(LAYERS[name], layers)
    theirs = pefts(name, TASK, kind, **sizes)
    rows = theirs.prompt_encoder["default"](torch.arange(P)).detach()
    model = deep(name, **sizes)
    with torch.no_grad():
        model.prompts["default"].embedding.weight.copy_(own_layers(rows, layers))
        given = labelled(name, TASK)
        found, wanted = model(**given), run(theirs, **given)
        assert float(found.loss) == pytest.approx(float(wanted.loss), rel=1e-5)
        assert close(found.logits, wanted.logits)
        text = {key: given[key] for key in ("input_ids", "attention_mask")}
        for options in (GREEDY, {"max_new_tokens": 8, "num_beams": 3, "do_sample": False}):
            assert torch.equal(model.generate(**text, **options), run(theirs.generate, **text, **options))


def test_own_layers_by_hand() -> None:
    """Layer `i` of a decoder with `L` layers gets what PEFT keeps for layer `2i` modulo `L`."""
    rows = torch.arange(3 * 2 * 2.0).view(1, -1)
    first, second, third = rows.view(3, 4)
    assert torch.equal(own_layers(rows, 3), torch.cat([first, third, second])[None])
    assert torch.equal(own_layers(rows.view(1, -1), 2)[0], torch.cat([rows[0, :6]] * 2))


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_gradient_of_pefts_keys_and_values(name: str) -> None:
    """With an odd number of layers every one of PEFT's is used, in another order."""
    sizes = dict.fromkeys(LAYERS[name], 3)
    theirs, model, given = pefts(name, TASK, "prefix", **sizes), deep(name, **sizes), labelled(name, TASK)
    weight = theirs.prompt_encoder["default"].embedding.weight
    model.prompts["default"].embedding.weight.data.copy_(own_layers(weight.detach(), 3))
    model(**given).loss.backward()
    run(theirs, **given).loss.backward()
    assert close(model.prompts["default"].embedding.weight.grad, own_layers(weight.grad, 3), 1e-4)


@pytest.mark.parametrize("kind", ["table", "mlp", "lstm"])
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_answers_behind_pefts_vectors(name: str, kind: str) -> None:
    mine, theirs = pair(name, TASK, kind)
    text = {key: value for key, value in labelled(name, TASK).items() if key != "labels"}
    for options in (GREEDY, {"max_new_tokens": 8, "num_beams": 3, "do_sample": False}):
        assert torch.equal(mine.generate(**text, **options), run(theirs.generate, **text, **options))


def same_answer(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two answers are the same up to padding behind them."""
    shorter = min(len(one), len(other))
    rest = [*one[shorter:].tolist(), *other[shorter:].tolist()]
    return torch.equal(one[:shorter], other[:shorter]) and set(rest) <= {0}


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", ["vectors", "keys"])
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_a_rows_answer_alone(name: str, kind: str, side: str, beams: int) -> None:
    """And behind real tokens, the bare model's."""
    model = behind_tokens(name, TASK, PROMPT) if kind == "vectors" else deep(name)
    bare, given = build(name, TASK), labelled(name, TASK, side)
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams}
    together = model.generate(given["input_ids"], attention_mask=given["attention_mask"], **options)
    for at, row in enumerate(texts()):
        assert same_answer(together[at], model.generate(row[None], **options)[0]), at
        if kind == "vectors":
            assert same_answer(together[at], bare.generate(torch.cat([PROMPT, row])[None], **options)[0]), at
    assert len({tuple(row.tolist()) for row in together}) > 1


@pytest.mark.parametrize("kind", ["vectors", "keys"])
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_greedy_answers_are_what_forward_finds_likely(name: str, kind: str) -> None:
    """Every step of `generate` stands behind the prompt, not the first alone."""
    model = behind_tokens(name, TASK, PROMPT) if kind == "vectors" else deep(name)
    row = tokens(6, seed=4)[None]
    answer = model.generate(row, **GREEDY, eos_token_id=None)[0]
    assert len(answer) == 9
    with torch.no_grad():
        likely = model(row, decoder_input_ids=answer[None, :-1]).logits[0].argmax(dim=-1)
    assert torch.equal(likely, answer[1:])


@pytest.mark.parametrize("kind", ["vectors", "keys"])
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_a_mask_of_the_answer(name: str, kind: str) -> None:
    """Padding in what stands before the answer is not seen; the prompt is."""
    model = behind_tokens(name, TASK, PROMPT) if kind == "vectors" else deep(name)
    row, answer = tokens(6, seed=4)[None], tokens(5, seed=5)[None]
    padded_answer = torch.cat([answer, tokens(3, seed=6)[None]], dim=1)
    mask = torch.tensor([[1] * 5 + [0] * 3])
    with torch.no_grad():
        wanted = model(row, decoder_input_ids=answer).logits
        found = model(row, decoder_input_ids=padded_answer, decoder_attention_mask=mask).logits
        assert close(found[:, :5], wanted)
        hidden = torch.ones(1, 8, dtype=torch.long)
        hidden[0, 1] = 0
        other = model(row, decoder_input_ids=padded_answer, decoder_attention_mask=hidden).logits
        open_ = model(row, decoder_input_ids=padded_answer).logits
        assert close(other[:, :1], open_[:, :1])
        assert not close(other[:, 2:], open_[:, 2:], 1e-4)
        embeds = model.base.get_input_embeddings()(answer)
        scale = HIDDEN**0.5 if getattr(model.base.config, "scale_embedding", False) else 1.0
        assert close(model(row, decoder_inputs_embeds=embeds * scale).logits, wanted)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_prompts_of_different_lengths_in_a_batch(name: str, side: str) -> None:
    """Of vectors, one for each row, or none."""
    model = behind_tokens(name, TASK, PROMPT)
    put_tokens(model, "short", PROMPT[:2])
    given, names = labelled(name, TASK, side), ["short", "default", None, "short", "default"]
    with torch.no_grad():
        output = model(**given, prompt_names=names)
        text = {key: given[key] for key in ("input_ids", "attention_mask")}
        answers = model.generate(**text, prompt_names=names, **GREEDY)
        for at, row in enumerate(texts()):
            labels = given["labels"][at][: ANSWERS[at]][None]
            alone = model(row[None], labels=labels, prompt_names=[names[at]])
            assert close(output.logits[at, : ANSWERS[at]], alone.logits[0]), at
            assert same_answer(answers[at], model.generate(row[None], prompt_names=[names[at]], **GREEDY)[0]), at
        bare = build(name, TASK)(texts()[2][None], labels=given["labels"][2][:1][None])
        assert close(output.logits[2, :1], bare.logits[0])


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_deep_prompts_in_a_batch(name: str) -> None:
    """Of one length they stand side by side; others are refused, since answers would begin at different positions."""
    model = deep(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        model.add_prompt("other", PrefixTuningConfig(num_virtual_tokens=4))
        model.add_prompt("long", PrefixTuningConfig(num_virtual_tokens=6))
        model.add_prompt("vectors", PromptTuningConfig(num_virtual_tokens=4))
    given = labelled(name, TASK)
    names = ["other", "default", "other", "other", "default"]
    with torch.no_grad():
        output = model(**given, prompt_names=names)
        for at, row in enumerate(texts()):
            labels = given["labels"][at][: ANSWERS[at]][None]
            alone = model(row[None], labels=labels, prompt_names=names[at])
            assert close(output.logits[at, : ANSWERS[at]], alone.logits[0]), at
    for with_other in (["long", *names[1:]], [None, *names[1:]]):
        with pytest.raises(ModelError, match="deep prompts of different lengths") as caught:
            model(**given, prompt_names=with_other)
        assert "one length" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="keys and values cannot stand in one batch with rows behind vectors"):
        model(**given, prompt_names=["vectors", *names[1:]])


def test_a_cache_is_needed_behind_keys_and_values() -> None:
    with pytest.raises(ModelError, match="needs a cache") as caught:
        deep("t5").generate(tokens(5)[None], use_cache=False, **GREEDY)
    assert "Leave use_cache out" in str(caught.value.hint)
    behind_tokens("t5", TASK, PROMPT).generate(tokens(5)[None], use_cache=False, **GREEDY)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_generate_as_others_call_it(name: str) -> None:
    """`inputs`, embeddings, and without the prompt."""
    model, row = behind_tokens(name, TASK, PROMPT), tokens(6, seed=4)[None]
    wanted = model.generate(row, **GREEDY)
    assert torch.equal(model.generate(inputs=row, **GREEDY), wanted)
    embeds = model.base.get_input_embeddings()(row)
    assert torch.equal(model.generate(inputs_embeds=embeds, **GREEDY), wanted)
    assert torch.equal(model.generate(row, adapter_names=["default"], **GREEDY), wanted)
    with model.disable_adapter():
        assert torch.equal(model.generate(row, **GREEDY), build(name, TASK).generate(row, **GREEDY))
    sampled = model.generate(row, do_sample=True, num_return_sequences=3, max_new_tokens=4)
    assert len(sampled) == 3


def test_sampled_answers_behind_keys_and_values() -> None:
    """Several of a row: the prompt is repeated for each."""
    assert len(deep("t5").generate(tokens(6)[None], do_sample=True, num_return_sequences=3, max_new_tokens=4)) == 3


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_virtual_tokens_inside_the_text(name: str) -> None:
    model = behind_tokens(name, TASK, PROMPT)
    put_tokens(model, "inside", PROMPT, tokens_in_text=2)
    plain = [row for row in texts() if len(row) > 1]
    rows = [torch.cat([row[:1], torch.tensor([-3]), row[1:], torch.tensor([-4])]) for row in plain]
    ids, mask = padded(rows, "left")
    answers = model.generate(ids, attention_mask=mask, prompt_names="inside", **GREEDY)
    for at, row in enumerate(rows):
        whole = torch.cat([PROMPT[:2], torch.where(row < 0, PROMPT[(-1 - row).clamp_min(0)], row)])
        assert same_answer(answers[at], build(name, TASK).generate(whole[None], **GREEDY)[0]), at
