"""Invariant 6: the frozen model's weights are byte-identical after training."""

from __future__ import annotations

import hashlib

import pytest
import torch

from architectures import ARCHITECTURES
from prompting import encoder_prompt, padded, supervised, texts


def _digest(model: torch.nn.Module) -> str:
    """SHA-256 over the names and bytes of every parameter and buffer."""
    whole = hashlib.sha256()
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in sorted(tensors):
        whole.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return whole.hexdigest()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_training_changes_the_encoder_alone(name: str, checkpointing: bool) -> None:
    base = ARCHITECTURES[name]()
    before = _digest(base)
    model = encoder_prompt(base, "LSTM")
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in model.prompts.parameters()}
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    ids, mask = padded(texts((9, 3, 12)), "right")
    losses = []
    for _ in range(4):
        loss = model(ids, attention_mask=mask, labels=supervised(ids, mask)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    model.eval().generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False)

    assert losses[-1] < losses[0]
    assert _digest(base) == before == _digest(ARCHITECTURES[name]())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in base.parameters())
