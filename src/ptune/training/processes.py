"""Several processes: a frozen model in shards, and what is refused or said before anything is loaded.

`--fsdp`, `fsdp=True` and `accelerate launch --use_fsdp --fsdp_version 2` ask for shards. transformers and accelerate
would shard prompt and frozen model together, with a state of its own kind in every checkpoint; ptune shards the frozen
layers itself (`ptune.frozen.shards`), and all else stays as with the whole model in each process (DDP). DeepSpeed's
ZeRO-1 and ZeRO-2 shard the optimizer alone, and work as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import TrainingArguments

from ptune.errors import ConfigError
from ptune.frozen.parameters import has_weights
from ptune.frozen.quantized import is_quantized
from ptune.frozen.shards import shard_layers
from ptune.model.wrapper import PTunedModel
from ptune.recipe import TrainRecipe

_ZERO_OF_THE_WEIGHTS = 3


def take_over_sharding(args: TrainingArguments, recipe: TrainRecipe | None = None) -> DeviceMesh | None:
    """The processes over which training arguments or accelerate's launcher ask to shard the model, if they do.

    Args:
        args: The arguments; what asks for FSDP is taken out of them, and out of the environment: none will ask again.
        recipe: Says how the frozen model will be loaded, where it is not yet.

    Raises:
        ConfigError: The frozen model cannot be sharded in the way that is asked for, or not be spread over devices.
    """
    if recipe is not None and recipe.device_map is not None and args.world_size > 1:
        raise ConfigError(
            f"device_map={recipe.device_map!r} spreads the model over the devices of one process, and there are "
            f"{args.world_size}.",
            hint="Start one process; or leave device_map out, and --fsdp spreads the layers over the processes.",
        )
    stage = getattr(getattr(args, "deepspeed_plugin", None), "zero_stage", None)
    if _asked("ACCELERATE_USE_DEEPSPEED") and stage is None:
        stage = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0"))
    if stage == _ZERO_OF_THE_WEIGHTS:
        raise ConfigError(
            "DeepSpeed ZeRO-3 shards the frozen model in a way that no prompt can be trained on.",
            hint="Use --fsdp, which shards its layers, or ZeRO-2.",
        )
    if not (args.fsdp or _asked("ACCELERATE_USE_FSDP")):
        return None
    version = str((args.fsdp_plugin_args or {}).get("fsdp_version") or os.environ.get("FSDP_VERSION", "1"))
    if version != "2":
        raise ConfigError(
            f"FSDP version {version} shards prompt and frozen model together.",
            hint="Ask for version 2: --fsdp, or accelerate launch --use_fsdp --fsdp_version 2.",
        )
    if args.world_size < 2:
        raise ConfigError(
            "FSDP shards the frozen model over several processes, and this is the only one.",
            hint="Start several: torchrun --nproc-per-node 2 -m ptune train … --fsdp.",
        )
    if recipe is not None and recipe.quantization is not None:
        raise ConfigError(
            f"quantization={recipe.quantization} and FSDP exclude each other: quantized weights cannot be sharded.",
            hint="Leave one of them out.",
        )
    if recipe is not None and recipe.eval_metrics:
        raise ConfigError(
            "eval_metrics and FSDP exclude each other: every process would need all the others for each token of its "
            "own answers.",
            hint="Leave eval_metrics out, and measure the finished prompt with ptune evaluate.",
        )
    args.fsdp = args.fsdp_plugin_args = None
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    return init_device_mesh(args.device.type, (args.world_size,))


@contextmanager
def in_turn(args: TrainingArguments) -> Iterator[None]:
    """One process after another, so that the memory of the CPU has to hold one whole model at a time."""
    for _ in range(args.process_index):
        torch.distributed.barrier()
    yield
    for _ in range(args.process_index, args.world_size):
        torch.distributed.barrier()


def processes_lines(args: TrainingArguments, *, sharded: bool) -> list[str]:
    """What is to be said of the processes before they train."""
    if sharded:
        return [f"the frozen layers are in {args.world_size} shards, one a process; each is gathered as it runs"]
    # accelerate's launcher leaves several CPU processes to MPI; that it was asked for them shows in a place to meet.
    if args.world_size == 1 and _asked("ACCELERATE_USE_CPU") and "MASTER_ADDR" in os.environ:
        asked = "one process trains, where accelerate launch was asked for more: on CPUs it starts several by MPI alone"
        return [f"{asked}; use torchrun --nproc-per-node N -m ptune train …"]
    return []


def shard(model: PTunedModel, mesh: DeviceMesh) -> None:
    """Keep this process's part of a model's frozen layers; every process must do so, with the same model.

    Raises:
        ConfigError: It is not whole in this process.
        ModelError: Its architecture cannot be sharded.
    """
    base = model.base
    if is_quantized(base) or getattr(base, "hf_device_map", None) is not None or not has_weights(base):
        raise ConfigError(
            "FSDP needs the frozen model whole in every process, neither quantized nor with a device_map.",
            hint="Load it plainly; with accelerate launch, say --fsdp_cpu_ram_efficient_loading false.",
        )
    shard_layers(base, mesh)
    # Gradients would come to a layer by its keys and values alone, when it has been let go.
    model.capability = replace(model.capability, prefix=False, reason="its layers are sharded over processes")


def _asked(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "y", "on", "t")
