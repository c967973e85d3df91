"""Uniform affine grids: values as ``(integer - zero_point) * scale``, and rounding to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from frugalfm.errors import InputError
from frugalfm.quantization.observers import find_range

__all__ = ["Format", "Granularity", "Grid", "fake_quantize"]

Granularity = Literal["tensor", "channel", "token"]


@dataclass(frozen=True)
class Format:
    """How values are written as integers.

    Attributes
    ----------
    bits
        2 to 16.
    symmetric
        Integers ``-m .. m`` with ``m = 2^(bits-1) - 1`` and zero point 0; otherwise
        ``0 .. 2^bits - 1`` and a zero point that makes 0.0 exact.
    granularity
        One grid for a ``tensor``; one for each output ``channel`` (row) of a weight; or one for
        each ``token`` of an activation, found as it passes (dynamic).
    """

    bits: int
    symmetric: bool
    granularity: Granularity = "tensor"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise InputError(f"{self.bits} bits are not supported; use 2 to 16")
        if self.granularity not in get_args(Granularity):
            known = ", ".join(get_args(Granularity))
            raise InputError(f"granularity {self.granularity!r} is not known; use one of {known}")

    @property
    def dynamic(self) -> bool:
        """Whether grids are found at run time, each from the values that it then rounds."""
        return self.granularity == "token"

    @property
    def per_row(self) -> bool:
        """Whether there is one grid for each row."""
        return self.granularity != "tensor"

    @property
    def lowest(self) -> int:
        """Smallest integer."""
        return 1 - (1 << self.bits - 1) if self.symmetric else 0

    @property
    def highest(self) -> int:
        """Largest integer."""
        return (1 << self.bits - 1) - 1 if self.symmetric else (1 << self.bits) - 1

    def cover(self, low: Tensor, high: Tensor) -> Grid:
        """Find the finest grid that covers a range and has 0.0 on it.

        Parameters
        ----------
        low, high
            Ends of the range, any shape that broadcasts to the values.

        Notes
        -----
        Every value of the range is at most half a step from the grid (a zero point rounded down
        or up moves the ends by no more). A range of zero width at 0 gets the smallest step.
        """
        low, high = low.clamp_max(0), high.clamp_min(0)
        if self.symmetric:
            scale = torch.maximum(-low, high) / self.highest
        else:
            # Divided first, so that the width of the range cannot overflow.
            scale = high / self.highest - low / self.highest
        scale = scale.clamp_min(torch.finfo(scale.dtype).tiny)
        zero = torch.zeros_like(scale) if self.symmetric else torch.round(-low / scale)
        zero = zero.nan_to_num(0.0).clamp(self.lowest, self.highest)
        return Grid(self, scale, zero.to(torch.int32))


@dataclass(frozen=True)
class Grid:
    """A format with its scale and zero point; both broadcast to the values.

    Attributes
    ----------
    format
        The integers.
    scale
        Step between neighbours; floating point, positive.
    zero_point
        The integer of 0.0 (int32).
    """

    format: Format
    scale: Tensor
    zero_point: Tensor

    def to_integers(self, values: Tensor) -> Tensor:
        """Nearest integer of each value, outliers not yet clipped; as floating point."""
        return torch.round(values / self.scale) + self.zero_point.to(self.scale.dtype)

    def round(self, values: Tensor) -> Tensor:
        """Nearest grid point of each value; what lies outside goes to the nearest end."""
        integers = self.to_integers(values).clamp(self.format.lowest, self.format.highest)
        return self.to_values(integers).to(values.dtype)

    def to_values(self, integers: Tensor) -> Tensor:
        """Give the values that integers stand for."""
        return (integers.to(self.scale.dtype) - self.zero_point.to(self.scale.dtype)) * self.scale

    def clips(self, values: Tensor) -> Tensor:
        """Say of each value whether it lies outside the grid (boolean)."""
        integers = self.to_integers(values)
        return (integers < self.format.lowest) | (integers > self.format.highest)

    def to(self, device: torch.device) -> Grid:
        """Move to a device."""
        return Grid(self.format, self.scale.to(device), self.zero_point.to(device))


def fake_quantize(values: Tensor, how: Format | Grid | None) -> Tensor:
    """Round values to a grid, given or (for a dynamic format) their own; None leaves them."""
    if how is None:
        return values
    if isinstance(how, Grid):
        return how.round(values)
    return how.cover(*find_range(values, per_row=how.per_row)).round(values)
