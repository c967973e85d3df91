r"""Clipped softmax, which needs the probabilities themselves and so cannot be fused exactly.

:math:`\mathrm{clip}((\zeta - \gamma)\,\mathrm{softmax}(x) + \gamma,\ 0,\ 1)` with ζ = 1 and γ < 0
(Bondarenko et al. 2023, arXiv 2306.12929, eq. 4) gives exact zeros, and no gradient through them,
at finite scores. The clip acts after the normalisation, out of reach of a kernel that never holds
a row's probabilities; so rows of queries are taken in pieces, and the backward pass computes each
piece again. Memory grows with the number of tokens, not with its square; time is eager time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from frugalfm.errors import InputError

__all__ = ["ALPHA", "attend_clipped", "clipped_softmax"]

# γ = -α / keys (the paper's section 5.2, where α of 2 to 4 serves every length).
ALPHA = 4.0

# Scores held at a time, elements: 16 MB in fp32 on a CPU (its caches gain from small pieces),
# 256 MB elsewhere.
_PIECE = {"cpu": 1 << 22}
_PIECE_ELSEWHERE = 1 << 26


def clipped_softmax(scores: Tensor, gamma: Tensor | float) -> Tensor:
    """Normalise the last dimension, stretch to [`gamma`, 1], and clip to [0, 1].

    Parameters
    ----------
    scores
        Logits of any shape; ``-inf`` masks. Every row needs a finite logit.
    gamma
        At most 0, broadcastable to `scores`; at 0 this is softmax.

    Returns
    -------
    Tensor
        As `scores`, in fp32 or better.
    """
    exact = scores.dtype if scores.dtype == torch.float64 else torch.float32
    weights = torch.softmax(scores, -1, dtype=exact)
    return (weights * (1 - gamma) + gamma).clamp(0, 1)


def attend_clipped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    *,
    alpha: float = ALPHA,
) -> Tensor:
    """Attention with clipped softmax, piece by piece.

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
        Probability of dropping an attention weight, after clipping.
    alpha
        At least 0; γ is ``-alpha`` over the number of keys that a query may attend, so that pads
        do not move the threshold. A masked key's weight is exactly zero for any such value.

    Returns
    -------
    Tensor
        Shape of `query`.

    Raises
    ------
    InputError
        `alpha` is negative, so that masked keys would be attended, or not finite.
    """
    if not 0 <= alpha < math.inf:
        raise InputError(f"attention_alpha is {alpha}; it must be finite and at least 0")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    queries = query.shape[-2]
    limit = _PIECE.get(query.device.type, _PIECE_ELSEWHERE)
    rows = max(1, limit // (query.shape[0] * query.shape[1] * key.shape[-2]))
    learns = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (query, key, value, bias)
    )
    pieces = []
    for start in range(0, queries, rows):
        piece = query[..., start : start + rows, :]
        part = bias
        if bias is not None and bias.shape[-2] > 1:
            part = bias[..., start : start + rows, :]
        arguments = (piece, key, value, part, scale, dropout, alpha)
        if learns:
            pieces.append(
                checkpoint(
                    _attend_piece,
                    *arguments,
                    use_reentrant=False,
                    preserve_rng_state=dropout > 0,
                )
            )
        else:
            pieces.append(_attend_piece(*arguments))
    return torch.cat(pieces, -2) if len(pieces) > 1 else pieces[0]


def _attend_piece(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scale: float,
    dropout: float,
    alpha: float,
) -> Tensor:
    # Scores and probabilities in fp32: clipping a rounded probability would move the threshold.
    exact = query.dtype if query.dtype == torch.float64 else torch.float32
    with torch.autocast(query.device.type, enabled=False):
        scores = (query.to(exact) * scale) @ key.to(exact).transpose(-1, -2)
        empty = None
        gamma: Tensor | float = -alpha / key.shape[-2]
        if bias is not None:
            bias = bias.expand(*bias.shape[:-1], key.shape[-2])
            counts = (bias > -torch.inf).sum(-1, keepdim=True)
            gamma = -alpha / counts.clamp_min(1).to(exact)
            empty = (bias == -torch.inf).all(-1, keepdim=True)
            # softmax of an empty row would be NaN, and so its gradient, even if masked later.
            scores = scores + bias.masked_fill(empty, 0.0)
        weights = clipped_softmax(scores, gamma)
        if dropout:
            weights = functional.dropout(weights, dropout)
        out = weights.to(value.dtype) @ value
        return out if empty is None else out.masked_fill(empty, 0.0)
