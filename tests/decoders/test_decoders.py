"""Every decoder is right, or refused in one line: the most used in the quick tests, all of them in the slow ones."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

import architecture_sweep
from decoders.small import IMPOSSIBLE, MODEL_TYPES, small_decoder
from decoders.sweep import Finding, sweep
from ptune import PromptEncoderConfig, PTunedModel
from ptune.errors import ModelError

TABLED = json.loads(architecture_sweep.RESULT.read_text(encoding="utf-8"))["versions"]["transformers"]
"""The version that `docs/architectures.md` tells of."""
QUICK = {
    # mixtures of experts
    "mixtral": {"prefix", "packed"},
    "qwen3_moe": {"prefix", "packed"},
    "phimoe": {"prefix"},
    # latent attention
    "deepseek_v3": {"prefix", "packed"},
    "minicpm3": {"prefix", "packed"},
    # attention sinks
    "gpt_oss": {"prefix", "packed"},
    # linear attention or a running state, with attention layers among them
    "qwen3_next": {"concatenation"},
    "jamba": {"concatenation"},
    # a state and no attention
    "rwkv": {"concatenation"},
    # token ids beside embeddings
    "gemma4_text": {"concatenation"},
    # positions that know no position ids, or begin elsewhere
    "bart": {"prefix"},
    "roberta": {"prefix"},
    # sliding windows
    "gemma2": {"prefix"},
    "gpt_neo": {"prefix"},
    # an encoder that is told to be a decoder
    "bert": {"prefix", "packed"},
}
REFUSED = {
    "xlnet": "is not a causal language model: it sees the text ahead",
    "prophetnet": "is not a causal language model: it sees the text ahead",
    "cpmant": "is not a causal language model: it sees the text ahead",
    "xlm": "XLMWithLMHeadModel, tried with an answer, fails with AssertionError",
}
REFUSED_ELSEWHERE = {"cpmant": "CpmAntForCausalLM cannot be run on virtual tokens"}
"""By other versions of transformers for another reason: the same fault stops them earlier."""


def _assert_right_or_refused(found: Finding) -> None:
    faults = [*found.having("wrong"), *found.having("error")]
    assert not faults, "\n".join(f"{fault.path}, {fault.what}: {fault.detail}" for fault in faults)
    wanted = REFUSED.get(found.model_type)
    for check in found.having("refused"):
        assert wanted is not None, check.detail
        other = REFUSED_ELSEWHERE.get(found.model_type, wanted) if transformers.__version__ != TABLED else wanted
        assert wanted in check.detail or other in check.detail
    assert bool(found.having("refused")) is (wanted is not None)


@pytest.mark.parametrize("model_type", QUICK)
def test_the_most_used_ones_are_right(model_type: str) -> None:
    if model_type not in MODEL_TYPES:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    found = sweep(model_type)
    _assert_right_or_refused(found)
    if transformers.__version__ == TABLED:
        assert set(found.paths) == QUICK[model_type]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name not in {*QUICK, *IMPOSSIBLE}])
def test_every_other_one_is_right_or_refused(model_type: str) -> None:
    _assert_right_or_refused(sweep(model_type))


def test_what_is_refused_is_refused_before_anything_else() -> None:
    with pytest.raises(ModelError, match=REFUSED["xlnet"]):
        PTunedModel(small_decoder("xlnet"))


def test_an_encoder_says_how_it_becomes_a_decoder() -> None:
    with pytest.raises(ModelError, match="is_decoder=True"):
        PTunedModel(small_decoder("bert", is_decoder=False))


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_the_routers_balance_is_no_part_of_the_loss(model_type: str) -> None:
    """It would pull at weights that are frozen; what is left out is said, and the answers' loss is the same."""
    losses = []
    for asked in (False, True):
        base = small_decoder(model_type, output_router_logits=asked, router_aux_loss_coef=10.0)
        torch.manual_seed(0)
        model = PTunedModel(base, PromptEncoderConfig(num_virtual_tokens=3)).train()
        assert any("load-balancing loss is left out" in note for note in model.capability.notes) is asked
        ids = torch.arange(3, 15).view(2, 6)
        for packs in (True, False):
            model.pack_batches = packs
            losses.append(float(model(ids, labels=ids).loss.detach()))
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)


@pytest.mark.parametrize("model_type", IMPOSSIBLE)
def test_what_cannot_be_made_still_cannot(model_type: str) -> None:
    """An upgrade of transformers may make one possible: then it goes into the sweep."""
    if model_type == "reformer":
        return
    with pytest.raises((AssertionError, AttributeError, ImportError, ValueError, StrictDataclassError)):
        small_decoder(model_type)
