"""A quantized frozen model: it trains a prompt, costs no copies, and what it trained fits the full model."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from architectures import ARCHITECTURES, build
from prompting import encoder_prompt, padded, prompt_gradient, relative_error, supervised, texts
from ptune.data.collate import PackingCollator
from ptune.errors import ConfigError, ModelError, PromptError
from ptune.frozen.fingerprint import fingerprint, unquantized_fingerprint
from ptune.frozen.quantized import is_quantized
from ptune.loading.load import load_model
from ptune.model.wrapper import PTunedModel

LENGTHS = (9, 3, 15)


def _packed() -> dict[str, object]:
    rows = texts(LENGTHS)
    return PackingCollator()([{"input_ids": row.tolist(), "labels": row.tolist()} for row in rows])


@pytest.fixture(scope="module")
def int8(tiny_model_dir: Path) -> PreTrainedModel:
    pytest.importorskip("torchao")
    return load_model(str(tiny_model_dir), quantization="int8", device="cpu")


def unpacked(model: PreTrainedModel) -> PreTrainedModel:
    """The same numbers in plain float32: what the packed weights stand for."""
    full = build("llama")
    with torch.no_grad():
        for (_, own), (_, packed) in zip(full.named_parameters(), model.named_parameters(), strict=True):
            own.copy_(packed if type(packed) is nn.Parameter else packed.dequantize())
    return full


def test_linear_layers_are_packed_and_nothing_else(int8: PreTrainedModel) -> None:
    packed = {name for name, weight in int8.named_parameters() if type(weight) is not nn.Parameter}
    linear = {f"{name}.weight" for name, module in int8.named_modules() if isinstance(module, nn.Linear)}
    assert packed == linear - {"lm_head.weight"}
    assert is_quantized(int8)
    assert not any(weight.requires_grad for weight in int8.parameters())


@pytest.mark.parametrize("packs", [True, False])
def test_loss_and_gradient_are_those_of_the_unpacked_numbers(int8: PreTrainedModel, packs: bool) -> None:
    model, wanted = encoder_prompt(int8, seed=1), encoder_prompt(unpacked(int8), seed=1)
    model.pack_batches = packs
    batch = _packed()
    if not packs:
        ids, mask = padded(texts(LENGTHS), "right")
        batch = {"input_ids": ids, "attention_mask": mask, "labels": supervised(ids, mask)}
    loss, gradient = prompt_gradient(model, **batch, return_logits=False)
    wanted_loss, wanted_gradient = prompt_gradient(wanted, **batch, return_logits=False)
    assert relative_error(loss, wanted_loss) < 1e-5
    assert relative_error(gradient, wanted_gradient) < 1e-5
    assert all(weight.dtype is torch.float32 for weight in model.prompts.parameters())


def test_no_full_size_weight_is_kept_for_the_backward(int8: PreTrainedModel) -> None:
    weights = {tuple(module.weight.shape) for module in int8.model.modules() if isinstance(module, nn.Linear)}
    model, kept = encoder_prompt(int8, "EMBEDDING", seed=1), []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(**_packed(), return_logits=False)
    assert kept
    assert not [shape for shape in kept if shape in weights or shape[::-1] in weights]


def test_a_prompt_goes_from_the_packed_model_to_the_full_one_and_back(
    int8: PreTrainedModel, tiny_model_dir: Path, tmp_path: Path
) -> None:
    full = load_model(str(tiny_model_dir), device="cpu")
    for trained_on, used_on in ((int8, full), (full, int8), (int8, int8)):
        model = encoder_prompt(trained_on, seed=2)
        model.save_pretrained(tmp_path / "prompt")
        again = PTunedModel(used_on)
        again.load_prompt(tmp_path / "prompt")
        assert torch.equal(again.encode(), model.encode())


def test_another_model_is_refused_all_the_same(int8: PreTrainedModel, tmp_path: Path) -> None:
    encoder_prompt(int8, seed=2).save_pretrained(tmp_path / "prompt")
    other = build("llama")
    with torch.no_grad():
        other.get_input_embeddings().weight.add_(1)
    with pytest.raises(PromptError, match="made for another model"):
        PTunedModel(other).load_prompt(tmp_path / "prompt")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_second_fingerprint_leaves_out_what_quantization_takes(name: str) -> None:
    model = ARCHITECTURES[name]()
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.get_input_embeddings().weight.add_(1)
    assert unquantized_fingerprint(changed) != unquantized_fingerprint(model)
    linear = next(module for module in model.base_model.modules() if isinstance(module, nn.Linear | Conv1D))
    before = fingerprint(model), unquantized_fingerprint(model)
    with torch.no_grad():
        linear.weight.add_(1)
    assert fingerprint(model) != before[0]
    assert unquantized_fingerprint(model) == before[1]


def test_a_model_without_layers_to_pack_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    build("gpt2").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="quantization int8 found no layer in GPT2LMHeadModel"):
        load_model(str(tmp_path), quantization="int8", device="cpu")


def test_an_unknown_kind_suggests_the_nearest(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown quantization 'int9'.*Did you mean 'int8'"):
        load_model(str(tiny_model_dir), quantization="int9")


@pytest.mark.parametrize(("kind", "package"), [("int8", "torchao"), ("8bit", "bitsandbytes"), ("4bit", "bitsandbytes")])
def test_a_missing_package_is_one_line_before_anything_is_loaded(
    kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match=rf'{kind} needs the package {package}.*pip install "ptune\[quantized\]"'):
        load_model("no/such-model-anywhere", quantization=kind)


@pytest.mark.parametrize(("kind", "alike"), [("8bit", 0.99), ("4bit", 0.9999)])
def test_bitsandbytes_trains_a_prompt(kind: str, alike: float, tiny_model_dir: Path) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    base = load_model(str(tiny_model_dir), quantization=kind)
    wanted_base = build("llama")
    if kind == "4bit":
        with torch.no_grad():
            for (_, own), (_, packed) in zip(wanted_base.named_parameters(), base.named_parameters(), strict=True):
                state = getattr(packed, "quant_state", None)
                own.copy_(packed if state is None else functional.dequantize_4bit(packed.data, state))
    model = encoder_prompt(base, seed=1)
    loss, gradient = prompt_gradient(model, **_packed(), return_logits=False)
    full, wanted = prompt_gradient(encoder_prompt(wanted_base, seed=1), **_packed(), return_logits=False)
    found = torch.nn.functional.cosine_similarity(gradient.flatten(), wanted.flatten(), dim=0)
    print(f"{kind}: loss {float(loss):.4f} for {float(full):.4f}, gradients at cosine {float(found):.5f}")
    assert abs(float(loss - full)) < (1 - alike) * float(full)
    assert found > alike


class Repacking(nn.Linear):
    """As bitsandbytes' 4-bit layer on a CPU with AVX512-BF16: once repacked, its product hands no gradient on."""

    support_avx512bf16_for_cpu = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.support_avx512bf16_for_cpu and not self.training and not x.requires_grad:
            self.weight.repacked = True
        product = super().forward(x)
        return product.detach() if getattr(self.weight, "repacked", False) else product


def _repacking() -> PreTrainedModel:
    base = build("llama")
    for module in list(base.model.layers.modules()):
        if type(module) is nn.Linear:
            module.__class__ = Repacking
            module.support_avx512bf16_for_cpu = True
    return base


def test_weights_are_not_laid_out_anew_while_a_prompt_trains(tmp_path: Path) -> None:
    """With padded rows: the fused parts of the packed way read plain weights past a layer's own product."""
    ids, mask = padded(texts(LENGTHS), "right")
    batch = {"input_ids": ids, "attention_mask": mask, "labels": supervised(ids, mask)}
    gradients = []
    for base in (_repacking(), build("llama")):
        model = encoder_prompt(base, seed=1)
        model.pack_batches = False
        with torch.no_grad():
            model.eval()(**batch)
        gradients.append(prompt_gradient(model.train(), **batch, return_logits=False)[1])
    assert relative_error(*gradients) < 1e-5
    # What only answers may have the faster product.
    model.save_pretrained(tmp_path)
    answering = PTunedModel(_repacking())
    answering.load_prompt(tmp_path, trainable=False)
    with torch.no_grad():
        answering.eval()(**batch)
    layers = [module for module in answering.modules() if type(module) is Repacking]
    assert layers
    assert all(getattr(layer.weight, "repacked", False) for layer in layers)


def test_bitsandbytes_does_not_repack_what_trains(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU that it takes for one with AVX512-BF16; its conversion is replaced by a count of its calls."""
    modules = pytest.importorskip("bitsandbytes").nn.modules
    repacked: list[torch.Size] = []

    def convert(weight: torch.Tensor, state: object) -> tuple[torch.Tensor, object]:
        repacked.append(weight.shape)
        return weight, state

    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    monkeypatch.setattr(modules, "_convert_weight_packed_for_cpu", convert)
    model = encoder_prompt(load_model(str(tiny_model_dir), quantization="4bit", device="cpu"), seed=1)
    with torch.no_grad():
        model.eval()(**_packed())
    assert not repacked
    model.save_pretrained(tmp_path)
    answering = PTunedModel(load_model(str(tiny_model_dir), quantization="4bit", device="cpu"))
    answering.load_prompt(tmp_path, trainable=False)
    with torch.no_grad():
        answering.eval()(**_packed())
    assert repacked
