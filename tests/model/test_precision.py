"""Autocast around a model in any precision: the encoder stays out of it; what PyTorch cannot multiply is refused."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from architectures import build
from commands import run
from prompting import draw, encoder_prompt
from ptune.errors import ModelError

HALF = [torch.bfloat16, torch.float16]
KINDS = ["MLP", "LSTM", "RESIDUAL", "EMBEDDING"]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_stays_in_float32(kind: str, dtype: torch.dtype) -> None:
    encoder = encoder_prompt(build("llama"), kind).prompts["default"]
    outside = encoder()
    with torch.autocast("cpu", dtype=dtype):
        inside = encoder()
        assert torch.ones(2, 2).mm(torch.ones(2, 2)).dtype is dtype
    assert torch.equal(inside, outside)
    inside.sum().backward()
    assert all(torch.isfinite(one.grad).all() for one in encoder.parameters())


@pytest.mark.parametrize("rows", ["packed", "padded"])
@pytest.mark.parametrize("cast", [None, *HALF])
@pytest.mark.parametrize("base", [torch.float32, *HALF])
@pytest.mark.parametrize("kind", ["MLP", "LSTM"])
def test_every_pair_of_precisions_trains_or_is_refused(kind: str, base: torch.dtype, cast: Any, rows: str) -> None:
    model = encoder_prompt(build("llama").to(base), kind)
    ids = draw(2, 8)
    form = {"row_lengths": [10, 6]} if rows == "packed" else {}
    ids = ids.view(1, -1) if rows == "packed" else ids
    with torch.autocast("cpu", dtype=cast) if cast else nullcontext():
        if cast in HALF and base in HALF and cast is not base:
            with pytest.raises(ModelError, match=r"the model is in (b?float16), and autocast is to (b?float16)"):
                model(ids, labels=ids, **form)
            with pytest.raises(ModelError, match="PyTorch has no products"):
                model.generate(draw(1, 4), max_new_tokens=1)
            return
        loss = model(ids, labels=ids, **form).loss
    loss.backward()
    grads = torch.cat([one.grad.flatten() for one in model.prompts.parameters()])
    assert torch.isfinite(grads).all()
    assert float(grads.norm()) > 0


def test_the_command_line_says_so_before_it_trains(tiny_model_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"instruction": "Say a.", "output": "b"}\n' * 4, encoding="utf-8")
    ran = run(
        "train", "--model", tiny_model_dir, "--data", data, "--output", tmp_path / "out", "--max-steps", 2,
        "--dtype", "float16", "--bf16", "--use-cpu",
    )  # fmt: skip
    assert ran.code == 2
    assert "the model is in float16, and autocast is to bfloat16" in ran.err
    assert "Ask for fp16, or load the model with dtype=bfloat16 or float32" in ran.err
    assert not (tmp_path / "out").exists()
