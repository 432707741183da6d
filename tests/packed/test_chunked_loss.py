"""Losses in chunks against PyTorch's own over full logits, with and without a treatment of logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F
from transformers import Cohere2Config, Cohere2ForCausalLM, Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from architectures import ARCHITECTURES, HIDDEN, VOCABULARY
from ptune.data.soft_labels import SoftLabels
from ptune.packed import chunked_loss
from ptune.packed.chunked_loss import summed_cross_entropy, summed_divergence
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


@pytest.mark.parametrize("name", [*ARCHITECTURES, *TREATED])
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


# ---- the divergence from a teacher ----


def some_teacher(count: int, kept: int) -> tuple[torch.Tensor, SoftLabels]:
    """`(S, V)` log-probabilities of a whole distribution, and its `K` likeliest tokens."""
    whole = torch.randn(count, VOCABULARY, dtype=torch.float64).log_softmax(1)
    best = whole.topk(kept)
    return whole, SoftLabels(best.indices, best.values)


def over_outcomes(logits: torch.Tensor, whole: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """KL of the teacher's whole distribution from the logits': each of `ids` one outcome, all others one together."""
    chosen = torch.zeros_like(whole).scatter_(1, ids, 1).bool()

    def outcomes(log_probs: torch.Tensor) -> torch.Tensor:
        others = log_probs.masked_fill(chosen, -math.inf).logsumexp(1, keepdim=True)
        return torch.cat([log_probs.gather(1, ids), others], dim=1)

    wide = logits.log_softmax(1)
    if ids.shape[1] == VOCABULARY:
        return F.kl_div(wide, whole, reduction="sum", log_target=True)
    return F.kl_div(outcomes(wide), outcomes(whole), reduction="sum", log_target=True)


@pytest.mark.parametrize("kept", [1, 5, VOCABULARY - 1, VOCABULARY])
@pytest.mark.parametrize("name", [*ARCHITECTURES, *TREATED])
def test_divergence_and_gradient(name: str, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = {**ARCHITECTURES, **TREATED}[name]().requires_grad_(False).eval().double()
    monkeypatch.setattr(chunked_loss, "CHUNK_BYTES", 4 * VOCABULARY * 16)
    hidden = torch.randn(50, HIDDEN, dtype=torch.float64).requires_grad_()
    whole, teacher = some_teacher(50, kept)
    total = summed_divergence(FrozenHead(model), hidden, teacher)
    (gradient,) = torch.autograd.grad(total * 0.5, hidden)
    full = head_logits(model, hidden)
    wanted = over_outcomes(full, whole, teacher.ids)
    (wanted_gradient,) = torch.autograd.grad(wanted * 0.5, hidden)
    assert total.dtype == torch.float64
    exact = name != "mamba"  # whose logits are float32 whatever the model's dtype
    torch.testing.assert_close(total, wanted, rtol=1e-9 if exact else 1e-6, atol=0)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-6 if exact else 1e-4, atol=1e-9 if exact else 1e-6)


@pytest.mark.parametrize("kept", [1, 5, VOCABULARY - 1, VOCABULARY])
def test_divergence_from_itself_is_nothing(kept: int) -> None:
    torch.manual_seed(0)
    model = ARCHITECTURES["llama"]().requires_grad_(False).double()
    hidden = torch.randn(20, HIDDEN, dtype=torch.float64).requires_grad_()
    best = head_logits(model, hidden.detach()).log_softmax(1).topk(kept)
    total = summed_divergence(FrozenHead(model), hidden, SoftLabels(best.indices, best.values))
    (gradient,) = torch.autograd.grad(total, hidden)
    assert abs(float(total)) < 1e-4  # what is left of a probability below 1e-6 counts as none
    assert float(gradient.norm()) < 1e-4
    # As soft labels are stored and as most models compute: in float32.
    model, labels = model.float(), SoftLabels(best.indices, best.values.float())
    assert abs(float(summed_divergence(FrozenHead(model), hidden.detach().float(), labels))) < 2e-4


def test_divergence_grows_to_that_of_the_whole_distribution() -> None:
    torch.manual_seed(0)
    model = ARCHITECTURES["llama"]().requires_grad_(False).double()
    hidden = torch.randn(20, HIDDEN, dtype=torch.float64)
    whole, _ = some_teacher(20, 1)
    full = F.kl_div(head_logits(model, hidden).log_softmax(1), whole, reduction="sum", log_target=True)
    found = []
    for kept in (1, 2, 10, 60, VOCABULARY):
        best = whole.topk(kept)
        found.append(float(summed_divergence(FrozenHead(model), hidden, SoftLabels(best.indices, best.values))))
    assert found == sorted(found)
    assert 0 < found[0] < found[-2] < float(full)
    assert found[-1] == pytest.approx(float(full), rel=1e-9)


@pytest.mark.parametrize("kept", [1, 5, VOCABULARY])
def test_divergence_of_certain_distributions_is_finite(kept: int) -> None:
    """A model that is certain, of the teacher's tokens or of another one, and a teacher that is certain."""
    torch.manual_seed(0)
    model = ARCHITECTURES["llama"]().requires_grad_(False)
    hidden = (torch.randn(20, HIDDEN) * 500).requires_grad_()
    certain = torch.full((20, VOCABULARY), -200.0).scatter_(1, torch.randint(VOCABULARY, (20, 1)), 0.0)
    sure = head_logits(model, hidden.detach()).topk(kept).indices
    for teacher in (certain.topk(kept), torch.randn(20, VOCABULARY).log_softmax(1).topk(kept)):
        for ids in (teacher.indices, sure):
            total = summed_divergence(FrozenHead(model), hidden, SoftLabels(ids, teacher.values))
            (gradient,) = torch.autograd.grad(total, hidden)
            assert math.isfinite(float(total))
            assert bool(gradient.isfinite().all())


def test_divergence_of_nothing_supervised() -> None:
    model = ARCHITECTURES["llama"]().requires_grad_(False)
    hidden = torch.randn(0, HIDDEN).requires_grad_()
    none = SoftLabels(torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, 0))
    summed_divergence(FrozenHead(model), hidden, none).backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, HIDDEN)
