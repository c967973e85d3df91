"""Quantized linears whose clipping and equivalent transform are learned by gradient descent.

Rounding passes gradients straight through; steps and zero points are differentiated as what they
are, functions of the range that they cover. All values are those that
:class:`~frugalfm.quantization.simulate.SimulatedLinear` computes with the grids exported here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from frugalfm.quantization.quantizers import Format, Grid
from frugalfm.quantization.sites import Site
from frugalfm.quantization.taps import RealTokens
from frugalfm.quantization.transforms import ChannelTransform

__all__ = ["LearnedClipping", "LearnedLinear", "LearnedTransform", "round_straight"]

_ANY = Site("", "", None)  # Any linear: its input has a dimension of tokens, or is pooled.


def _pass_through(values: Tensor) -> Tensor:
    """Round, with the gradient of the identity."""
    return values + (values.round() - values).detach()


def round_straight(values: Tensor, form: Format, low: Tensor, high: Tensor) -> Tensor:
    """Round to the grid that covers a range, differentiable in the values and in the range.

    Parameters
    ----------
    values
        Any shape.
    form
        Uniform; its grid is the one that :meth:`Format.cover` finds.
    low, high
        Ends of the range, in the shape of the format's scales.
    """
    low, high = low.clamp_max(0), high.clamp_min(0)
    if form.symmetric:
        scale, zero = torch.maximum(-low, high) / form.highest, torch.zeros_like(low)
    else:
        scale = high / form.highest - low / form.highest
    scale = scale.clamp_min(torch.finfo(scale.dtype).tiny)
    if not form.symmetric:
        zero = _pass_through(-low / scale).clamp(form.lowest, form.highest)
    if form.group_size is not None:
        scale, zero = (x.repeat_interleave(form.group_size, -1) for x in (scale, zero))
    integers = (_pass_through(values / scale) + zero).clamp(form.lowest, form.highest)
    return (integers - zero) * scale


class LearnedTransform(nn.Module):
    """A scale and a shift for each channel of what one or several linears read.

    Parameters
    ----------
    lows, highs
        Ends of each channel's range in each calibration batch, shape ``(batches, features)``.
    momentum
        Of the running average over batches that a static grid covers.
    """

    lows: Tensor
    highs: Tensor
    start: Tensor
    reach: Tensor
    shares: Tensor

    def __init__(self, lows: Tensor, highs: Tensor, momentum: float) -> None:
        super().__init__()
        self.register_buffer("lows", lows)
        self.register_buffer("highs", highs)
        # What each batch counts in the end, the first in full: the average unrolled.
        age = torch.arange(len(lows), dtype=lows.dtype, device=lows.device).flip(0)
        shares = momentum**age
        shares[1:] *= 1 - momentum
        self.register_buffer("shares", shares)
        low, high = self.extremes
        self.register_buffer("start", torch.zeros_like(low))
        self.log_scale = nn.Parameter(torch.zeros_like(low))
        # In units of half the channel's range, so that one learning rate suits all channels.
        self.offset = nn.Parameter(torch.zeros_like(low))
        self.register_buffer("reach", (high - low) / 2)

    @torch.no_grad()
    def begin(self, scale: Tensor, shift: Tensor) -> None:
        """Take a scale and a shift as they are."""
        self.log_scale.copy_(scale.log())
        self.start.copy_(shift)
        self.offset.zero_()

    @property
    def scale(self) -> Tensor:
        """Of each channel, positive."""
        return self.log_scale.exp()

    @property
    def shift(self) -> Tensor:
        """Of each channel."""
        return self.start + self.offset * self.reach

    @property
    def extremes(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest value of each channel in all batches."""
        return self.lows.amin(0), self.highs.amax(0)

    def find_range(self) -> tuple[Tensor, Tensor]:
        """Find the range of all transformed channels together, averaged over the batches."""
        scale, shift = self.scale, self.shift
        low = ((self.lows - shift) / scale).amin(1) @ self.shares
        return low, ((self.highs - shift) / scale).amax(1) @ self.shares

    def export(self) -> ChannelTransform | None:
        """Give what was learned; None if it does nothing."""
        scale, shift = self.scale.detach(), self.shift.detach()
        if not shift.any():
            return None if bool((scale == 1).all()) else ChannelTransform(scale)
        return ChannelTransform(scale, shift)


class LearnedClipping(nn.Module):
    """Shares of a weight's largest and smallest value that its grid reaches to.

    Parameters
    ----------
    form
        Of the weight; each symmetric grid has one share, each asymmetric one two.
    weight
        Shape ``(out_features, in_features)``.
    """

    def __init__(self, form: Format, weight: Tensor) -> None:
        super().__init__()
        self.form = form
        grids = form.find_range(weight.detach())[0]
        # Infinity is a share of 1: nothing is cut until training begins.
        full = torch.full_like(grids, torch.inf).expand(1 if form.symmetric else 2, *grids.shape)
        self.logits = nn.Parameter(full.clone())

    @torch.no_grad()
    def begin(self, logit: float) -> None:
        """Set all shares to the sigmoid of a number."""
        self.logits.fill_(logit)

    def find_range(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Range that is left of a weight's own."""
        low, high = self.form.find_range(weight)
        if self.form.symmetric:
            reach = torch.maximum(-low, high) * self.logits[0].sigmoid()
            return -reach, reach
        upper, lower = self.logits.sigmoid()
        return low * lower, high * upper


class LearnedLinear(nn.Module):
    """A linear with learned clipping of its weight and a learned transform of its input.

    Parameters
    ----------
    linear
        The original; not changed and not trained.
    transform
        Shared by all linears that read the same; None if the input stays in floating point.
    clipping
        None if the weight stays in floating point.
    activation
        Format of the input; None leaves it.
    real
        Tells pads; by default there are none.
    """

    def __init__(
        self,
        linear: nn.Linear,
        transform: LearnedTransform | None,
        clipping: LearnedClipping | None,
        activation: Format | None,
        real: RealTokens | None = None,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.transform = transform
        self.clipping = clipping
        self.activation = activation
        self.real = real or RealTokens()

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last dimension, as ``nn.Linear`` does."""
        weight = self._transform_weight()
        bias: Tensor | None = None if self.linear.bias is None else self.linear.bias.detach()
        if self.transform is not None:
            scale, shift = self.transform.scale, self.transform.shift
            x = (x - shift) / scale
            moved = self.linear.weight.detach() @ shift
            bias = moved if bias is None else bias + moved
        if self.clipping is not None:
            weight = round_straight(weight, self.clipping.form, *self.clipping.find_range(weight))
        return functional.linear(self._round_input(x), weight, bias)

    def _transform_weight(self) -> Tensor:
        weight: Tensor = self.linear.weight.detach()
        return weight if self.transform is None else weight * self.transform.scale

    def _round_input(self, x: Tensor) -> Tensor:
        if self.activation is None or self.transform is None:
            return x
        if self.activation.dynamic:
            pads = self.real.pads(x, _ANY) if self.activation.granularity == "sequence" else None
            seen = x if pads is None else x.masked_fill(pads, 0)
            return round_straight(x, self.activation, *self.activation.find_range(seen))
        return round_straight(x, self.activation, *self.transform.find_range())

    @torch.no_grad()
    def weight_grid(self) -> Grid | None:
        """Export the grid of the transformed weight; None if it stays."""
        if self.clipping is None:
            return None
        return self.clipping.form.cover(*self.clipping.find_range(self._transform_weight()))

    @torch.no_grad()
    def input_grid(self) -> Grid | None:
        """Export the static grid of the transformed input; None if it has none."""
        if self.activation is None or self.activation.dynamic or self.transform is None:
            return None
        return self.activation.cover(*self.transform.find_range())
