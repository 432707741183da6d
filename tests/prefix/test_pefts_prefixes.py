"""Prefix tuning and Cartridges that PEFT saved: PEFT's logits, loss and text, and every row as if it were alone."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from architectures import ARCHITECTURES, build
from prompting import draw, padded, pefts_greedy, relative_error, supervised, texts
from ptune import PromptTuningConfig, PTunedModel
from ptune.errors import ModelError, PromptError
from ptune.frozen.cache_argument import cache_argument
from ptune.saved.format import read_prompt

P = 5
WITH_CACHE = [name for name in ARCHITECTURES if name != "mamba"]


def adapter(name: str, folder: Path, kind: Any = peft.PrefixTuningConfig, **values: Any) -> Path:
    """A random adapter of keys and values, as PEFT saves it."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        config = kind(task_type="CAUSAL_LM", num_virtual_tokens=P, **values)
        peft.get_peft_model(build(name), config).save_pretrained(folder)
    return folder


KINDS = {
    "plain": (peft.PrefixTuningConfig, {}),
    "projection": (peft.PrefixTuningConfig, {"prefix_projection": True}),
    "cartridge": (peft.CartridgeConfig, {"num_frozen_tokens": 2}),
}


def pefts(name: str, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(build(name), str(folder)).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WITH_CACHE)
def test_pefts_logits_loss_and_text(name: str, kind: str, tmp_path: Path) -> None:
    config, values = KINDS[kind]
    folder = adapter(name, tmp_path / "adapter", config, **values)
    theirs, mine = pefts(name, folder), PTunedModel.from_pretrained(folder, base=build(name))
    ids = draw(1, 7)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted, found = theirs(input_ids=ids, labels=ids), mine(ids, labels=ids)
        assert relative_error(found.logits, wanted.logits) < 1e-5
        assert relative_error(mine.base(ids).logits, wanted.logits) > 0.1
        assert float(found.loss) == pytest.approx(float(wanted.loss), rel=1e-5)
        assert float(mine(ids, labels=ids, return_logits=False).loss) == pytest.approx(float(wanted.loss), rel=1e-5)
        answer = mine.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert torch.equal(answer, pefts_greedy(theirs, ids, tokens=12))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["bloom", "llama", "gpt2", "qwen2"])
def test_every_row_is_as_if_alone(name: str, side: str, tmp_path: Path) -> None:
    """Among rows of other prompts and of none, padded."""
    model = PTunedModel.from_pretrained(adapter(name, tmp_path / "adapter"), base=build(name))
    model.add_prompt("other", PromptTuningConfig(num_virtual_tokens=3))
    model.eval()
    rows, names = texts([3, 6, 4, 5]), ["default", "other", None, "default"]
    ids, mask = padded(rows, side)
    with torch.no_grad():
        together = model(ids, mask, prompt_names=names).logits
        loss = model(ids, mask, labels=supervised(ids, mask), prompt_names=names).loss
        sums = []
        for at, (row, prompt) in enumerate(zip(rows, names, strict=True)):
            alone = model(row[None], labels=row[None], prompt_names=[prompt])
            assert relative_error(together[at][mask[at].bool()], alone.logits[0]) < 1e-5
            sums.append(float(alone.loss) * (len(row) - (prompt != "other")))
        # Only the computed prompt predicts the first token of its row.
        assert float(loss) == pytest.approx(sum(sums) / (sum(map(len, rows)) - 3), rel=1e-5)
        options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
        new = model.generate(ids, attention_mask=mask, prompt_names=names, **options)[:, ids.shape[1] :]
        for at, (row, prompt) in enumerate(zip(rows, names, strict=True)):
            one = model.generate(row[None], attention_mask=torch.ones(1, len(row)), prompt_names=[prompt], **options)
            assert torch.equal(new[at], one[0, len(row) :])


@pytest.mark.skipif(
    cache_argument(build("llama")) == "cache",
    reason="PEFT 0.21 gives generate past_key_values, which transformers 5.24 calls cache: its prefix is lost",
)
def test_beams(tmp_path: Path) -> None:
    folder = adapter("llama", tmp_path / "adapter")
    ids = draw(1, 6)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    mine, theirs = PTunedModel.from_pretrained(folder, base=build("llama")), pefts("llama", folder)
    assert torch.equal(mine.generate(ids, **options), theirs.generate(input_ids=ids, **options))


def test_a_model_in_bfloat16(tmp_path: Path) -> None:
    folder, ids = adapter("llama", tmp_path / "adapter"), draw(1, 6)
    mine = PTunedModel.from_pretrained(folder, base=build("llama"))
    half = PTunedModel.from_pretrained(folder, base=build("llama").to(torch.bfloat16))
    with torch.no_grad():
        assert relative_error(half(ids).logits.float(), mine(ids).logits) < 0.05


def test_training_goes_on_from_it(tmp_path: Path) -> None:
    """From the table; the rows that a Cartridge freezes stay frozen."""
    for kind, (config, values) in KINDS.items():
        folder = adapter("llama", tmp_path / kind, config, **values)
        answering = PTunedModel.from_pretrained(folder, base=build("llama"))
        assert answering.get_nb_trainable_parameters()[0] == 0
        model = PTunedModel.from_pretrained(folder, base=build("llama"), trainable=True)
        frozen = values.get("num_frozen_tokens", 0)
        assert model.get_nb_trainable_parameters()[0] == (P - frozen) * 64
        assert torch.equal(model.encode(), answering.encode())
        assert torch.equal(model.encode(), load_file(folder / "adapter_model.safetensors")["prompt_embeddings"])
        ids = draw(2, 6)
        model(ids, labels=ids).loss.backward()
        torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1).step()
        moved = (model.encode() != answering.encode()).any(dim=1)
        assert moved.tolist() == [False] * frozen + [True] * (P - frozen)


def test_a_model_without_keys_and_values(tmp_path: Path) -> None:
    folder = adapter("llama", tmp_path / "adapter")
    assert read_prompt(folder).is_deep
    with pytest.raises(ModelError, match=r"Mamba.*running state"):
        PTunedModel.from_pretrained(folder, base=build("mamba"))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_hidden_layers": 3}, r"2 layers with 2 heads of 8; this model has 3 layers with 2 heads of 8"),
        ({"num_key_value_heads": 4}, r"2 heads of 8; this model has 2 layers with 4 heads of 8"),
        ({"head_dim": 16}, r"this model has 2 layers with 2 heads of 16"),
    ],
)
def test_another_model(other: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=message):
        PTunedModel.from_pretrained(adapter("llama", tmp_path / "adapter"), base=build("llama", **other))


def _config(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return edit


def _tensors(change: Callable[[torch.Tensor], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        save_file(change(load_file(path)["prompt_embeddings"]), path)

    return edit


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_config(num_layers=3), r"shape \(5, 64\), expected \(5, 96\)"),
        (_config(num_layers=None), r"num_layers is None, not a whole number"),
        (_config(token_dim=0), "token_dim must be a whole number of at least 1, not 0"),
        (_config(num_attention_heads=3), "token_dim=16 is no multiple of num_attention_heads=3"),
        (_config(task_type="SEQ_2_SEQ_LM"), "task_type=SEQ_2_SEQ_LM, but the model is wrapped for CAUSAL_LM"),
        (_tensors(lambda one: {"other": one}), "no tensor"),
        (_tensors(lambda one: {"prompt_embeddings": one / 0}), "not finite"),
        (_tensors(lambda one: {"prompt_embeddings": one, "lm_head": one + 1}), "holds 'lm_head' beside"),
    ],
)
def test_damage_is_named(harm: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    folder = adapter("llama", tmp_path / "adapter")
    harm(folder)
    with pytest.raises(PromptError, match=message) as caught:
        PTunedModel.from_pretrained(folder, base=build("llama"))
    assert str(folder) in str(caught.value)
