"""Parameter counts and outputs of the prompt encoders ≡ PEFT's, given the same weights."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import pytest
import torch
from peft.tuners import PromptEmbedding, PromptEncoder

from ptune.encoders import ENCODERS, build_encoder
from ptune.errors import ConfigError

P, D, H = 7, 24, 40


def _peft_encoder(kind: str, **values: Any) -> torch.nn.Module:
    config = peft.PromptEncoderConfig(
        num_virtual_tokens=P,
        token_dim=D,
        num_transformer_submodules=1,
        encoder_reparameterization_type=kind.upper(),
        **{"encoder_hidden_size": H, **values},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PromptEncoder(config).eval()


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("hidden", [H, D, 8])
@pytest.mark.parametrize(("kind", "layers"), [("mlp", 2), ("lstm", 1), ("lstm", 2), ("lstm", 3)])
def test_same_weights_give_the_same_vectors(kind: str, layers: int, hidden: int) -> None:
    theirs = _peft_encoder(kind, encoder_num_layers=layers, encoder_hidden_size=hidden)
    mine = build_encoder(kind, num_virtual_tokens=P, token_dim=D, hidden_size=hidden, num_layers=layers).eval()
    assert _count(mine) == _count(theirs)
    mine.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(mine(), theirs(torch.arange(P)[None])[0], rtol=1e-6, atol=1e-7)
    assert mine().shape == (P, D)


def test_embedding_is_peft_prompt_tuning() -> None:
    config = peft.PromptTuningConfig(num_virtual_tokens=P, token_dim=D, num_transformer_submodules=1)
    theirs = PromptEmbedding(config, torch.nn.Embedding(50, D))
    mine = build_encoder("embedding", num_virtual_tokens=P, token_dim=D)
    mine.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(mine(), theirs(torch.arange(P)[None])[0])
    assert _count(mine) == P * D


def test_hidden_size_is_the_token_dimension_by_default() -> None:
    for kind in ("mlp", "lstm"):
        mine = build_encoder(kind, num_virtual_tokens=P, token_dim=D)
        assert _count(mine) == _count(_peft_encoder(kind, encoder_hidden_size=D))


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_mlp_has_the_hidden_layers_asked_for(layers: int) -> None:
    mine = build_encoder("mlp", num_virtual_tokens=P, token_dim=D, hidden_size=H, num_layers=layers)
    sizes = [(layer.in_features, layer.out_features) for layer in mine.mlp_head if isinstance(layer, torch.nn.Linear)]
    assert sizes == [(D, H), *[(H, H)] * (layers - 1), (H, D)]


@pytest.mark.parametrize(("kind", "layers"), [("mlp", 2), ("lstm", 2), ("lstm", 3), ("residual", 2)])
def test_dropout_acts_in_training_alone(kind: str, layers: int) -> None:
    torch.manual_seed(0)
    sizes = {"num_virtual_tokens": P, "token_dim": D, "hidden_size": H, "num_layers": layers}
    mine = build_encoder(kind, dropout=0.5, **sizes)
    without = build_encoder(kind, **sizes)
    for parameter in mine.parameters():
        torch.nn.init.normal_(parameter)  # the residual encoder starts with an MLP of zeros
    without.load_state_dict(mine.state_dict())
    mine.train()
    assert not torch.equal(mine(), mine())
    mine.eval()
    without.train()
    torch.testing.assert_close(mine(), without())


def test_mlp_dropout_drops_that_share_of_the_hidden_units() -> None:
    mine = build_encoder("mlp", num_virtual_tokens=50, token_dim=D, hidden_size=200, num_layers=1, dropout=0.3).train()
    seen = []
    mine.output_layer().register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    torch.nn.init.constant_(mine.mlp_head[0].bias, 100.0)  # no unit is off by itself
    mine()
    assert abs(float((seen[0] == 0).float().mean()) - 0.3) < 0.03


def test_lstm_dropout_of_one_layer_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="no effect"):
        build_encoder("lstm", num_virtual_tokens=P, token_dim=D, num_layers=1, dropout=0.1)


@pytest.mark.parametrize("hidden", [D, 5])
def test_residual_is_exactly_its_table_before_training(hidden: int) -> None:
    mine = build_encoder("residual", num_virtual_tokens=P, token_dim=D, hidden_size=hidden)
    assert torch.equal(mine(), mine.embedding.weight)
    assert _count(mine) == P * D + 2 * D + D * hidden + hidden + hidden * D + D
    # A step moves it by the MLP too: zero at the start is not stuck at zero.
    mine().square().sum().backward()
    assert float(mine.up.weight.grad.abs().sum()) > 0


def test_unknown_encoder_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'lstm'.*Known: embedding, lstm, mlp, residual"):
        build_encoder("lstn", num_virtual_tokens=P, token_dim=D)
    assert set(ENCODERS) == {"embedding", "lstm", "mlp", "residual"}
