"""A text in the context of one row and a compressed prompt before another, in one batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from ptune import PTunedModel, compress
from ptune.errors import PTuneError

TEXT = "The gate opens at six. The key is blue. The dog sleeps in the shed."


@pytest.mark.parametrize("encoder", ["prefix", "embedding"])
def test_every_row_is_the_row_alone(
    encoder: str, tiny_model_dir: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(f'{{"instruction": "What is {sign}?"}}\n' for sign in "abcdefgh"))
    compress(
        text, model=str(tiny_model_dir), output=str(tmp_path / "short"), data=str(questions), encoder=encoder,
        num_virtual_tokens=5, answer_tokens=6, max_steps=2, report_rows=0, use_cpu=True,
    )  # fmt: skip
    model = PTunedModel.from_pretrained(tmp_path / "short").eval()
    rows = [f"{TEXT} What is x?", "What is x?", "And what is y, then?"]
    names = [None, "default", "default"]
    tiny_tokenizer.padding_side = "left"
    batch = tiny_tokenizer(rows, return_tensors="pt", padding=True)
    mixed = model.generate(
        batch.input_ids, attention_mask=batch.attention_mask, prompt_names=names, max_new_tokens=6, do_sample=False
    )
    for at, (row, name) in enumerate(zip(rows, names, strict=True)):
        ids = tiny_tokenizer(row, return_tensors="pt").input_ids
        alone = model.generate(ids, prompt_names=[name], max_new_tokens=6, do_sample=False)
        assert mixed[at, -6:].tolist() == alone[0, -6:].tolist()
    assert not torch.equal(mixed[1, -6:], mixed[0, -6:]), "both rows would be one"


def test_an_export_that_cannot_hold_it_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    from commands import run

    text, questions = tmp_path / "text.txt", tmp_path / "questions.jsonl"
    text.write_text(TEXT)
    questions.write_text("".join(f'{{"instruction": "What is {sign}?"}}\n' for sign in "abcdefgh"))
    done = run(
        "compress", text, "--model", tiny_model_dir, "--output", tmp_path / "deep", "--data", questions,
        "--num-virtual-tokens", 5, "--answer-tokens", 6, "--max-steps", 1, "--report-rows", 0, "--use-cpu",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert run("export", tmp_path / "deep", "--to", "peft", "--output", tmp_path / "peft").code == 0
    for kind in ("vllm", "embeds", "model"):
        refused = run("export", tmp_path / "deep", "--to", kind, "--output", tmp_path / kind)
        assert refused.code == 2
        assert "keys and values of every layer" in refused.err
    with pytest.raises(PTuneError):
        PTunedModel.from_pretrained(tmp_path / "vllm")
