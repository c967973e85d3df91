r"""Attention over fused kernels, forward and backward, with padding masks and biases.

A sink adds :math:`e^s` to the denominator of every row, :math:`p_i = e^{s_i} / (e^s + \sum_j
e^{s_j})`, so that a head may attend to nothing. softmax_1 (GERM, arXiv 2505.00598) is the sink
fixed at s = 0; gpt-oss (arXiv 2508.10925) learns s per head. Gated attention (Bondarenko et al.
2023, arXiv 2306.12929) multiplies the output of a head by a sigmoid instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from frugalfm.attention.backends import Backend, choose_backend

__all__ = ["attend_gated", "attend_sink", "attend_softmax", "attend_softmax1", "softmax1"]


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
    return _attend(query, key, value, bias, scale, dropout, None)


def attend_sink(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    *,
    sink: Tensor,
) -> Tensor:
    """Attention with a learned logit per head in the denominator, equally cheap.

    Parameters
    ----------
    query, key, value, bias, scale, dropout
        As in :func:`attend_softmax1`.
    sink
        The logits, shape ``(heads,)``; at 0 this is softmax_1, at -inf softmax.

    Returns
    -------
    Tensor
        Shape of `query`.
    """
    return _attend(query, key, value, bias, scale, dropout, sink)


def attend_gated(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    *,
    gate: Tensor,
) -> Tensor:
    """Ordinary attention, the output of every head and query times a sigmoid.

    Parameters
    ----------
    query, key, value, bias, scale, dropout
        As in :func:`attend_softmax1`.
    gate
        Before the sigmoid; shape ``(batch, heads, queries)``.

    Returns
    -------
    Tensor
        Shape of `query`.
    """
    out = attend_softmax(query, key, value, bias, scale, dropout)
    return out * torch.sigmoid(gate).unsqueeze(-1).to(out.dtype)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scale: float | None,
    dropout: float,
    sink: Tensor | None,
) -> Tensor:
    if bias is not None and bias.dim() < 4:  # kernels do not broadcast all of them
        bias = bias[(None,) * (4 - bias.dim())]
    # A traced graph, which other engines run, holds no call by name.
    traced = torch.jit.is_tracing()  # type: ignore[attr-defined]
    if dropout == 0.0 and not traced and not (bias is not None and bias.requires_grad):
        backend = choose_backend(query, key, value, bias, reference=attend_by_zero_key)
        if backend is not None:
            out: Tensor = FusedSink.apply(query, key, value, bias, scale, sink, backend)[0]
            return out
    return attend_by_zero_key(query, key, value, bias, scale, dropout, sink)


def attend_by_zero_key(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    sink: Tensor | None = None,
) -> Tensor:
    """Express the sink as one more key, with zero value and the sink as its logit.

    Exact on every backend, with dropout too (the extra weight meets a zero value), but the copies
    of key, value and bias cost time.
    """
    keys = key.shape[-2]
    key = functional.pad(key, (0, 0, 0, 1))
    value = functional.pad(value, (0, 0, 0, 1))
    if sink is not None:
        if bias is None:
            bias = query.new_zeros(1, 1, query.shape[-2], keys)
        shape = (bias.shape[0], query.shape[1], bias.shape[-2])
        column = sink.to(bias.dtype)[None, :, None].expand(shape)
        bias = torch.cat([bias.expand(*shape, keys), column.unsqueeze(-1)], -1)
    elif bias is not None:
        bias = functional.pad(bias.expand(*bias.shape[:-1], keys), (0, 1))
    return attend_softmax(query, key, value, bias, scale, dropout)


class FusedSink(torch.autograd.Function):
    r"""Attention with a sink from a flash kernel's logsumexp.

    With ``lse`` the kernel's logsumexp, the sink s multiplies every row of its output by
    ``sigmoid(lse - s)``. The kernel's own backward, given that output and ``logaddexp(lse, s)``
    as if it were the logsumexp, recomputes exactly the weights with the sink and hence their
    gradients. The sink's own weight, :math:`p = e^{s - \text{lse}'}`, meets a zero value, so its
    logit's gradient is :math:`-p \, (\text{grad} \cdot \text{out})`, summed over rows.
    """

    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        scale: float | None,
        sink: Tensor | None,
        backend: Backend,
    ) -> tuple[Any, ...]:
        plain, lse, state, rest = backend.forward(query, key, value, bias, scale)
        if sink is None:
            share, total = torch.sigmoid(lse), functional.softplus(lse)
        else:
            level = sink.to(lse.dtype)[:, None]
            share, total = torch.sigmoid(lse - level), torch.logaddexp(lse, level)
        # A kernel may round the number of rows up in its logsumexp.
        share = share[..., : query.shape[-2]]
        out = plain * share.unsqueeze(-1).to(plain.dtype)
        return out, rest, total, *state

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        # Apart from forward, so that torch.func's transforms work too.
        query, key, value, bias, ctx.scale, sink, ctx.backend = inputs
        out, ctx.rest, total, *state = output
        ctx.mark_non_differentiable(total, *state)
        ctx.save_for_backward(query, key, value, bias, sink, out, total, *state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, bias, sink, out, total, *state = ctx.saved_tensors
        grads = ctx.backend.backward(
            grad, query, key, value, bias, ctx.scale, out, total, state, ctx.rest
        )
        towards_sink = None
        if sink is not None and ctx.needs_input_grad[5]:
            rows = total[..., : query.shape[-2]]
            products = (grad.to(rows.dtype) * out).sum(-1)
            weights = torch.exp(sink.to(rows.dtype)[:, None] - rows)
            towards_sink = -(weights * products).sum((0, 2)).to(sink.dtype)
        return (*grads, None, None, towards_sink, None)
