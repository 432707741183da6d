"""PEFT's prefix tuning on ptune's prefix path: PEFT's logits, loss and text, and every row as if it were alone."""

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
from ptune.errors import ConfigError, ModelError, PromptError
from ptune.frozen.cache_argument import cache_argument
from ptune.saved.format import read_prompt

P = 5
WITH_CACHE = [name for name in ARCHITECTURES if name != "mamba"]


def adapter(name: str, folder: Path, **values: Any) -> Path:
    """A random prefix-tuning adapter, as PEFT saves it."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P, **values)
        peft.get_peft_model(build(name), config).save_pretrained(folder)
    return folder


def pefts(name: str, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(build(name), str(folder)).eval()


@pytest.mark.parametrize("projection", [False, True], ids=["plain", "projection"])
@pytest.mark.parametrize("name", WITH_CACHE)
def test_pefts_logits_loss_and_text(name: str, projection: bool, tmp_path: Path) -> None:
    folder = adapter(name, tmp_path / "adapter", prefix_projection=projection)
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


def test_what_needs_virtual_token_embeddings_is_refused(tmp_path: Path) -> None:
    folder = adapter("llama", tmp_path / "adapter")
    model = PTunedModel.from_pretrained(folder, base=build("llama"))
    assert model.get_nb_trainable_parameters()[0] == 0
    assert not model.packs
    ids = draw(1, 8)
    packed, padded_too = model(ids, labels=ids, row_lengths=[4, 4]), model(ids.view(2, 4), labels=ids.view(2, 4))
    assert torch.equal(packed.loss, padded_too.loss)
    for ask in (model.encode, lambda: model.save_pretrained(tmp_path / "out")):
        with pytest.raises(PromptError, match=r"prefix tuning of PEFT's.*Copy the adapter's folder"):
            ask()
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"does not train.*trainable=False"):
        model.load_prompt(folder, name="other")
    with pytest.raises(PromptError, match=r"'PREFIX_TUNING': keys and values of every layer.*ptune generate"):
        read_prompt(folder)
    with pytest.raises(ModelError, match=r"Mamba.*running state.*key/value cache"):
        PTunedModel.from_pretrained(folder, base=build("mamba"))
    model.delete_prompt("default")
    assert model.packs


def test_left_padding_beyond_a_sliding_window_is_refused(tmp_path: Path) -> None:
    model = PTunedModel.from_pretrained(adapter("mistral", tmp_path / "adapter"), base=build("mistral"))
    ids, mask = padded(texts([4, 12]), "left")
    with pytest.raises(PromptError, match="beyond a sliding window"):
        model.generate(ids, attention_mask=mask, max_new_tokens=2)
    right, right_mask = padded(texts([4, 12]), "right")
    for left, straight in zip(model(ids, mask).logits, model(right, right_mask).logits, strict=True):
        assert torch.equal(left[-4:], straight[:4]) or torch.equal(left, straight)


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
        (_config(num_layers=None), "num_layers is None, not a whole number"),
        (_config(token_dim=0), "token_dim is 0, not a whole number of at least 1"),
        (_config(num_attention_heads=3), "token_dim 16 is no multiple of num_attention_heads 3"),
        (_config(task_type="SEQ_2_SEQ_LM"), "task 'SEQ_2_SEQ_LM'; ptune answers with causal models"),
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
