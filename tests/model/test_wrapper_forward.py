"""`forward`: aligned logits and hidden states on both paths, and arguments that are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from architectures import ARCHITECTURES, build
from prompting import draw, encoder_prompt, padded, relative_error, texts, tokens_as_prompt
from ptune.errors import ConfigError, ModelError
from ptune.model.wrapper import PTunedModel

PROMPT = draw(1, 6, seed=7)[0]


@pytest.fixture
def model() -> PTunedModel:
    return encoder_prompt(build("llama"))


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hidden_states_line_up_with_the_text(name: str, prefix: bool) -> None:
    base = ARCHITECTURES[name]()
    model = tokens_as_prompt(base, PROMPT)
    model.capability = replace(model.capability, prefix=prefix and model.capability.prefix)
    rows = texts((9, 3, 12))
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        with torch.no_grad():
            output = model(ids, attention_mask=mask, output_hidden_states=True)
        for at, row in enumerate(rows):
            with torch.no_grad():
                hard = base(input_ids=torch.cat([PROMPT, row])[None], output_hidden_states=True)
            assert len(output.hidden_states) == len(hard.hidden_states)
            for mine, theirs in zip(output.hidden_states, hard.hidden_states, strict=True):
                assert mine.shape[:2] == ids.shape
                assert relative_error(mine[at][mask[at].bool()], theirs[0, len(PROMPT) :]) < 1e-5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_embeddings_in_place_of_ids(name: str) -> None:
    model = encoder_prompt(ARCHITECTURES[name]())
    ids, mask = padded(texts((9, 3)), "right")
    embeds = model.base.get_input_embeddings()(ids)
    with torch.no_grad():
        found = model(inputs_embeds=embeds, attention_mask=mask).logits
        wanted = model(ids, attention_mask=mask).logits
    assert relative_error(found, wanted) < 1e-6


def test_no_mask_is_a_mask_of_ones(model: PTunedModel) -> None:
    ids = draw(3, 5)
    assert torch.equal(model(ids).logits, model(ids, attention_mask=torch.ones_like(ids)).logits)
    assert torch.equal(model(ids).logits, model(ids, attention_mask=torch.ones(3, 5, dtype=torch.bool)).logits)


def test_no_cache_comes_back(model: PTunedModel) -> None:
    output = model(draw(1, 5), use_cache=True, return_dict=True)
    assert output.past_key_values is None
    assert output.loss is None


def test_what_has_no_meaning_behind_a_prompt_is_refused(model: PTunedModel) -> None:
    ids = draw(2, 5)
    with pytest.raises(ModelError, match="position_ids"):
        model(ids, position_ids=torch.arange(3, 8)[None])
    with pytest.raises(ModelError, match="position_ids"):
        model(ids, position_ids=torch.tensor([[0, 1, 2, 0, 2]]))
    with pytest.raises(ConfigError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ConfigError, match="exactly one of"):
        model(ids, inputs_embeds=model.base.get_input_embeddings()(ids))
    with pytest.raises(ConfigError, match=r"labels has shape \(2, 11\), the text \(2, 5\)"):
        model(ids, labels=draw(2, 11))
    with pytest.raises(ConfigError, match=r"attention_mask has shape \(2, 6\)"):
        model(ids, attention_mask=torch.ones(2, 6))
    with pytest.raises(ConfigError, match="1 names for 2 rows"):
        model(ids, prompt_names=["default"])


def test_the_frozen_model_runs_once_over_the_prompt(model: PTunedModel) -> None:
    sizes: list[tuple[int, ...]] = []
    layer = model.base.model.layers[0]
    layer.register_forward_pre_hook(lambda _module, args: sizes.append(tuple(args[0].shape[:2])))
    model(draw(5, 9))
    assert sizes == [(1, 6), (5, 9)]


def test_the_head_runs_at_supervised_positions_alone(model: PTunedModel) -> None:
    sizes: list[tuple[int, ...]] = []
    model.pack_batches = False
    model.base.lm_head.register_forward_hook(lambda _module, _args, output: sizes.append(tuple(output.shape[:2])))
    ids = draw(4, 9)
    labels = ids.clone()
    labels[:, :6] = -100
    model(ids, labels=labels, return_logits=False)
    assert sizes == [(1, 1), (1, 4 * 3)]
