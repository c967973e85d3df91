"""The weights of an attention, which fused kernels never hold: for looking at, not for computing.

With :func:`~frugalfm.attention.strength.watch_attention` they are to be had of any model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from frugalfm.attention.clipped import ALPHA, clipped_softmax
from frugalfm.attention.kernels import softmax1

__all__ = ["attention_weights"]


def attention_weights(
    name: str, module: Any, query: Tensor, key: Tensor, bias: Tensor | None, scale: float | None
) -> Tensor:
    """Compute how much every query attends to every key.

    Parameters
    ----------
    name
        One of ``frugalfm.attention.NAMES``.
    module
        The attention module, for what it learns or is set to.
    query, key, bias, scale
        As of :func:`~frugalfm.attention.kernels.attend_softmax1`.

    Returns
    -------
    Tensor
        fp32 (fp64 for such a query), shape ``(batch, heads, queries, keys)``. A row sums to 1
        (``softmax``, ``gated``, whose gate acts on the output afterwards) or to less. A query
        that may attend to nothing has zeros.
    """
    exact = query.dtype if query.dtype == torch.float64 else torch.float32
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast(query.device.type, enabled=False):
        scores = (query.to(exact) * scale) @ key.to(exact).transpose(-1, -2)
        counts = torch.full_like(scores[..., :1], key.shape[-2])
        if bias is not None:
            scores = scores + bias.to(exact)
            counts = (scores > -torch.inf).sum(-1, keepdim=True)
        weights = _normalise(name, module, scores, counts)
    return weights.masked_fill(counts == 0, 0)


def _normalise(name: str, module: Any, scores: Tensor, counts: Tensor) -> Tensor:
    if name == "softmax1":
        return softmax1(scores)
    if name == "clipped":
        alpha = getattr(getattr(module, "config", None), "attention_alpha", ALPHA)
        return clipped_softmax(scores, -alpha / counts.clamp_min(1))
    if name == "sink":
        sink = module.sink_logit.to(scores.dtype)[:, None, None]
        padded = torch.cat([scores, sink.expand(*scores.shape[:-1], 1)], -1)
        return torch.softmax(padded, -1)[..., :-1]
    return functional.softmax(scores, -1)
