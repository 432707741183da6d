"""Layers in shards, in a group of one process; of two: `tests/training/test_processes.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from architectures import build
from prompting import encoder_prompt, padded, prompt_gradient, supervised, texts
from ptune import PromptEncoderConfig
from ptune.errors import ModelError
from ptune.frozen.fingerprint import fingerprint, unquantized_fingerprint
from ptune.frozen.shards import is_sharded, shallow_copy, shard_layers
from ptune.model.wrapper import PTunedModel
from ptune.training.processes import shard


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def _step(model: PTunedModel, *, pack: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of a training batch."""
    ids, mask = padded(texts((9, 3, 12, 7)), "right")
    model.pack_batches = pack
    return prompt_gradient(model, input_ids=ids, attention_mask=mask, labels=supervised(ids, mask), return_logits=False)


@pytest.mark.parametrize("pack", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("name", ["llama", "bloom", "gpt2", "gemma3"])
def test_loss_and_gradient_are_the_whole_models(name: str, pack: bool, mesh: DeviceMesh) -> None:
    wanted = _step(encoder_prompt(build(name)).train(), pack=pack)
    model = encoder_prompt(build(name)).train()
    shard(model, mesh)
    inside = [one for one in model.base.parameters() if isinstance(one, DTensor)]
    assert len(inside) > 0.7 * len(list(model.base.parameters()))
    for _ in range(2):
        for one, other in zip(_step(model, pack=pack), wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
        model.zero_grad()


def test_fingerprints_are_those_from_before(mesh: DeviceMesh) -> None:
    base = build("llama")
    before = fingerprint(base), unquantized_fingerprint(base)
    assert not is_sharded(base)
    shard_layers(base, mesh)
    assert is_sharded(base)
    assert (fingerprint(base), unquantized_fingerprint(base)) == before
    assert fingerprint(build("llama", seed=1)) != before[0]


def test_a_copy_is_of_the_class_from_before_and_shares_weights_and_hooks(mesh: DeviceMesh) -> None:
    base = build("llama")
    layer = base.model.layers[0]
    kind = type(layer)
    shard_layers(base, mesh)
    assert type(layer) is not kind
    twin = shallow_copy(layer)
    assert type(twin) is kind
    assert twin._parameters is layer._parameters
    assert twin._forward_pre_hooks is layer._forward_pre_hooks


def test_weights_in_shards_carry_no_new_prompt(mesh: DeviceMesh) -> None:
    base = build("llama")
    shard_layers(base, mesh)
    with pytest.raises(ModelError, match=r"are shards \(a tensor parallel plan, FSDP\)") as caught:
        PTunedModel(base, PromptEncoderConfig(num_virtual_tokens=2))
    assert "ptune train --fsdp" in str(caught.value)


def test_layers_that_share_weights_are_refused(mesh: DeviceMesh) -> None:
    base = build("llama")
    base.model.layers[1].mlp = base.model.layers[0].mlp
    with pytest.raises(ModelError, match="LlamaForCausalLM has no layers with weights of their own"):
        shard_layers(base, mesh)
