"""What an architecture can do, held against what it does when run."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    Llama4ForCausalLM,
    Llama4TextConfig,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)
from transformers.cache_utils import DynamicCache

from architectures import ARCHITECTURES, CONTEXT, WINDOW, build
from ptune.frozen.capability import context_length, prefix_capability

WITH_WINDOW = {"mistral", "gemma3"}
WITHOUT_POSITION_IDS = {"bloom", "mamba"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_capability_of_each_architecture(name: str) -> None:
    found = prefix_capability(ARCHITECTURES[name]())
    assert found.prefix is (name != "mamba")
    assert found.sliding_window == (WINDOW if name in WITH_WINDOW else None)
    assert found.takes_position_ids is (name not in WITHOUT_POSITION_IDS)
    assert type(ARCHITECTURES[name]()).__name__ in found.reason


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "mamba"])
def test_a_prefix_that_can_be_taken_gives_the_same_logits(name: str) -> None:
    """The claim `prefix=True`, run: text after a filled cache against prefix and text in one go, beyond the window."""
    model = ARCHITECTURES[name]()
    ids = torch.randint(3, 128, (2, 14), generator=torch.Generator().manual_seed(1))
    vectors = model.get_input_embeddings()(ids)
    with torch.no_grad():
        whole = model(inputs_embeds=vectors).logits
        cache = DynamicCache(config=model.config)
        model(inputs_embeds=vectors[:, :5], past_key_values=cache, use_cache=True)
        rest = model(inputs_embeds=vectors[:, 5:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(rest, whole[:, 5:], atol=1e-4, rtol=1e-4)


def test_the_state_of_mamba_is_no_prefix() -> None:
    found = prefix_capability(build("mamba"))
    assert "running state" in found.reason
    assert "concatenated" in found.reason


def test_the_smallest_window_counts_and_none_means_none() -> None:
    assert prefix_capability(build("mistral", sliding_window=None)).sliding_window is None
    assert prefix_capability(build("mistral", sliding_window=5)).sliding_window == 5
    everywhere = build("gemma3", layer_types=["full_attention"] * 4)
    assert prefix_capability(everywhere).sliding_window is None


def _recurrent() -> PreTrainedModel:
    return RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(
            num_hidden_layers=3,
            vocab_size=32,
            hidden_size=32,
            intermediate_size=64,
            num_attention_heads=4,
            lru_width=32,
        )
    )


def _chunked() -> PreTrainedModel:
    return Llama4ForCausalLM(
        Llama4TextConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=32,
            intermediate_size_mlp=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            num_local_experts=2,
            attention_chunk_size=4,
            pad_token_id=0,
        )
    )


@pytest.mark.parametrize(("make", "reason"), [(_recurrent, "running state"), (_chunked, "chunks")])
def test_other_caches_leave_the_concatenation_path(make: object, reason: str) -> None:
    found = prefix_capability(make())  # type: ignore[operator]
    assert not found.prefix
    assert reason in found.reason


def test_code_from_a_repository_leaves_the_concatenation_path() -> None:
    model = build("llama")
    own = type("OwnForCausalLM", (type(model),), {"__module__": "transformers_modules.acme.own"})
    model.__class__ = own
    assert not prefix_capability(model).prefix


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_context_length_of_each_architecture(name: str) -> None:
    assert context_length(ARCHITECTURES[name]()) == (None if name in {"bloom", "mamba"} else CONTEXT)


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_learned_positions_end_where_context_length_says(name: str) -> None:
    model = ARCHITECTURES[name]()
    length = context_length(model)
    assert length is not None
    with torch.no_grad():
        model(input_ids=torch.full((1, length), 5))
        with pytest.raises(IndexError):
            model(input_ids=torch.full((1, length + 1), 5))


def test_mpt_has_a_limit_in_spite_of_alibi() -> None:
    model = MptForCausalLM(MptConfig(d_model=32, n_heads=4, n_layers=1, max_seq_len=16, vocab_size=32)).eval()
    assert context_length(model) == 16
    with torch.no_grad(), pytest.raises(RuntimeError):
        model(input_ids=torch.full((1, 17), 5))
