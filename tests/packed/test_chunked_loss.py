"""Cross-entropy in chunks against PyTorch's own over full logits, with and without a treatment of logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F
from transformers import Cohere2Config, Cohere2ForCausalLM, Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from architectures import ARCHITECTURES, HIDDEN, VOCABULARY
from ptune.packed import chunked_loss
from ptune.packed.chunked_loss import summed_cross_entropy
from ptune.packed.head import FrozenHead, head_logits

_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
TREATED: dict[str, Callable[[], PreTrainedModel]] = {
    "gemma2, capped": lambda: Gemma2ForCausalLM(Gemma2Config(**_SMALL, final_logit_softcapping=2.0)),
    "cohere, scaled": lambda: Cohere2ForCausalLM(Cohere2Config(**_SMALL, logit_scale=0.25)),
}


@pytest.mark.parametrize("name", [*(name for name in ARCHITECTURES if name != "mamba"), *TREATED])
def test_loss_and_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = {**ARCHITECTURES, **TREATED}[name]().requires_grad_(False).eval()
    monkeypatch.setattr(chunked_loss, "CHUNK_BYTES", 4 * VOCABULARY * 16)
    hidden = torch.randn(50, HIDDEN).requires_grad_()
    targets = torch.randint(VOCABULARY, (50,))
    total = summed_cross_entropy(FrozenHead(model), hidden, targets)
    (gradient,) = torch.autograd.grad(total * 0.5, hidden)
    full = head_logits(model, hidden)
    wanted = F.cross_entropy(full, targets, reduction="sum")
    (wanted_gradient,) = torch.autograd.grad(wanted * 0.5, hidden)
    torch.testing.assert_close(total, wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", TREATED)
def test_the_treatment_is_there(name: str) -> None:
    torch.manual_seed(0)
    model = TREATED[name]().eval()
    hidden = torch.randn(5, HIDDEN)
    assert not torch.allclose(head_logits(model, hidden), model.lm_head(hidden))


def test_no_more_than_a_chunk_of_logits_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = FrozenHead.with_backward

    def counting(self: FrozenHead, hidden: torch.Tensor) -> object:
        sizes.append(hidden.shape[0])
        return original(self, hidden)

    monkeypatch.setattr(FrozenHead, "with_backward", counting)
    monkeypatch.setattr(chunked_loss, "CHUNK_BYTES", 4 * VOCABULARY * 20)
    model = ARCHITECTURES["llama"]().requires_grad_(False)
    summed_cross_entropy(FrozenHead(model), torch.randn(50, HIDDEN), torch.zeros(50, dtype=torch.long))
    assert sizes == [20, 20, 10]


def test_nothing_supervised_is_no_loss() -> None:
    model = ARCHITECTURES["llama"]().requires_grad_(False)
    hidden = torch.randn(0, HIDDEN).requires_grad_()
    total = summed_cross_entropy(FrozenHead(model), hidden, torch.zeros(0, dtype=torch.long))
    total.backward()
    assert float(total) == 0
    assert hidden.grad.shape == (0, HIDDEN)
