"""Equivalent transforms: the same function, computed from values that are easier to round.

A linear computes ``W x + b``. With a positive scale and a shift for every input channel, that is
``(W * scale) ((x - shift) / scale) + (b + W shift)`` exactly. What is rounded are the two factors.
The transform belongs to the site, not to what comes before it: so it holds for the output of a
LayerNorm that also feeds a residual sum (post-LN), for the product of a gated network and for the
heads of an attention alike, and nothing else of the model has to be rescaled. An engine fuses the
product with what comes before it, or with the rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frugalfm.errors import InputError

__all__ = ["ChannelTransform"]


@dataclass(frozen=True)
class ChannelTransform:
    """A scale and a shift for each input channel of a linear.

    Attributes
    ----------
    scale
        Positive and finite, shape ``(in_features,)``.
    shift
        Same shape; None where nothing is shifted.
    """

    scale: Tensor
    shift: Tensor | None = None

    def __post_init__(self) -> None:
        if not bool((self.scale.isfinite() & (self.scale > 0)).all()):
            raise InputError("a transform's scales are to be positive and finite")
        if self.shift is not None and not bool(self.shift.isfinite().all()):
            raise InputError("a transform's shifts are to be finite")

    def on_input(self, x: Tensor) -> Tensor:
        """Transform inputs, shape ``(..., in_features)``."""
        shifted = x if self.shift is None else x - self.shift.to(x.dtype)
        return shifted / self.scale.to(x.dtype)

    def undo(self, x: Tensor) -> Tensor:
        """Bring transformed inputs back."""
        scaled = x * self.scale.to(x.dtype)
        return scaled if self.shift is None else scaled + self.shift.to(x.dtype)

    def on_weight(self, weight: Tensor) -> Tensor:
        """Transform a weight, shape ``(out_features, in_features)``."""
        return weight * self.scale.to(weight.dtype)

    def on_bias(self, linear: nn.Linear) -> Tensor | None:
        """Bias that makes up for the shift; the weight is the linear's own."""
        bias: Tensor | None = linear.bias
        if self.shift is None:
            return bias
        moved = (linear.weight.double() @ self.shift.double()).to(linear.weight.dtype)
        return moved if bias is None else bias + moved

    def to(self, device: torch.device) -> ChannelTransform:
        """Move to a device."""
        shift = None if self.shift is None else self.shift.to(device)
        return ChannelTransform(self.scale.to(device), shift)
