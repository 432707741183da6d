"""A simulated accelerator: a device `gpux` in pure Python, with real numbers, CUDA's rules about devices, and a ledger.

- Its tensors are wrappers around CPU tensors (`GpuTensor.raw`); every operation is done on the CPU.
- An operation whose tensors lie on different devices fails as CUDA's does. What CUDA lets pass (0-dimensional CPU
  tensors, CPU indices, copies) passes, and is noted as a wait of the host where CUDA waits.
- The backward runs in a thread of its own, as on CUDA: PrivateUse1 has a device guard.
- CPU-only kernels (`*_for_cpu`, mkldnn) are refused.

A process that imports this has the device for good: tests with it run in a process of their own.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
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
        return super().__getitem__(tuple(_torch_tensor(one) if isinstance(one, list) else one for one in parts))

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
        return _run(func, args, kwargs or {})


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
    return isinstance(value, GpuTensor)


def _run(func, args, kwargs):  # noqa: C901  # one rule of the device after the other
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


class _Attention(torch.autograd.Function):
    """PyTorch's attention as one kernel, three in the backward."""

    @staticmethod
    def forward(ctx, query, key, value, mask, dropout, causal, scale, grouped):
        given = [one for one in (query, key, value, mask) if one is not None]
        devices = {one.device for one in given}
        if len(devices) > 1:
            raise RuntimeError(
                f"Expected query, key, value and mask on the same device, but found {sorted(map(str, devices))}"
            )
        kinds = {one.dtype for one in (query, key, value)}
        if len(kinds) > 1 or (mask is not None and mask.dtype not in (torch.bool, query.dtype)):
            raise RuntimeError(
                f"Expected one dtype in attention, but got {kinds} and mask {None if mask is None else mask.dtype}"
            )
        LEDGER.kernel("sdpa" + ("" if mask is None else "+mask"), 1)
        with torch.enable_grad(), _disable_current_modes():
            raws = [one.raw.detach().requires_grad_(one.is_floating_point()) for one in (query, key, value)]
            ctx.out = _sdpa(
                *raws,
                attn_mask=None if mask is None else mask.raw,
                dropout_p=dropout,
                is_causal=causal,
                scale=scale,
                enable_gqa=grouped,
            )
            out = _as_kernels_lay_out(ctx.out.detach())
        ctx.raws, ctx.device = raws, query.device
        return GpuTensor(out, query.device)

    @staticmethod
    def backward(ctx, grad):
        LEDGER.kernel("sdpa backward", 3)
        with _disable_current_modes():
            grads = torch.autograd.grad(ctx.out, ctx.raws, grad.raw, retain_graph=True)
            found = [GpuTensor(_as_kernels_lay_out(one), ctx.device) for one in grads]
        return *found, None, None, None, None, None


def _as_kernels_lay_out(heads):
    """`(rows, heads, positions, width)` as CUDA's kernels give it: the heads of a position together."""
    return heads.transpose(1, 2).contiguous().transpose(1, 2)


_sdpa = torch.nn.functional.scaled_dot_product_attention


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if not is_gpu(query):
        return _sdpa(
            query,
            key,
            value,
            attn_mask=attn_mask,
            dropout_p=dropout_p,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
        )
    if torch.is_autocast_enabled(NAME):
        dtype = torch.get_autocast_dtype(NAME)
        query, key, value = (one.to(dtype) for one in (query, key, value))
        attn_mask = attn_mask.to(dtype) if attn_mask is not None and attn_mask.is_floating_point() else attn_mask
    return _Attention.apply(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)


_torch_tensor, _torch_as_tensor = torch.tensor, torch.as_tensor


def _is_ours(device):
    return device is not None and torch.device(device).type == NAME


def _tensor(data, *, dtype=None, device=None, requires_grad=False, **kwargs):
    if not _is_ours(device):
        return _torch_tensor(data, dtype=dtype, device=device, requires_grad=requires_grad, **kwargs)
    made = _torch_tensor(data.raw if is_gpu(data) else data, dtype=dtype)
    if made.numel():
        LEDGER.copy("H2D")
        LEDGER.wait("H2D from pageable memory")
    return GpuTensor(made, torch.device(NAME, torch.device(device).index or 0)).requires_grad_(requires_grad)


def _as_tensor(data, dtype=None, device=None):
    if isinstance(data, torch.Tensor):
        return data.to(
            device=device if device is not None else data.device, dtype=dtype if dtype is not None else data.dtype
        )
    return (
        _tensor(data, dtype=dtype, device=device)
        if _is_ours(device)
        else _torch_as_tensor(data, dtype=dtype, device=device)
    )


def _pin_memory(self, device=None):
    pinned = self.clone()
    pinned.is_pinned = lambda device=None: True
    return pinned


_PATCHES = (
    (torch.Tensor, "pin_memory", _pin_memory),
    (torch.Tensor, "is_pinned", lambda self, device=None: False),
    (torch, "tensor", _tensor),
    (torch, "as_tensor", _as_tensor),
    (torch.nn.functional, "scaled_dot_product_attention", _attention),
)


class FakeGpu(TorchDispatchMode):
    """Active, `device="gpux"` works in factories and copies."""

    def __enter__(self):
        self._before = [(owner, name, getattr(owner, name)) for owner, name, _ in _PATCHES]
        for owner, name, other in _PATCHES:
            setattr(owner, name, other)
        return super().__enter__()

    def __exit__(self, *error):
        for owner, name, before in self._before:
            setattr(owner, name, before)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted).type == NAME:
            return _run(func, args, kwargs)
        leaves = tree_leaves((args, kwargs))
        if any(is_gpu(leaf) for leaf in leaves):
            return _run(func, args, kwargs)
        if not func.is_view and any(isinstance(one, torch.Tensor) and one.is_floating_point() for one in leaves):
            LEDGER.computed_on_host(func._schema.name)
        return func(*args, **kwargs)


def to_gpu(module, device=f"{NAME}:0", memo=None):
    """Put a module's parameters and buffers on the device; shared ones stay shared."""
    memo = {} if memo is None else memo
    where = device if callable(device) else (lambda name: device)
    for prefix, child in module.named_modules():
        for store in (child._parameters, child._buffers):
            for name, tensor in store.items():
                if tensor is None or is_gpu(tensor):
                    continue
                if id(tensor) not in memo:
                    gpu = GpuTensor(tensor.detach().clone(), torch.device(where(f"{prefix}.{name}".lstrip("."))))
                    if isinstance(tensor, torch.nn.Parameter):
                        gpu = torch.nn.Parameter(gpu, requires_grad=tensor.requires_grad)
                    memo[id(tensor)] = gpu
                store[name] = memo[id(tensor)]
    return module


def cpu(value):
    return value.raw if is_gpu(value) else value


# ---- autocast, as CUDA has it ----------------------------------------------------------------------------------

_LOWER = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "addbmm", "mv", "prelu")
_FLOAT = (
    "layer_norm",
    "rsqrt",
    "pow.Tensor_Scalar",
    "exp",
    "log",
    "softmax.int",
    "log_softmax.int",
    "sum",
    "sum.dim_IntList",
    "cross_entropy_loss",
    "nll_loss",
    "norm.Scalar",
    "cumsum",
    "logsumexp",
    "mse_loss",
    "cosh",
    "tan",
    "softplus",
    "prod",
    "reciprocal",
)
_library = torch.library.Library("aten", "IMPL")
_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)


def _cast(value, dtype):
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(one, dtype) for one in value)
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64 and is_gpu(value):
        return value.to(dtype)
    return value


def _autocast(op, lower):
    def kernel(*args, **kwargs):
        dtype = torch.get_autocast_dtype(NAME) if lower else torch.float32
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):
            return op(*(_cast(one, dtype) for one in args), **{name: _cast(one, dtype) for name, one in kwargs.items()})

    return kernel


# ---- operators that CUDA has a kernel for, and another device only their single steps ------------------------------


class _RmsNorm(torch.autograd.Function):
    """One kernel each way; float32 inside, rounded once."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        LEDGER.kernel("rms_norm", 1)
        with _disable_current_modes():
            wide, weight = x.raw.float(), weight.raw.float()
            rstd = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
            out = (wide * rstd * weight).to(x.dtype)
        ctx.kept, ctx.device = (wide, rstd, weight, x.dtype), x.device
        ctx.set_materialize_grads(False)
        rstd = GpuTensor(rstd, x.device)
        ctx.mark_non_differentiable(rstd)
        return GpuTensor(out, x.device), rstd

    @staticmethod
    def backward(ctx, grad, _):
        LEDGER.kernel("rms_norm backward", 1)
        wide, rstd, weight, dtype = ctx.kept
        with _disable_current_modes():
            scaled = grad.raw.float() * weight
            along = (scaled * wide).mean(-1, keepdim=True) * rstd.square()
            found = ((scaled - wide * along) * rstd).to(dtype)
        return GpuTensor(found, ctx.device), None, None


def _fused_rms_norm(x, shape, weight, eps):
    if weight.device != x.device or weight.dtype != x.dtype or list(shape) != [x.shape[-1]] or weight.requires_grad:
        raise NotImplementedError("a norm that this device does not simulate")
    return _RmsNorm.apply(x, weight, eps)


def _silu_backward(grad, x):
    LEDGER.kernel("silu_backward", 1)
    with _disable_current_modes():
        return GpuTensor(aten.silu_backward.default(grad.raw, x.raw), x.device)


_library.impl("_fused_rms_norm", _fused_rms_norm, "AutogradPrivateUse1")
_library.impl("silu_backward", _silu_backward, "AutogradPrivateUse1")

for _names, _lower in ((_LOWER, True), (_FLOAT, False)):
    for _name in _names:
        _packet, _, _overload = _name.partition(".")
        _op = getattr(getattr(aten, _packet), _overload or "default")
        _library.impl(_op, _autocast(_op, _lower), "AutocastPrivateUse1")
_others = torch.library.Library("_", "IMPL")  # kept: what it registers goes with it
_others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
