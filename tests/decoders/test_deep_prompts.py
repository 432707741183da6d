"""Keys and values of every layer on every decoder: behind those of tokens a model says what it says behind the tokens.

A model that keeps no keys and values, or such as differ from layer to layer, is refused in one line.
"""

from __future__ import annotations

import pytest
import torch

from decoders.small import IMPOSSIBLE, MODEL_TYPES, small_decoder
from prompting import relative_error
from ptune import PrefixTuningConfig, PTunedModel
from ptune.errors import ModelError
from ptune.prefix.deep_prompts import encode_tokens

P = 5
QUICK = ("falcon", "gemma2", "gpt_oss", "mixtral", "phi3", "qwen3", "stablelm")
REFUSED = {"deepseek_v3": "of one shape", "gemma4_text": "keys and values", "mamba": "running state", "xlm": "."}


def check(model_type: str) -> str | None:
    """Why it takes none; None where it takes them, and they are right, padded and packed."""
    base = small_decoder(model_type).eval()
    try:
        model = PTunedModel(base).eval()
        model.add_prompt("trial", PrefixTuningConfig(num_virtual_tokens=P))
    except ModelError as error:
        return str(error)
    size = base.config.get_text_config(decoder=True).vocab_size
    drawn = torch.randint(3, size - 5, (1, P + 6), generator=torch.Generator().manual_seed(0))
    head, tail = drawn[:, :P], drawn[:, P:]
    config = PrefixTuningConfig(num_virtual_tokens=P)
    model.add_prompt("default", config, start=encode_tokens(base, head[0].tolist()))
    model.set_prompt("default")
    with torch.no_grad():
        wanted = base(drawn).logits[:, P:]
        assert relative_error(model(tail).logits, wanted) < 1e-4
        assert relative_error(model(tail, row_lengths=[6], return_logits=True).logits, wanted) < 1e-4
    model.train()
    model(tail, labels=tail, row_lengths=[2, 4]).loss.backward()
    assert bool(model.prompts["default"].embedding.weight.grad.any(dim=1).all())
    return None


@pytest.mark.parametrize("model_type", [*QUICK, *REFUSED])
def test_some_of_them(model_type: str) -> None:
    if model_type not in MODEL_TYPES:
        pytest.skip(f"this version of transformers has no {model_type}")
    found = check(model_type)
    assert (found is None) is (model_type in QUICK)
    assert REFUSED.get(model_type, "") in str(found)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name not in {*QUICK, *REFUSED, *IMPOSSIBLE}])
def test_all_others(model_type: str) -> None:
    check(model_type)
