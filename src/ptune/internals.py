"""Every name of other libraries that is not public and that ptune uses: looked up here, and nowhere else.

A kernel that a build does not have is None here, and its callers take PyTorch's own path. Where Trainer lacks a method
that is hooked into, training is left to it (`missing_trainer_names`). The other names are there in every version that
ptune declares: `tests/test_internals.py` looks for each, and `make test-oldest` runs it with the least versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import nn

Kernel = Callable[..., Any]


def _kernel(library: str, name: str) -> Kernel | None:
    """An operator of PyTorch's that has no function of its own; None where this build has none of that name."""
    found: Kernel | None = getattr(getattr(torch.ops, library), name, None)
    return found


# ---- kernels -------------------------------------------------------------------------------------------------------

ONEDNN_LINEAR = _kernel("mkldnn", "_linear_pointwise")
"""A product by oneDNN, as PyTorch's compiler calls it. Without it: `F.linear`."""
CPU_FLASH = _kernel("aten", "_scaled_dot_product_flash_attention_for_cpu")
"""What `F.scaled_dot_product_attention` calls on the CPU, with the log-sum-exp that it drops. Without it: that."""
CPU_FLASH_BACKWARD = _kernel("aten", "_scaled_dot_product_flash_attention_for_cpu_backward")
GROUPED_PRODUCT = getattr(_kernel("aten", "_grouped_mm"), "default", None)
"""The product of a mixture of experts, as a forecast of memory sees it."""
SCALAR = torch.ops.aten._local_scalar_dense.default
"""`tensor.item()`, as a forecast sees it."""


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16 products: AVX512-BF16 or AMX."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


# ---- modules and tensors -------------------------------------------------------------------------------------------


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """A module's own children by name, absent ones too; its attributes may resolve to other things."""
    return module._modules


def tensors_of(module: nn.Module) -> tuple[dict[str, torch.Tensor | None], ...]:
    """A module's own parameters and buffers, to be exchanged: `setattr` would add a name."""
    return module._parameters, module._buffers  # type: ignore[return-value]  # a parameter is a tensor


def forward_hooks(module: nn.Module) -> Iterator[int]:
    """Keys of a module's forward hooks, which torch never gives twice."""
    return chain(module._forward_hooks, module._forward_pre_hooks)


def changes_output(module: nn.Module) -> bool:
    """Whether hooks run on what a module gives."""
    return bool(module._forward_hooks)


def rename_weights(module: nn.RNNBase) -> None:
    """Have a recurrent module take up tensors that were exchanged."""
    module._init_flat_weights()


def writes_to(tensor: torch.Tensor) -> int:
    """How many writes to a tensor torch has counted; -1 for an inference tensor, which counts none."""
    return -1 if tensor.is_inference() else tensor._version


def viewed(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor that a view looks at; the tensor itself where it is no view."""
    return tensor if tensor._base is None else tensor._base


def storage_key(storage: torch.UntypedStorage) -> int:
    """What tells one storage from another, with data and without."""
    return int(storage._cdata)


def packet_of(operator: Any) -> Any:
    """The operator without its overload."""
    return operator._overloadpacket


# ---- transformers --------------------------------------------------------------------------------------------------


def set_attention(config: Any, name: str) -> None:
    """Name the attention function of one configuration; the public property writes to those inside it too."""
    config._attn_implementation_internal = name


def set_model_name(model: Any, name: str) -> None:
    """Note the name that a model was asked for by; transformers keeps it in the configuration."""
    model.name_or_path = model.config._name_or_path = name


def set_backend(tokenizer: Any, backend: Any) -> None:
    """Exchange the tokenizer of the Rust library inside one of transformers."""
    tokenizer._tokenizer = backend


def use_one_gpu(arguments: Any) -> None:
    """Keep Trainer from spreading a batch over several GPUs in threads (DataParallel)."""
    arguments._n_gpu = 1


def leave_out_of_ddp(model: nn.Module, names: list[str]) -> None:
    """Name parameters and buffers that DistributedDataParallel neither compares nor sends round."""
    model._ddp_params_and_buffers_to_ignore = names  # type: ignore[assignment]  # a plain attribute


def checkpoints_activations(model: Any) -> bool:
    """Whether a model computes activations again in the backward; called gradient checkpointing before 5.23."""
    found = getattr(model, "is_activation_checkpointing", None)
    return bool(model.is_gradient_checkpointing if found is None else found)


def keeps_state(model: Any) -> bool:
    """Whether a model's class says that it keeps a running state rather than keys and values."""
    return bool(getattr(model, "_is_stateful", False))


def record_outputs(model: Any) -> None:
    """Have a model put its hooks for hidden states on its layers now.

    A shallow copy that came first would put its own on the layers that both share, and each state would come twice.
    Versions without this function have no such hooks.
    """
    if find_spec("transformers.utils.output_capturing") is None:
        return
    install = getattr(import_module("transformers.utils.output_capturing"), "maybe_install_capturing_hooks", None)
    if install is not None:
        install(model)


# ---- transformers.Trainer ------------------------------------------------------------------------------------------

TRAINER_HOOKS = {
    "_get_grad_norm": "the last place before the optimizer takes a gradient: NaN is found there",
    "_run_epoch": "a run that was over does no step, and rows come in the same order in a resumed run",
    "_save_checkpoint": "a checkpoint is whole or not there, and holds no pickle",
    "_load_from_checkpoint": "the prompt encoder comes from a prompt folder",
    "_load_best_model": "the same for the best checkpoint",
    "_load_optimizer_and_scheduler": "the optimizer's state is read without a pickle",
    "_load_rng_state": "so are the random generators'",
}
"""The methods that ptune's trainer overrides, and why no public one would do."""
TRAINER_CALLS = ("_maybe_log_save_evaluate", "_remove_unused_columns", "_get_collator_with_removed_columns")
"""Those that it calls."""


@cache
def missing_trainer_names(trainer: type) -> tuple[str, ...]:
    """What this version's `Trainer` lacks of them; without one of them everything is left to it."""
    return tuple(name for name in (*TRAINER_HOOKS, *TRAINER_CALLS) if not callable(getattr(trainer, name, None)))


class LossSums(NamedTuple):
    """The sums behind the next logged loss, and the one at the end."""

    running: torch.Tensor
    """Since the last log, on the device."""
    total: float
    last_logged: int
    """The step of the last log."""
    first_step: int


def loss_sums(trainer: Any) -> LossSums:
    """What a trainer has summed up."""
    return LossSums(
        trainer._tr_loss,
        trainer._total_loss_scalar,
        trainer._globalstep_last_logged,
        getattr(trainer, "_initial_global_step", 0),
    )


def set_loss_sums(trainer: Any, sums: LossSums) -> None:
    """Let a trainer go on with these sums."""
    trainer._tr_loss, trainer._total_loss_scalar, trainer._globalstep_last_logged, trainer._initial_global_step = sums


def finish_epoch(trainer: Any, *, grad_norm: float | None, learning_rate: float | None, began: float) -> None:
    """Log, measure and save at the end of an epoch, as far as the trainer's `control` asks for it."""
    epoch = int(trainer.state.epoch or 1) - 1
    trainer._maybe_log_save_evaluate(
        trainer._tr_loss, grad_norm, trainer.model_wrapped, None, epoch, None, began, learning_rate=learning_rate
    )


def training_columns(trainer: Any, dataset: Any, collate: Any) -> tuple[Any, Any]:
    """A data set and its collator without the columns that the model does not take, as Trainer leaves them out."""
    if hasattr(dataset, "column_names"):
        return trainer._remove_unused_columns(dataset, description="training"), collate
    return dataset, trainer._get_collator_with_removed_columns(collate, description="training")


# ---- sacrebleu -----------------------------------------------------------------------------------------------------


def statistics_of(
    metric: Any, answers: list[str], references: list[list[str | None]]
) -> tuple[Any, Callable[..., float]]:
    """What one of sacrebleu's metrics counts in each row, and its score of a sum of such counts.

    It has no public way to them, and its own resampling gives no interval for a difference.
    """
    score = metric._compute_score_from_stats
    return metric._extract_corpus_statistics(answers, references), lambda counts: float(score(list(counts)).score)
