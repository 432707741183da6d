"""Tensors of the simulated accelerator, and CUDA's rules for operations on them.

Every operation is done on the CPU, on the `raw` tensor inside; see `simulated_accelerator.py`.
"""

from __future__ import annotations

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from devices.gpu_kernels import INSTEAD
from devices.ledger import LEDGER

NAME = "gpux"
COUNT = 2


class _Module(_DummyBackendModule):
    def __init__(self):
        self.Stream = object

    def device_count(self):
        return COUNT

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def current_device(self):
        return 0

    def set_device(self, device):
        pass

    def synchronize(self, device=None):
        pass

    def get_rng_state(self, device=None):
        return torch.random.get_rng_state()

    def set_rng_state(self, state, device=None):
        torch.random.set_rng_state(state)

    def empty_cache(self):
        pass

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    def is_bf16_supported(self, *a, **k):
        return True


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
aten = torch.ops.aten
torch_tensor, torch_as_tensor = torch.tensor, torch.as_tensor
"""PyTorch's own, which `FakeGpu` exchanges."""


class GpuTensor(torch.Tensor):
    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw, device):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
            requires_grad=False,
        )
        made.raw, made.where = raw, torch.device(device)
        return made

    # PyTorch's guard for a device in Python knows one device; which of several it is, is known here alone.
    device = property(lambda self: self.where)

    def to(self, *args, **kwargs):
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(
            *args, **{k: v for k, v in kwargs.items() if k not in ("copy",)}
        )
        if device is not None and device.type == NAME and torch.device(NAME, device.index or 0) != self.where:
            return aten._to_copy.default(
                self, device=torch.device(NAME, device.index or 0), dtype=dtype, non_blocking=non_blocking
            )
        return super().to(*args, **kwargs)

    def __getitem__(self, index):
        # C++ would make a tensor of a list on the device, and knows no way to.
        parts = index if isinstance(index, tuple) else (index,)
        return super().__getitem__(tuple(torch_tensor(one) if isinstance(one, list) else one for one in parts))

    def tolist(self):
        LEDGER.wait("tolist")
        return self.raw.tolist()

    def numpy(self, *a, **k):
        raise TypeError(
            "can't convert a GPU tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def data_ptr(self):
        return self.raw.data_ptr()

    def __repr__(self, *a, **k):
        return f"GpuTensor({self.raw!r}, device={self.device})"

    def __deepcopy__(self, memo):
        if id(self) in memo:
            return memo[id(self)]
        with torch.no_grad():
            made = GpuTensor(self.raw.clone(), self.device)
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, requires_grad=self.requires_grad)
        else:
            made.requires_grad_(self.requires_grad)
        memo[id(self)] = made
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


# `is_plain` in ptune takes a fake tensor for an ordinary one by the module of its class.
GpuTensor.__module__ = "torch._subclasses.fake_tensor"

_COPIES = {aten.copy_.default, aten._to_copy.default, aten.copy.default}
_CPU_INDEX = {
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
_SYNC = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.equal.default: "equal",
    aten.repeat_interleave.Tensor: "repeat_interleave(Tensor)",
    aten.is_nonzero.default: "is_nonzero",
    aten.unique_dim.default: "unique",
    aten.unique_consecutive.default: "unique",
}
_FREE = (
    "empty",
    "detach",
    "alias",
    "lift_fresh",
    "is_same_size",
    "_local_scalar_dense",
    "new_empty",
    "empty_like",
    "_has_compatible_shallow_copy_type",
    "set_",
    "_unsafe_view",
    "is_pinned",
)
_KERNELS = {
    "_flash_attention_backward": 4,
    "_varlen_attn_backward": 4,
    "index_put_": 9,
    "index_put": 9,
    "_index_put_impl_": 9,
    "nonzero": 3,
    "sort": 3,
    "topk": 2,
    "cumsum": 1,
    "embedding_dense_backward": 8,
    "argsort": 3,
    "multinomial": 4,
    "masked_fill": 2,
    "clamp_min": 1,
    "repeat": 1,
    "masked_scatter": 4,
    "randperm": 3,
    "native_layer_norm_backward": 2,
    "var_mean": 1,
    "std": 1,
    "_foreach_norm": 2,
    "linalg_vector_norm": 1,
    "addmm": 1,
    "scatter_add_": 1,
    "scatter_add": 2,
    "scatter": 2,
    "index_add": 2,
    "index_copy": 2,
    "slice_backward": 2,
    "select_backward": 2,
    "lerp_": 1,
    "constant_pad_nd": 2,
}


def is_gpu(value):
    """Whether a value is a tensor of the device."""
    return isinstance(value, GpuTensor)


def cpu(value):
    """The numbers of a tensor of the device; other values are left alone."""
    return value.raw if is_gpu(value) else value


def run(func, args, kwargs):  # noqa: C901  # one rule of the device after the other
    """An operation on the device, or a copy to it or from it."""
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    devices = {leaf.device for leaf in leaves if is_gpu(leaf)}
    name = func._schema.name.split("::")[1]
    if "_for_cpu" in name or func._schema.name.startswith("mkldnn"):
        raise NotImplementedError(f"Could not run '{func}' with arguments from the 'CUDA' backend.")
    wanted = kwargs.get("device")
    wanted = torch.device(wanted) if wanted is not None else None
    if wanted is not None and wanted.type == NAME and func not in _COPIES and devices and name not in ("arange",):
        wanted = next(iter(devices))  # `new_zeros` and others: of the device that C++ takes it to be
    if func not in _COPIES:
        if len(devices) > 1 and torch._C._current_graph_task_id() == -1:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found {sorted(map(str, devices))} ({func})"
            )
        for leaf in leaves:
            if not is_gpu(leaf) and leaf.device.type == "cpu" and leaf.dim() > 0 and devices:
                if func in _CPU_INDEX and not any(leaf is one for one in args[:1]):
                    LEDGER.wait("H2D copy of a CPU index")
                    continue
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found cpu and {devices} ({func})"
                )
    target = wanted if wanted is not None else next(iter(devices), None)
    _note(func, name, args, kwargs, leaves, devices, target)
    plain_kwargs = dict(kwargs)
    if wanted is not None:
        plain_kwargs["device"] = torch.device("cpu")
        if plain_kwargs.get("pin_memory"):
            plain_kwargs["pin_memory"] = False
    out = INSTEAD.get(func, func)(*tree_map(cpu, args), **tree_map(cpu, plain_kwargs))
    if func is aten.copy_.default:
        return args[0]
    if target is None or target.type != NAME:
        return out
    device = torch.device(NAME, target.index or 0)
    made = {}

    def wrap(value):
        if not isinstance(value, torch.Tensor) or is_gpu(value):
            return value
        for leaf in leaves:  # in place, and out=
            if is_gpu(leaf) and leaf.raw is value:
                return leaf
        if id(value) not in made:
            made[id(value)] = GpuTensor(value, device)
        return made[id(value)]

    wrapped = tree_map(wrap, out)
    if any(one.alias_info is not None for one in func._schema.returns) and not func._schema.is_mutable:
        return wrapped
    return wrapped


def _note(func, name, args, kwargs, leaves, devices, target):  # noqa: C901  # one kind of operation after the other
    if func in _COPIES:
        if func is aten.copy_.default:
            to, source = args[0], args[1]
            later = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            pair = (is_gpu(to), is_gpu(source))
        else:
            source = args[0]
            later = kwargs.get("non_blocking")
            pair = (target is not None and target.type == NAME, is_gpu(source))
        if not source.numel():
            return
        if pair == (True, False):
            LEDGER.copy("H2D")
            if source.dim() == 0 and func is aten.copy_.default:
                LEDGER.kernel("fill", 1)
            elif not (later and source.is_pinned()):
                LEDGER.wait("H2D, blocking" if source.is_pinned() else "H2D from pageable memory")
        elif pair == (False, True):
            LEDGER.copy("D2H")
            LEDGER.wait("D2H")
        elif pair == (True, True):
            LEDGER.kernel("copy", 1)
        return
    if not devices and not (target is not None and target.type == NAME):
        return
    if func in _SYNC:
        LEDGER.wait(_SYNC[func])
    masks = 0
    if func in _CPU_INDEX:
        masks = sum(one is not None and one.dtype in (torch.bool, torch.uint8) and is_gpu(one) for one in args[1])
        for _ in range(masks):
            LEDGER.wait("boolean index (nonzero)")
    if func.is_view or name in _FREE or name.startswith("empty"):
        return
    number = _KERNELS.get(name, 1)
    if name in ("index_put_", "index_put", "_index_put_impl_") and not (args[3:] and args[3]):
        number = 1
    LEDGER.kernel(name, number + 3 * masks)
