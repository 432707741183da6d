"""Names of other libraries that are not public: each is there, and without the kernels everything still works."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, Trainer, TrainingArguments

from architectures import build
from ptune import PackingCollator, PromptEncoderConfig, PTunedModel, internals
from ptune.training.trainer import PTuneTrainer

SOURCES = Path(internals.__file__).parent


def test_the_kernels_are_there() -> None:
    for name in ("ONEDNN_LINEAR", "CPU_FLASH", "CPU_FLASH_BACKWARD", "GROUPED_PRODUCT", "SCALAR"):
        assert callable(getattr(internals, name)), name
    assert {"_is_avx512_bf16_supported", "_is_amx_tile_supported"} <= set(dir(torch.cpu))


def test_modules_and_tensors() -> None:
    layer = nn.Linear(2, 2)
    layer.extra = None  # type: ignore[assignment]
    layer.register_module("absent", None)
    assert internals.children_of(nn.Sequential(layer)) == {"0": layer}
    assert internals.children_of(layer) == {"absent": None}
    assert set(internals.tensors_of(layer)[0]) == {"weight", "bias"}
    assert not internals.changes_output(layer)
    key = layer.register_forward_hook(lambda *_: None)
    assert internals.changes_output(layer)
    assert list(internals.forward_hooks(layer)) == [key.id]
    tensor = torch.zeros(2)
    before = internals.writes_to(tensor)
    tensor.add_(1)
    assert internals.writes_to(tensor) == before + 1
    with torch.inference_mode():
        assert internals.writes_to(torch.zeros(2)) == -1
    assert internals.viewed(tensor[1:]) is tensor
    assert internals.viewed(tensor) is tensor
    assert internals.storage_key(tensor.untyped_storage()) == internals.storage_key(tensor[1:].untyped_storage())
    assert internals.packet_of(torch.ops.aten.add.Tensor) is torch.ops.aten.add


def test_models_and_tokenizers(tiny_tokenizer: object) -> None:
    model = build("llama")
    internals.set_model_name(model, "a name")
    assert model.config._name_or_path == model.name_or_path == "a name"
    config = LlamaConfig()
    internals.set_attention(config, "eager")
    assert config._attn_implementation == "eager"
    assert model.is_backend_compatible()
    assert internals.keeps_state(build("mamba"))
    assert not internals.keeps_state(model)


def test_every_method_of_trainer_that_is_hooked_into_is_there_and_has_a_reason() -> None:
    assert internals.missing_trainer_names(Trainer) == ()
    overridden = {
        name
        for name in vars(PTuneTrainer)
        if name.startswith("_") and not name.startswith("__") and hasattr(Trainer, name)
    }
    assert overridden == set(internals.TRAINER_HOOKS)
    assert PTuneTrainer.__mro__[1] is Trainer


def test_without_one_of_them_training_is_left_to_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(internals, "TRAINER_CALLS", (*internals.TRAINER_CALLS, "_gone"))
    internals.missing_trainer_names.cache_clear()
    try:
        rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3], "attention_mask": [1, 1, 1]}] * 8
        args = TrainingArguments(str(tmp_path), max_steps=4, save_steps=2, report_to="none", use_cpu=True)
        for resume in (None, str(tmp_path / "checkpoint-2")):
            torch.manual_seed(0)
            model = PTunedModel(build("llama"), PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8))
            trainer = PTuneTrainer(model=model, args=args, train_dataset=rows, data_collator=PackingCollator())
            trainer.train(resume)
            assert trainer.state.global_step == 4
            assert "transformers has no Trainer._gone: checkpoints are as Trainer writes them" in caplog.text
        assert not (tmp_path / "checkpoint-4" / "checkpoint.json").exists()
        assert torch.isfinite(
            PTunedModel.from_pretrained(tmp_path / "checkpoint-4", base=build("llama")).encode()
        ).all()
    finally:
        internals.missing_trainer_names.cache_clear()


def test_no_other_file_uses_a_name_that_is_not_public() -> None:
    """Of another object: `self._x`, `cls._x` and `super()._x` are a class's own."""
    for path in SOURCES.rglob("*.py"):
        if path.name == "internals.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")):
                continue
            owner = node.value
            own = isinstance(owner, ast.Name) and owner.id in ("self", "cls", "mcs")
            inherited = isinstance(owner, ast.Call) and isinstance(owner.func, ast.Name) and owner.func.id == "super"
            assert own or inherited or node.attr in _OF_PYTHON or _is_ptunes(node.attr), (
                f"{path.name}:{node.lineno}: {ast.unparse(node)}"
            )


def _is_ptunes(name: str) -> bool:
    """Whether ptune itself defines a name."""
    return any(f"self.{name}" in text or f"def {name}(" in text for text in _TEXTS)


_OF_PYTHON = {"_option_string_actions"}
_TEXTS = [path.read_text(encoding="utf-8") for path in SOURCES.rglob("*.py")]


def test_without_its_kernels_it_trains_on_the_plain_path(tmp_path: Path) -> None:
    """A PyTorch without those operators, as other builds may be: the same loss and gradient, by what everybody has."""
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT, encoding="utf-8")
    (loss, norm, *there), (wanted, wanted_norm, *missing) = (_run(script, word).split() for word in ("with", "without"))
    assert (there, missing) == (["False"] * 3, ["True"] * 3)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)
    assert float(norm) == pytest.approx(float(wanted_norm), rel=1e-4)


_SCRIPT = """
import sys, torch
if sys.argv[1] == "without":
    lacking = ("_linear_pointwise", "_scaled_dot_product_flash_attention_for_cpu")
    plain = type(torch.ops.aten).__getattr__
    def without(self, name):
        if name.startswith(lacking):
            raise AttributeError(name)
        return plain(self, name)
    for space in (torch.ops.aten, torch.ops.mkldnn):
        for name in [name for name in vars(space) if name.startswith(lacking)]:
            delattr(space, name)
    type(torch.ops.aten).__getattr__ = without  # while ptune looks them up: torch itself needs the names
    from ptune import internals
    type(torch.ops.aten).__getattr__ = plain
from ptune import PTunedModel, PromptEncoderConfig, internals
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
base = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                                    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64))
model = PTunedModel(base, PromptEncoderConfig(num_virtual_tokens=3))
assert model.packs, model.packing_obstacle
ids = torch.arange(3, 15).view(2, 6)
loss = model.train()(ids, labels=ids).loss
loss.backward()
grad = next(p.grad for p in model.parameters() if p.grad is not None)
kernels = (internals.ONEDNN_LINEAR, internals.CPU_FLASH, internals.CPU_FLASH_BACKWARD)
print(float(loss.detach()), float(grad.norm()), *(one is None for one in kernels))
"""


def _run(script: Path, word: str) -> str:
    done = subprocess.run([sys.executable, str(script), word], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
