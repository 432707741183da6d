"""The tutorial's figures: parameters on BLOOM-1b4, counted on the meta device."""

from __future__ import annotations

import time

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from ptune import PromptEncoderConfig, PromptEncoderReparameterizationType, TaskType, get_peft_model


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("MLP", "trainable params: 12,609,536 || all params: 1,315,721,216 || trainable%: 0.9584\n"),
        ("LSTM", "trainable params: 193,030,144 || all params: 1,496,141,824 || trainable%: 12.9019\n"),
    ],
)
def test_the_tutorials_line(kind: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    start = time.perf_counter()
    with torch.device("meta"):
        base = BloomForCausalLM(BloomConfig(vocab_size=46145, hidden_size=2048, n_layer=24, n_head=16))
        assert sum(parameter.numel() for parameter in base.parameters()) == 1_303_111_680
        config = PromptEncoderConfig(
            task_type=TaskType.CAUSAL_LM,
            num_virtual_tokens=10,
            encoder_reparameterization_type=PromptEncoderReparameterizationType(kind),
        )
        model = get_peft_model(base, config)
    model.print_trainable_parameters()
    assert capsys.readouterr().out == line
    assert time.perf_counter() - start < 10
