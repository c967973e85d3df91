r"""Train against outliers directly: a penalty on kurtosis, where GERM measures it.

For every real token at the output of each feed-forward network and of each layer's final
LayerNorm, the kurtosis :math:`k = m_4 / m_2^2` above a Gaussian's counts. The penalty's gradient
is added as it passes backwards, so that the loss that is logged stays the masked loss alone.
Kurtosis of activations as a regulariser is known from quantization-aware training (Nrusimhe et
al. 2024, arXiv 2404.03605, on the input channels of transformers).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from frugalfm.encoders.anatomy import describe_encoder
from frugalfm.errors import InputError

__all__ = ["excess_gradient", "penalise_kurtosis"]

_FLOOR = 1e-12


@contextlib.contextmanager
def penalise_kurtosis(model: nn.Module, weight: float) -> Iterator[None]:
    """Add to every gradient that of `weight` times the mean excess kurtosis.

    Parameters
    ----------
    model
        One that the catalogue knows, called by keyword with ``attention_mask``. Only in training
        mode is anything added; what the model computes never changes.
    weight
        Nats for a kurtosis of one above Gaussian, mean over real tokens and all sites; at 0
        nothing is watched.

    Raises
    ------
    InputError
        The weight is negative or not finite, or the architecture is unknown.
    """
    if not 0 <= weight < float("inf"):
        raise InputError(f"--flatten must be finite and at least 0, not {weight}")
    if not weight:
        yield
        return
    blocks = describe_encoder(model).blocks
    sites = [name for block in blocks for name in (block.ffn_out, block.output_norm)]
    share = weight / len(sites)
    real: list[Tensor] = []

    def note_mask(_: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        real[:] = [kwargs["attention_mask"].bool()]

    def pass_on(module: nn.Module, _: Any, output: Tensor) -> Tensor | None:
        if not module.training or not torch.is_grad_enabled():
            return None
        passed: Tensor = _Penalty.apply(output, real[0], share)
        return passed

    with contextlib.ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(note_mask, with_kwargs=True).remove)
        for name in sites:
            stack.callback(model.get_submodule(name).register_forward_hook(pass_on).remove)
        yield


class _Penalty(torch.autograd.Function):
    """The identity, with a gradient added on the way back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, real: Tensor, weight: float) -> Tensor:
        ctx.save_for_backward(values, real)
        ctx.weight = weight
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        values, real = ctx.saved_tensors
        added = excess_gradient(values, real) * ctx.weight
        return grad + added.to(grad.dtype), None, None


def excess_gradient(values: Tensor, real: Tensor) -> Tensor:
    r"""Differentiate the mean over real tokens of the kurtosis above a Gaussian's.

    With c the centred values of one token, n of them,
    :math:`\partial k / \partial x = \frac{4}{n} \left( \frac{c^3 - \overline{c^3}}{m_2^2} -
    \frac{k \, c}{m_2} \right)`, and zero where :math:`k \le 3 (n - 1) / (n + 1)`, the expectation
    for independent Gaussian values (Fisher 1930).

    Parameters
    ----------
    values
        Shape ``(batch, width, n)``.
    real
        Where tokens are no pads: bool, ``(batch, width)``.

    Returns
    -------
    Tensor
        As `values`, fp32 or better.
    """
    exact = values.dtype if values.dtype == torch.float64 else torch.float32
    count = values.shape[-1]
    centred = values.to(exact)
    centred = centred - centred.mean(-1, keepdim=True)
    squares = centred.square()
    second = squares.mean(-1, keepdim=True).clamp_min(_FLOOR)
    kurtosis = squares.square().mean(-1, keepdim=True) / second.square()
    cubes = squares * centred
    cubes = cubes - cubes.mean(-1, keepdim=True)
    found = (4 / count) * (cubes / second.square() - kurtosis * centred / second)
    counts = real.unsqueeze(-1) & (kurtosis > 3 * (count - 1) / (count + 1))
    return torch.where(counts, found, 0.0) / real.sum().clamp_min(1)
