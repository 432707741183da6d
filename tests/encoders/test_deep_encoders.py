"""Encoders of keys and values: PEFT's parameters and output, and every start that they can be given."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import pytest
import torch
from peft.tuners.cartridge.model import CartridgeEncoder
from peft.tuners.prefix_tuning.model import PrefixEncoder

from ptune.encoders import DEEP_ENCODERS, build_deep_encoder
from ptune.errors import ConfigError

P, WIDTH, L, H = 7, 24, 3, 4


def build(kind: str, **values: Any) -> Any:
    return build_deep_encoder(kind, num_virtual_tokens=P, token_dim=WIDTH, layers=L, heads=H, **values)


def sizes(**values: Any) -> dict[str, Any]:
    own = {"num_virtual_tokens": P, "token_dim": WIDTH, "num_layers": L, "num_attention_heads": H}
    return {**own, "num_transformer_submodules": 1, **values}


@pytest.mark.parametrize("hidden", [None, 10])
def test_the_same_weights_give_pefts_keys_and_values(hidden: int | None) -> None:
    for kind, projects in (("prefix", False), ("prefix-mlp", True)):
        config = peft.PrefixTuningConfig(**sizes(prefix_projection=projects, encoder_hidden_size=hidden or WIDTH))
        theirs, mine = PrefixEncoder(config), build(kind, hidden_size=hidden)
        assert sum(one.numel() for one in mine.parameters()) == sum(one.numel() for one in theirs.parameters())
        mine.load_state_dict(theirs.state_dict(), strict=True)
        with torch.no_grad():
            torch.testing.assert_close(mine(), theirs(torch.arange(P)[None])[0], rtol=1e-6, atol=1e-7)
        assert mine().shape == (P, 2 * L * WIDTH)


@pytest.mark.parametrize("frozen", [0, 1, P - 1])
def test_frozen_rows_are_those_of_a_cartridge(frozen: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = CartridgeEncoder(peft.CartridgeConfig(**sizes(num_frozen_tokens=frozen)))
    mine = build("prefix", num_frozen_tokens=frozen)
    rows = theirs.weight.detach()
    mine.start_at(rows)
    mine.requires_grad_(True)  # as a model does with the prompt that trains
    assert torch.equal(mine(), rows)
    trained = sum(one.numel() for one in theirs.parameters() if one.requires_grad)
    assert sum(one.numel() for one in mine.parameters() if one.requires_grad) == trained
    again = build("prefix", num_frozen_tokens=frozen)
    again.load_state_dict(mine.state_dict(), strict=True)
    assert torch.equal(again(), rows)


@pytest.mark.parametrize("kind", DEEP_ENCODERS)
def test_starts(kind: str) -> None:
    torch.manual_seed(0)
    rows = torch.randn(P, 2 * L * WIDTH) * torch.logspace(-2, 2, 2 * L * WIDTH)
    encoder = build(kind)
    count = sum(one.numel() for one in encoder.parameters())
    encoder.start_at(rows)
    torch.testing.assert_close(encoder.baked(), rows, rtol=0, atol=1e-4 * float(rows.std()))
    encoder.start_at_zero()
    assert not bool(encoder.baked().any())
    encoder = build(kind)
    deviations = torch.tensor([0.1, 1.0, 3.0, 0.5, 20.0, 2.0])
    encoder.start_at_random(deviations)
    found = encoder.baked().view(P, 2 * L, WIDTH).transpose(0, 1).flatten(1).std(1)
    torch.testing.assert_close(found, deviations, rtol=0.2 if kind == "prefix" else 1e-4, atol=0)
    encoder().square().sum().backward()
    assert all(bool(one.grad.any()) for one in encoder.parameters())
    assert sum(one.numel() for one in encoder.parameters()) == count


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_frozen_tokens=7 leaves none of the 7"):
        build("prefix", num_frozen_tokens=P)
    with pytest.raises(ConfigError, match=r"'prefix-mlp'.*Known: prefix, prefix-mlp"):
        build("prefix-mpl")
    with pytest.raises(ConfigError, match="whose last layer reads 3 numbers cannot start from 7 given vectors"):
        build("prefix-mlp", hidden_size=3).start_at(torch.randn(P, 2 * L * WIDTH))
