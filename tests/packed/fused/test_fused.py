"""Each fused part against the module it stands in for: output and gradient, and when it stands back."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.activations import NewGELUActivation
from transformers.models.bloom.modeling_bloom import BloomGelu
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb
from transformers.pytorch_utils import Conv1D

from architectures import ARCHITECTURES, HIDDEN, build
from ptune.frozen import product
from ptune.packed.fused import replacement
from ptune.packed.fused.rotary import rotate


def _twin(module: nn.Module) -> nn.Module:
    """The same weights in the fused class."""
    module.requires_grad_(False)
    twin = build_like(module)
    assert type(twin) is not type(module), "there is no stand-in"
    return twin


def build_like(module: nn.Module) -> nn.Module:
    twin = module.__class__.__new__(module.__class__)
    twin.__dict__.update(module.__dict__)
    twin.__class__ = replacement(type(module))
    return twin


def _modules() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    norm = LlamaRMSNorm(HIDDEN, eps=1e-5)
    nn.init.uniform_(norm.weight, 0.5, 2)
    return {
        "linear": nn.Linear(HIDDEN, 48),
        "linear without bias": nn.Linear(HIDDEN, 48, bias=False),
        "conv1d": Conv1D(48, HIDDEN),
        "rms norm": norm,
        "gated mlp": LlamaMLP(build("llama").config),
        "gated mlp with bias": LlamaMLP(build("llama", mlp_bias=True).config),
        "bloom's gelu": BloomGelu(),
        "gpt2's gelu": NewGELUActivation(),
    }


WITH_WEIGHTS = [name for name, module in _modules().items() if list(module.parameters())]
"""The others round once, where the modules that they stand in for round at every step."""


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("name", _modules())
def test_output_and_gradient(name: str, rows: int) -> None:
    module = _modules()[name].requires_grad_(False)
    # The reference is the module itself in float64.
    exact = _modules()[name].requires_grad_(False).double()
    mine = torch.randn(1, rows, HIDDEN, generator=torch.Generator().manual_seed(1)).requires_grad_()
    theirs = mine.detach().double().requires_grad_()
    output, wanted = _twin(module)(mine), exact(theirs)
    torch.testing.assert_close(output.double(), wanted, rtol=1e-5, atol=1e-5)
    weights = torch.randn(wanted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (output * weights.float()).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", _modules())
def test_half_precision_is_no_worse_than_the_modules_own(name: str, dtype: torch.dtype) -> None:
    """Both against the module in float64, with weights and input as the half precision has them."""
    own, exact = (_modules()[name].requires_grad_(False).to(dtype) for _ in range(2))
    exact.double()
    source = torch.Generator().manual_seed(1)
    given = torch.randn(1, 40, HIDDEN, generator=source).to(dtype)
    weights = torch.randn(1, generator=source).to(dtype)
    found = {}
    for which, module in (("exact", exact), ("own", own), ("fused", _twin(own))):
        x = given.clone().to(torch.float64 if which == "exact" else dtype).requires_grad_()
        output = module(x)
        (output * weights.to(output.dtype)).sum().backward()
        assert output.dtype is x.dtype
        found[which] = output.detach().double(), x.grad.double()
    for part, (right, theirs, mine) in enumerate(zip(*found.values(), strict=True)):
        limit = 1.1 * float((theirs - right).norm()) + 1e-4 * float(right.norm())
        assert float((mine - right).norm()) <= limit, part


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_a_weight_that_trains_gets_its_gradient(name: str) -> None:
    module = _modules()[name]
    twin = build_like(module)
    twin(torch.ones(1, 9, HIDDEN)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_other_dtypes_are_the_originals(name: str, dtype: torch.dtype) -> None:
    module = _modules()[name].to(dtype).requires_grad_(False)
    x = torch.randn(1, 9, HIDDEN, dtype=dtype)
    assert torch.equal(build_like(module)(x), module(x))


def test_both_kernels_give_the_same_product(monkeypatch: pytest.MonkeyPatch) -> None:
    made = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=made) for shape in ((3, 20, 64), (48, 64), (48,)))
    results = []
    for pays in (True, False):
        if pays and not torch.backends.mkldnn.is_available():
            pytest.skip("PyTorch was built without oneDNN")
        monkeypatch.setattr(product, "_PAYS", pays)
        results.append(product.product(x, weight, bias))
        results.append(product.product(results[-1], weight.t()))
    torch.testing.assert_close(results[0], results[2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results[1], results[3], rtol=1e-5, atol=1e-4)


def test_rotation_is_that_of_transformers() -> None:
    made = torch.Generator().manual_seed(0)
    x = torch.randn(1, 7, 4, 8, generator=made).requires_grad_()
    angles = torch.randn(1, 7, 8, generator=made)
    cos, sin = angles.cos(), angles.sin()
    found = rotate(x, cos, sin)
    wanted, _ = apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cos, sin)
    # Halves with angles of their own tell a wrong half in the backward.
    torch.testing.assert_close(found, wanted.transpose(1, 2), rtol=1e-6, atol=1e-6)
    weights = torch.randn(found.shape, generator=made)
    (mine,) = torch.autograd.grad((found * weights).sum(), x, retain_graph=True)
    (theirs,) = torch.autograd.grad((wanted.transpose(1, 2) * weights).sum(), x)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("llama", {"FrozenLlamaAttention", "FrozenLlamaMLP", "FrozenLlamaRMSNorm", "FrozenLinear"}),
        ("mistral", {"FrozenMistralAttention", "FrozenMistralMLP", "FrozenMistralRMSNorm", "FrozenLinear"}),
        ("qwen2", {"FrozenQwen2Attention", "FrozenQwen2MLP", "FrozenQwen2RMSNorm", "FrozenLinear"}),
        ("qwen3", {"FrozenQwen3Attention", "FrozenQwen3MLP", "FrozenQwen3RMSNorm", "FrozenLinear"}),
        ("gpt2", {"FrozenConv1D", "FrozenLinear", "FrozenNewGELUActivation"}),
        ("bloom", {"PackedBloomModel", "PackedBloomAttention", "FrozenLinear", "FrozenBloomGelu"}),
    ],
)
def test_what_is_exchanged(name: str, kinds: set[str]) -> None:
    modules = list(ARCHITECTURES[name]().modules())
    found = {replacement(type(module)).__name__ for module in modules if replacement(type(module)) is not type(module)}
    assert found == kinds
