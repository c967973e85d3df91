"""A second device without hardware: tensors that live on the CPU and say that they do not.

``far:0`` is torch's PrivateUse1 device, spoken for in Python alone. Its tensors hold one of the CPU
each, run every operation on what they hold, and refuse what CUDA refuses: tensors of two devices in
one operation (numbers and indices apart), generators of another device, NumPy, and operations or
types that CUDA lacks. Autocast follows CUDA's lists, which are not the CPU's.

What it cannot show: CUDA's own kernels and their rounding, asynchronous copies, memory, speed, and
all that asks for a device called ``cuda``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "far"
_ATEN = torch.ops.aten
_HALF = (torch.float16, torch.bfloat16)

# Operations whose tensors of indices may be on the CPU beside a tensor that is elsewhere.
_INDEXING = {
    _ATEN.index.Tensor,
    _ATEN._unsafe_index.Tensor,
    _ATEN.index_put.default,
    _ATEN.index_put_.default,
    _ATEN._index_put_impl_.default,
    _ATEN._unsafe_index_put.default,
}
# Make an empty tensor and then resize it, which a wrapper cannot follow.
_RESIZING = (
    "arange", "arange.start", "arange.start_step", "eye", "eye.m", "randperm", "range", "range.step"
)  # fmt: skip
_COPIES = {_ATEN.copy_.default, _ATEN._to_copy.default, _ATEN._copy_from_and_resize.default}
# Beside those that torch tags as pointwise: take numbers from the CPU.
_TAKE_NUMBERS = {"masked_fill", "masked_fill_", "fill", "fill_", "where", "index_fill"}
_NO_INTEGERS = {"mm", "bmm", "addmm", "addmm_", "baddbmm", "mv", "dot", "histc"}
_CPU_ONLY = ("for_cpu", "mkldnn", "histogram", "_fbgemm", "quantize_per")

# CUDA's lists, as far as models and losses go.
_LOWER = (
    "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "mv", "conv1d", "conv2d", "einsum",
    "scaled_dot_product_attention",
)  # fmt: skip
_FP32 = (
    "exp", "log", "log2", "log10", "log1p", "expm1", "rsqrt", "reciprocal", "softplus",
    "layer_norm", "native_layer_norm", "nll_loss", "nll_loss_nd", "mse_loss", "huber_loss",
    "smooth_l1_loss", "l1_loss", "kl_div", "binary_cross_entropy_with_logits", "cdist",
    "cosine_similarity", "logsumexp", "pow.Tensor_Scalar", "pow.Tensor_Tensor",
)  # fmt: skip
_FP32_IF_UNSAID = (
    "softmax.int", "log_softmax.int", "cumsum", "cumprod", "sum", "sum.dim_IntList", "prod",
    "linalg_vector_norm",
)  # fmt: skip


class MixedDevicesError(RuntimeError):
    """What CUDA would refuse."""


class FarTensor(torch.Tensor):
    """A tensor on the emulated device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> FarTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"FarTensor({self.held})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Loaded to the CPU, as with map_location="cpu".
        return self.detach().cpu().requires_grad_(self.requires_grad).__reduce_ex__(protocol)

    def numpy(self, **_: Any) -> Any:
        raise MixedDevicesError(f"{NAME} tensor to NumPy without .cpu()")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def new_tensor(self, data: Any, dtype: Any = None, device: Any = None, **_: Any) -> Any:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device)

    # What tells tensors apart that share memory.
    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def __deepcopy__(self, memo: Any) -> Any:
        if id(self) not in memo:
            made = FarTensor(self.held.detach().clone()).requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                made = torch.nn.Parameter(made, self.requires_grad)
            memo[id(self)] = made
        return memo[id(self)]

    def pin_memory(self, *_: Any) -> Any:
        raise MixedDevicesError(f"only tensors of the CPU can be pinned, not {NAME}'s")


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    leaves = pytree.tree_leaves((args, kwargs))
    far = [leaf for leaf in leaves if isinstance(leaf, FarTensor)]
    if func not in _COPIES:
        _check(func, args, leaves, far)
    held = {id(tensor.held): tensor for tensor in far}
    inner_args, inner_kwargs = pytree.tree_map_only(FarTensor, lambda t: t.held, (args, kwargs))
    device = kwargs.get("device")
    if device is not None:
        inner_kwargs["device"] = "cpu"
    inner_kwargs.pop("pin_memory", None)
    out = func(*inner_args, **inner_kwargs)
    if func is _ATEN.copy_.default:
        return args[0]
    if func is _ATEN._local_scalar_dense.default or (
        device is not None and torch.device(device).type != NAME
    ):
        return out
    if torch.Tag.inplace_view in func.tags:
        with torch._C._DisableTorchDispatch():  # the same to the wrapper's own shape
            func(*args, **kwargs)
    for tensor in far:
        assert tensor.shape == tensor.held.shape, f"{func} changes a shape in place"
    return pytree.tree_map_only(
        torch.Tensor, lambda t: held[id(t)] if id(t) in held else FarTensor(t), out
    )


def _check(func: Any, args: Any, leaves: list[Any], far: list[FarTensor]) -> None:
    name = func.overloadpacket.__name__
    if any(part in name for part in _CPU_ONLY):
        raise MixedDevicesError(f"{func} is the CPU's alone")
    if name in _NO_INTEGERS and any(not t.is_floating_point() for t in far):
        raise MixedDevicesError(f"{func} takes no integers on CUDA")
    for leaf in leaves:
        if isinstance(leaf, torch.Generator) and leaf.device.type != NAME:
            raise MixedDevicesError(f"{func}: a generator of {leaf.device}, tensors of {NAME}")
    near = [t for t in leaves if isinstance(t, torch.Tensor) and not isinstance(t, FarTensor)]
    if not near or not far:
        return
    if func in _INDEXING and isinstance(args[0], FarTensor):
        near = [t for t in near if not any(t is index for index in args[1])]
        pointwise = True
    else:
        pointwise = (
            torch.Tag.pointwise in func.tags
            or name.startswith("_foreach")
            or name in _TAKE_NUMBERS
        )  # fmt: skip
    changed = isinstance(args[0], torch.Tensor) and name.endswith("_")
    if (
        any(t.dim() > 0 for t in near)
        or (near and not pointwise)
        or (changed and not isinstance(args[0], FarTensor))
    ):
        shapes = [f"{t.device}{tuple(t.shape)}" for t in leaves if isinstance(t, torch.Tensor)]
        raise MixedDevicesError(f"{func} gets tensors of two devices: {', '.join(shapes)}")


class _Module:
    """What torch expects to find as ``torch.far``."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def manual_seed_all(self, seed: int) -> None:
        """All is drawn by the CPU's generator."""

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return list(_HALF)

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


def _find(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(_ATEN, packet), overload or "default")


def _make(operation: Any, *args: Any, **kwargs: Any) -> FarTensor:
    return FarTensor(operation(*args, **kwargs | {"device": "cpu", "pin_memory": False}))


def _make_autocast(operation: Any, kind: str) -> Any:
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        if value.dtype == torch.float64 or value.device.type != NAME:
            return value
        return value.to(torch.get_autocast_dtype(NAME) if kind == "lower" else torch.float32)

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(key):
            if kind != "unsaid" or kwargs.get("dtype") is None:
                args, kwargs = pytree.tree_map(cast, (args, kwargs))
            return operation(*args, **kwargs)

    return run


_LIBRARIES: list[torch.library.Library] = []  # they unregister when they are collected


def install() -> None:
    """Bring the device to life, once a process."""
    if _LIBRARIES:
        return
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    every = torch.library.Library("_", "IMPL")
    every.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    aten = torch.library.Library("aten", "IMPL")
    lists = {"lower": _LOWER, "fp32": _FP32, "unsaid": _FP32_IF_UNSAID}
    for kind, names in lists.items():
        for name in names:
            aten.impl(name, _make_autocast(_find(name), kind), "AutocastPrivateUse1")
    for name in _RESIZING:
        aten.impl(name, partial(_make, _find(name)), "PrivateUse1")
    _LIBRARIES.extend([every, aten])
    # Modules swap what their parameters are when they move, so that tied ones stay tied.
    torch.__future__.set_swap_module_params_on_conversion(True)
    # torch fills these below where subclasses are seen.
    for name in ("tensor", "as_tensor"):
        setattr(torch, name, _fill_then_move(getattr(torch, name)))


def _fill_then_move(make: Any) -> Any:
    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if device is None or torch.device(device).type != NAME:
            return make(data, *args, device=device, **kwargs)
        if isinstance(data, FarTensor):
            return data.to(kwargs.get("dtype", data.dtype))
        grad = kwargs.pop("requires_grad", False)
        return make(data, *args, **kwargs).to(device).requires_grad_(grad)

    return made
