"""A simulated accelerator: a device `gpux` in pure Python, with real numbers, CUDA's rules about devices, and a ledger.

- Its tensors are wrappers around CPU tensors (`GpuTensor.raw`); every operation is done on the CPU.
- An operation whose tensors lie on different devices fails as CUDA's does. What CUDA lets pass (0-dimensional CPU
  tensors, CPU indices, copies) passes, and is noted as a wait of the host where CUDA waits.
- The backward runs in a thread of its own, as on CUDA: PrivateUse1 has a device guard.
- CPU-only kernels (`*_for_cpu`, mkldnn) are refused.
- Attention, RMS norm and the backward of SiLU are the kernels that CUDA has for them.

A process that imports this has the device for good: tests with it run in a process of their own.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from devices.gpu_tensor import NAME, GpuTensor, is_gpu, run, torch_as_tensor, torch_tensor
from devices.ledger import LEDGER

aten = torch.ops.aten


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


def _is_ours(device):
    return device is not None and torch.device(device).type == NAME


def _tensor(data, *, dtype=None, device=None, requires_grad=False, **kwargs):
    if not _is_ours(device):
        return torch_tensor(data, dtype=dtype, device=device, requires_grad=requires_grad, **kwargs)
    made = torch_tensor(data.raw if is_gpu(data) else data, dtype=dtype)
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
        else torch_as_tensor(data, dtype=dtype, device=device)
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
            return run(func, args, kwargs)
        leaves = tree_leaves((args, kwargs))
        if any(is_gpu(leaf) for leaf in leaves):
            return run(func, args, kwargs)
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
