"""The flash kernels inside torch that hand out their logsumexp, called by name.

The CPU's is used always. Those of CUDA are used only with ``FRUGALFM_FUSED_CUDA=1`` in the
environment, and then only after they have reproduced the safe path on a small input of the same
kind: **they have not run on a GPU yet.**
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Backend", "CpuFlash", "CudaEfficient", "CudaFlash", "choose_backend", "self_check"]

_ATEN = torch.ops.aten
_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_HALF = (torch.bfloat16, torch.float16)

Result = tuple[Tensor, Tensor, tuple[Tensor, ...], tuple[Any, ...]]


class Backend(Protocol):
    """A kernel whose backward takes the logsumexp as an argument."""

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float | None
    ) -> Result:
        """Return output, logsumexp, and what the backward needs beside them."""

    @staticmethod
    def backward(
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        scale: float | None,
        out: Tensor,
        lse: Tensor,
        state: list[Tensor],
        rest: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of query, key and value."""


class CpuFlash:
    """The kernel behind torch's own attention on the CPU."""

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float | None
    ) -> Result:
        """See :class:`Backend`."""
        out, lse = _ATEN._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001
            query, key, value, 0.0, False, attn_mask=bias, scale=scale
        )
        return out, lse, (), ()

    @staticmethod
    def backward(
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        scale: float | None,
        out: Tensor,
        lse: Tensor,
        state: list[Tensor],
        rest: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`Backend`."""
        del state, rest
        grads: tuple[Tensor, Tensor, Tensor] = (
            _ATEN._scaled_dot_product_flash_attention_for_cpu_backward(  # noqa: SLF001
                grad, query, key, value, out, lse, 0.0, False, attn_mask=bias, scale=scale
            )
        )
        return grads


class CudaEfficient:
    """The memory-efficient kernel, which takes a bias. Not run on a GPU yet."""

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float | None
    ) -> Result:
        """See :class:`Backend`."""
        out, lse, *random = _ATEN._scaled_dot_product_efficient_attention(  # noqa: SLF001
            query, key, value, _align(bias, query, key), True, 0.0, False, scale=scale
        )
        return out, lse, tuple(random), ()

    @staticmethod
    def backward(
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        scale: float | None,
        out: Tensor,
        lse: Tensor,
        state: list[Tensor],
        rest: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`Backend`."""
        del rest
        wanted = [True, True, True, False]
        grads = _ATEN._scaled_dot_product_efficient_attention_backward(  # noqa: SLF001
            grad,
            query,
            key,
            value,
            _align(bias, query, key),
            out,
            lse,
            *state,
            0.0,
            wanted,
            False,
            scale=scale,
        )
        return grads[0], grads[1], grads[2]


class CudaFlash:
    """FlashAttention, half precision, without a bias. Not run on a GPU yet."""

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float | None
    ) -> Result:
        """See :class:`Backend`."""
        del bias
        out, lse, starts_q, starts_k, longest_q, longest_k, seed, offset, _ = (
            _ATEN._scaled_dot_product_flash_attention(  # noqa: SLF001
                query, key, value, 0.0, False, False, scale=scale
            )
        )
        # Whole batches have no table of starts: the kernel returns None for it.
        return out, lse, (seed, offset), (starts_q, starts_k, longest_q, longest_k)

    @staticmethod
    def backward(
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        scale: float | None,
        out: Tensor,
        lse: Tensor,
        state: list[Tensor],
        rest: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`Backend`."""
        del bias
        grads: tuple[Tensor, Tensor, Tensor] = _ATEN._scaled_dot_product_flash_attention_backward(  # noqa: SLF001
            grad, query, key, value, out, lse, *rest, 0.0, False, *state, scale=scale
        )
        return grads


def choose_backend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    *,
    reference: Callable[..., Tensor],
) -> type[Backend] | None:
    """Choose the kernel for these inputs; None where the safe path must serve.

    Parameters
    ----------
    query, key, value, bias
        Of the attention.
    reference
        The safe path, against which a CUDA kernel proves itself once per kind of input.
    """
    same = query.dtype == key.dtype == value.dtype and query.shape[-1] == value.shape[-1]
    if not same:
        return None
    if query.device.type == "cpu":
        return CpuFlash if query.dtype in _CPU_DTYPES else None
    if query.device.type != "cuda" or os.environ.get("FRUGALFM_FUSED_CUDA") != "1":
        return None
    width = query.shape[-1]
    if width % 8 or query.dtype not in {torch.float32, *_HALF}:
        return None
    backend: type[Backend] = CudaEfficient
    if bias is None and query.dtype in _HALF and width <= 256:
        backend = CudaFlash
    kind = (backend, query.device, query.dtype, width, bias is None)
    if kind not in _VERDICTS:
        _VERDICTS[kind] = self_check(
            backend, query.device, query.dtype, width, reference, with_bias=bias is not None
        )
    return backend if _VERDICTS[kind] else None


_VERDICTS: dict[tuple[object, ...], bool] = {}


def self_check(
    backend: type[Backend],
    device: torch.device,
    dtype: torch.dtype,
    width: int,
    reference: Callable[..., Tensor],
    *,
    with_bias: bool,
) -> bool:
    """Compare a kernel with the safe path on a small input, forward and backward.

    An odd length, padding, ALiBi-like numbers and a row with no key left; a warning says why a
    kernel was turned down.
    """
    from frugalfm.attention.kernels import FusedSink

    length, heads = 37, 2
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(4, 2, heads, length, width, generator=generator).to(device, dtype)
    bias = None
    if with_bias:
        bias = torch.randn(2, heads, length, length, generator=generator)
        bias[1, :, :, 20:] = -torch.inf
        bias[0, :, 3] = -torch.inf
        bias = bias.to(device, dtype)
    sink = torch.tensor([0.5, -1.0], device=device)
    found: list[list[Tensor]] = []
    try:
        for fused in (True, False):
            leaves = [t.clone().requires_grad_() for t in (*drawn[:3], sink)]
            with torch.enable_grad():
                if fused:
                    out = FusedSink.apply(*leaves[:3], bias, None, leaves[3], backend)[0]
                else:
                    out = reference(*leaves[:3], bias, None, 0.0, leaves[3])
                found.append([out.detach(), *torch.autograd.grad(out, leaves, drawn[3])])
        limit = 3e-2 if dtype in _HALF else 5e-3
        distances = [
            float((a.float() - b.float()).norm() / b.float().norm())
            for a, b in zip(*found, strict=True)
        ]
        problem = "" if all(d <= limit for d in distances) else f"distances {distances}"
    except Exception as error:  # noqa: BLE001 - whatever fails here, the safe path serves
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
    if problem:
        warnings.warn(
            f"{backend.__name__} failed its self-check at {dtype}, head size {width} ({problem}); "
            "the appended zero key is used instead",
            stacklevel=2,
        )
    return not problem


def _align(bias: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """Give a bias its full shape, on rows that start at multiples of 8 elements."""
    if bias is None:
        return None
    keys = key.shape[-2]
    spare = -keys % 8
    if spare:
        bias = functional.pad(bias.expand(*bias.shape[:-1], keys), (0, spare))[..., :keys]
    return bias.expand(query.shape[0], query.shape[1], query.shape[2], keys)
