"""SmolLM2 with a prompt in its vocabulary: tied embeddings, and everything out of a GGUF file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ptune import Answerer, PromptTuningConfig, PTunedModel, load_model
from ptune.saved.as_model.export_model import export_model
from ptune.saved.opened_folder import open_folder

MODEL = "builtin:smollm2-135m"
TEXTS = ("Where is my order?", "  two blanks, then 3 lines\n\n\nof text")


@pytest.mark.slow
@pytest.mark.parametrize("template", ["tutorial", "chat", "{prompt:4}Q: {instruction}{prompt:2}\nA: {output}"])
def test_smollm2(template: str, tmp_path: Path):
    base = load_model(MODEL, dtype="float32", device="cpu")
    inside = 2 if "{" in template else 0
    prompted = PTunedModel(base, PromptTuningConfig(num_virtual_tokens=6, tokens_in_text=inside))
    draw = torch.Generator().manual_seed(0)
    words = base.get_input_embeddings()(torch.randint(100, 40_000, (2, 6), generator=draw))
    with torch.no_grad():
        prompted.prompts["default"].embedding.weight.copy_(words.mean(0))
    prompted.save_pretrained(tmp_path / "prompt", template=template)
    found = export_model({"mine": open_folder(tmp_path / "prompt")}, tmp_path / "out")
    assert found.first_ids == {"mine": 49_152}
    assert found.silent.largest_share is not None
    assert found.silent.largest_share < 1e-8

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    answerer = Answerer.open(tmp_path / "prompt", dtype="float32", device="cpu")
    for text in TEXTS:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            soft_prompt="mine",
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        out = model.generate(**asked, max_new_tokens=12, do_sample=False)[0, asked["input_ids"].shape[1] :]
        assert tokenizer.decode(out, skip_special_tokens=True) == answerer.answer(text, max_new_tokens=12)
        logits = model(**asked).logits[0].detach()
        assert float(logits.softmax(-1)[:, 49_152:].sum(-1).max()) < 1e-6
        ids = torch.tensor([answerer.tokenizer(text)["input_ids"]])
        assert torch.allclose(model(ids).logits[..., :49_152], base(ids).logits, rtol=0, atol=1e-3)
