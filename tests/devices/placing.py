"""Small prompted models on the simulated accelerator, on one device or spread over two, and batches there."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers import PreTrainedModel

from devices.gpu_tensor import GpuTensor
from devices.simulated_accelerator import to_gpu
from ptune import PromptEncoderConfig, PTunedModel

GPU = torch.device("gpux:0")


def rows() -> list[dict[str, list[int]]]:
    """Four rows of different lengths; the second is learned from its first token on."""
    source, made = torch.Generator().manual_seed(3), []
    for length in (5, 9, 3, 7):
        ids = torch.randint(3, 128, (length,), generator=source).tolist()
        made.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]})
    made[1]["labels"] = list(made[1]["input_ids"])
    return made


def prompted(
    base: PreTrainedModel, kind: str = "MLP", *, tokens_in_text: int = 0, self_check: bool = True
) -> PTunedModel:
    """A model with a prompt, the same one at every call."""
    torch.manual_seed(1)
    config = PromptEncoderConfig(
        num_virtual_tokens=4,
        tokens_in_text=tokens_in_text,
        encoder_reparameterization_type=kind,
        encoder_hidden_size=16,
    )
    return PTunedModel(base, config, self_check=self_check).train()


def on_gpu(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch on the first device."""
    return {name: GpuTensor(one.clone(), GPU) if isinstance(one, torch.Tensor) else one for name, one in batch.items()}


def spread(base: PreTrainedModel) -> PreTrainedModel:
    """A model whose second half lies on a second device, with accelerate's hooks as `device_map` sets them."""
    layers = max((one for one in base.modules() if isinstance(one, torch.nn.ModuleList)), key=len)
    later = {id(one) for layer in layers[len(layers) // 2 :] for one in layer.modules()}
    head = base.get_output_embeddings()
    if head.weight is not base.get_input_embeddings().weight:
        later.add(id(head))
    second = {name for name, one in base.named_modules() if id(one) in later}
    to_gpu(base, lambda name: "gpux:1" if name.rpartition(".")[0] in second else "gpux:0")
    for name, one in list(base.named_modules()):
        if not list(one.children()) or one is base or any(one is layer for layer in layers):
            device = torch.device("gpux:1" if name in second else "gpux:0")
            add_hook_to_module(one, AlignDevicesHook(execution_device=device, io_same_device=one is base), append=True)
    base.hf_device_map = {"first half": 0, "second half": 1}
    return base
