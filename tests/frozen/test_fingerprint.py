"""One checkpoint, one fingerprint; another checkpoint, another."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from architectures import ARCHITECTURES, build
from ptune.errors import ModelError
from ptune.frozen.fingerprint import fingerprint, tokenizer_fingerprint
from ptune.loading.load import load_model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_float32_and_bfloat16_have_one_fingerprint(name: str) -> None:
    model = ARCHITECTURES[name]()
    before = fingerprint(model)
    assert len(before) == 32
    assert fingerprint(model.to(torch.bfloat16)) == before


def test_a_checkpoint_keeps_its_fingerprint_through_disk(tiny_model_dir: Path) -> None:
    expected = fingerprint(build("llama"))
    assert fingerprint(load_model(str(tiny_model_dir))) == expected
    assert fingerprint(load_model(str(tiny_model_dir), dtype="bfloat16")) == expected


def test_every_architecture_and_seed_has_its_own() -> None:
    models = [build(name, seed=seed) for name in ARCHITECTURES for seed in (0, 1)]
    assert len({fingerprint(model) for model in models}) == len(models)


def test_a_change_to_any_parameter_shows() -> None:
    model = build("gpt2")
    before = fingerprint(model)
    for name, parameter in model.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.mul_(1.1).add_(0.1)
        assert fingerprint(model) != before, name
        with torch.no_grad():
            parameter.copy_(kept)
    assert fingerprint(model) == before


def test_other_heads_over_the_same_weights_show() -> None:
    sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    four = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4))
    eight = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8))
    eight.load_state_dict(four.state_dict())
    assert fingerprint(four) != fingerprint(eight)


def test_freezing_does_not_show() -> None:
    model = build("llama")
    before = fingerprint(model)
    model.requires_grad_(False)
    model.train()
    assert fingerprint(model) == before


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(ModelError, match="meta"):
        fingerprint(build("llama").to("meta"))


def test_a_tokenizer_keeps_its_fingerprint(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    expected = tokenizer_fingerprint(tiny_tokenizer)
    tiny_tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert tokenizer_fingerprint(again) == expected
    again(["a", "b c d"], padding=True, truncation=True, max_length=2)
    again.padding_side = "left"
    again.pad_token = again.eos_token
    again.chat_template = "{{ messages }}"
    assert tokenizer_fingerprint(again) == expected


def test_what_a_tokenizer_does_shows(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    expected = tokenizer_fingerprint(tiny_tokenizer)
    grown = copy.deepcopy(tiny_tokenizer)
    grown.add_tokens(["<more>"])
    assert tokenizer_fingerprint(grown) != expected
    ended = copy.deepcopy(tiny_tokenizer)
    ended.eos_token = "<bos>"
    assert tokenizer_fingerprint(ended) != expected
    cut = copy.deepcopy(tiny_tokenizer)
    cut.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert tokenizer_fingerprint(cut) != expected
