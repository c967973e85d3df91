r"""Attention over fused kernels, forward and backward, with padding masks and biases.

softmax_1 (GERM, arXiv 2505.00598) adds one to the denominator,
:math:`p_i = e^{s_i} / (1 + \sum_j e^{s_j})`, so that a head may attend to nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ["attend_softmax", "attend_softmax1", "softmax1"]

# The kernel behind torch's own attention on the CPU, called by name because only so does it
# hand out the logsumexp.
_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward  # noqa: SLF001


def softmax1(scores: Tensor, dim: int = -1) -> Tensor:
    r"""Evaluate :math:`e^{s_i} / (1 + \sum_j e^{s_j})` stably.

    Parameters
    ----------
    scores
        Logits of any shape; ``-inf`` masks. A fully masked slice gives zeros.
    dim
        The dimension to normalise.

    Returns
    -------
    Tensor
        As `scores`; sums to less than one along `dim`.

    Notes
    -----
    Not shift-invariant: the implicit logit is 0, so the maximum includes it [GERM, eq. 5].
    """
    top = scores.amax(dim, keepdim=True).clamp_min(0)
    powers = torch.exp(scores - top)
    return powers / (torch.exp(-top) + powers.sum(dim, keepdim=True))


def attend_softmax(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Ordinary attention, by torch's own dispatcher; arguments as in :func:`attend_softmax1`."""
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, dropout_p=dropout, scale=scale
    )


def attend_softmax1(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention with softmax_1, at the price of ordinary fused attention.

    Parameters
    ----------
    query, key, value
        Shapes ``(batch, heads, queries or keys, head_dim)``.
    bias
        Added to the scaled scores; broadcastable to ``(batch, heads, queries, keys)``; ``-inf``
        where a key must not be attended. A row with no key left gives zeros.
    scale
        Multiplies the scores; ``head_dim ** -0.5`` when None.
    dropout
        Probability of dropping an attention weight.

    Returns
    -------
    Tensor
        Shape of `query`.
    """
    fused = query.device.type == "cpu" and dropout == 0.0
    if fused and not (bias is not None and bias.requires_grad):
        out: Tensor = _FusedSoftmax1.apply(query, key, value, bias, scale)[0]
        return out
    return _attend_with_zero_key(query, key, value, bias, scale, dropout)


def _attend_with_zero_key(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scale: float | None,
    dropout: float,
) -> Tensor:
    """Express the 1 in the denominator as one more key: zero logit, zero value.

    Exact on every backend, with dropout too (the extra weight meets a zero value).
    """
    key = functional.pad(key, (0, 0, 0, 1))
    value = functional.pad(value, (0, 0, 0, 1))
    if bias is not None:
        bias = functional.pad(bias.expand(*bias.shape[:-1], key.shape[-2] - 1), (0, 1))
    return attend_softmax(query, key, value, bias, scale, dropout)


class _FusedSoftmax1(torch.autograd.Function):
    """softmax_1 from a flash kernel's logsumexp.

    With ``lse`` the kernel's logsumexp, softmax_1 multiplies every row of its output by
    ``sigmoid(lse)``. The kernel's own backward, given that output and ``softplus(lse)`` as if it
    were the logsumexp, recomputes exactly the weights of softmax_1 and hence its gradients.
    """

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float | None
    ) -> tuple[Tensor, Tensor]:
        plain, lse = _FORWARD(query, key, value, 0.0, False, attn_mask=bias, scale=scale)
        out = plain * torch.sigmoid(lse).unsqueeze(-1).to(plain.dtype)
        return out, functional.softplus(lse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        query, key, value, bias, ctx.scale = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(query, key, value, bias, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, bias, out, lse = ctx.saved_tensors
        grads = _BACKWARD(
            grad, query, key, value, out, lse, 0.0, False, attn_mask=bias, scale=ctx.scale
        )
        return (*grads, None, None)
