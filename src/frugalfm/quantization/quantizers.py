"""Grids: values as integers with a step and a zero point (or a table of levels), and rounding.

A uniform grid stands for ``(integer - zero_point) * scale``. Where there are several grids, they
are told apart by the granularity, and `scale` and `zero_point` have the shapes

=============  ============================  ==================================================
granularity    one grid for each             shape, of values of shape
=============  ============================  ==================================================
``tensor``     tensor, fixed                 ``()``
``channel``    output channel of a weight    ``(out, 1)``, of ``(out, in)``
``group``      `group_size` inputs of one    ``(out, in / group_size)``, of ``(out, in)``; group j
               output channel of a weight    of a row is ``[j * group_size, (j + 1) * group_size)``
``token``      row of the last dimension     ``(..., 1)``, of ``(..., features)``; found as it
                                             passes (dynamic)
``sequence``   item of a batch, its pads     ``(batch, 1, ...)``, of ``(batch, ...)``; found as it
               left out                      passes (dynamic)
=============  ============================  ==================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from frugalfm.errors import InputError

__all__ = [
    "Format",
    "Granularity",
    "Grid",
    "InputGranularity",
    "WeightGranularity",
    "fake_quantize",
    "make_input_format",
    "make_weight_format",
]

WeightGranularity = Literal["tensor", "channel", "group"]
InputGranularity = Literal["tensor", "token", "sequence"]
Granularity = Literal["tensor", "channel", "group", "token", "sequence"]

_GROUP = 128
_FLOATING_POINT = 16


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
        What has a grid of its own, as in this module's table. ``channel`` and ``group`` are for
        weights, ``token`` and ``sequence`` for activations. ``sequence`` is what engines call
        dynamic per-tensor, at batch 1: a batch changes nothing here.
    group_size
        With ``group``: inputs that share a grid; it has to divide the weight's inputs.
    levels
        Where the grid is not uniform: ascending values in [-1, 1], with 0, that integers from 0
        on stand for, in units of `scale`; `symmetric` is True then.
    """

    bits: int
    symmetric: bool
    granularity: Granularity = "tensor"
    group_size: int | None = None
    levels: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise InputError(f"{self.bits} bits are not supported; use 2 to 16")
        if self.granularity not in get_args(Granularity):
            known = ", ".join(get_args(Granularity))
            raise InputError(f"granularity {self.granularity!r} is not known; use one of {known}")
        if (self.granularity == "group") != (self.group_size is not None):
            raise InputError("a group size belongs to the granularity 'group', and to no other")
        if self.group_size is not None and self.group_size < 1:
            raise InputError(f"a group of {self.group_size} inputs is too small; use at least 1")
        if self.levels is not None:
            self._check_levels(self.levels)

    @property
    def dynamic(self) -> bool:
        """Whether grids are found at run time, each from the values that it then rounds."""
        return self.granularity in {"token", "sequence"}

    @property
    def lowest(self) -> int:
        """Smallest integer."""
        return 1 - (1 << self.bits - 1) if self.symmetric and self.levels is None else 0

    @property
    def highest(self) -> int:
        """Largest integer."""
        if self.levels is not None:
            return len(self.levels) - 1
        return (1 << self.bits - 1) - 1 if self.symmetric else (1 << self.bits) - 1

    def split(self, values: Tensor) -> Tensor:
        """View values so that the last dimension runs over those that share a grid.

        Raises
        ------
        InputError
            A row does not divide into groups.
        """
        if self.granularity == "tensor":
            return values.reshape(-1)
        if self.granularity == "sequence":
            return values.reshape(len(values), *[1] * (values.ndim - 1), -1)
        if self.group_size is None:
            return values.unsqueeze(-2)
        if values.shape[-1] % self.group_size:
            raise InputError(
                f"{values.shape[-1]} inputs do not divide into groups of {self.group_size}; "
                "give another --group-size, or --weight-granularity channel"
            )
        return values.reshape(*values.shape[:-1], -1, self.group_size)

    def find_range(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest value of each grid, in the shape of the grids' scales."""
        parts = self.split(values)
        return parts.amin(-1), parts.amax(-1)

    def cover(self, low: Tensor, high: Tensor) -> Grid:
        """Find the finest grid that covers a range and has 0.0 on it.

        Parameters
        ----------
        low, high
            Ends of the range, in the shape of scales.

        Notes
        -----
        Every value of the range is at most half a step from a uniform grid (a zero point rounded
        down or up moves the ends by no more). A range of zero width at 0 gets the smallest step.
        """
        low, high = low.clamp_max(0), high.clamp_min(0)
        if self.levels is not None:
            scale = self._cover_levels(low, high)
        elif self.symmetric:
            scale = torch.maximum(-low, high) / self.highest
        else:
            # Divided first, so that the width of the range cannot overflow.
            scale = high / self.highest - low / self.highest
        scale = scale.clamp_min(torch.finfo(scale.dtype).tiny)
        zero = torch.zeros_like(scale) if self.symmetric else torch.round(-low / scale)
        zero = zero.nan_to_num(0.0).clamp(self.lowest, self.highest)
        return Grid(self, scale, zero.to(torch.int32))

    def _cover_levels(self, low: Tensor, high: Tensor) -> Tensor:
        assert self.levels is not None
        ends = []
        for end, level in ((-low, -self.levels[0]), (high, self.levels[-1])):
            ends.append(end / level if level > 0 else torch.zeros_like(end))
        return torch.maximum(*ends)

    def _check_levels(self, levels: tuple[float, ...]) -> None:
        ascending = all(a < b for a, b in pairwise(levels))
        if not (ascending and 2 <= len(levels) <= 1 << self.bits and self.symmetric):
            raise InputError(f"{self.bits} bits take up to {1 << self.bits} ascending levels")
        if 0.0 not in levels or max(map(abs, levels)) != 1:
            raise InputError("levels lie in [-1, 1], reach an end of it, and have 0 among them")


def make_weight_format(
    bits: int,
    granularity: WeightGranularity = "channel",
    *,
    group_size: int | None = None,
    symmetric: bool = True,
) -> Format | None:
    """Make the format of weights; None for 16 bits, which stand for floating point.

    Parameters
    ----------
    bits
        2 to 16.
    granularity
        Of the grids; groups are of 128 inputs unless `group_size` says otherwise.
    group_size
        Inputs of a group, usually 32, 64 or 128.
    symmetric
        Without zero points, as kernels want weights.

    Raises
    ------
    InputError
        A width out of range, or a granularity that is none of weights.
    """
    if granularity not in get_args(WeightGranularity):
        raise InputError(
            f"weights are quantized per {', '.join(get_args(WeightGranularity))}, "
            f"not per {granularity}"
        )
    if bits == _FLOATING_POINT:
        return None
    if granularity == "group":
        group_size = group_size or _GROUP
    return Format(bits, symmetric, granularity, group_size)


def make_input_format(
    bits: int, granularity: InputGranularity = "tensor", *, symmetric: bool = False
) -> Format | None:
    """Make the format of activations; None for 16 bits, which stand for floating point.

    Raises
    ------
    InputError
        A width out of range, or a granularity that is none of activations.
    """
    if granularity not in get_args(InputGranularity):
        raise InputError(
            f"activations are quantized per {', '.join(get_args(InputGranularity))}, "
            f"not per {granularity}"
        )
    return None if bits == _FLOATING_POINT else Format(bits, symmetric, granularity)


@dataclass(frozen=True)
class Grid:
    """A format with its scales and zero points.

    Attributes
    ----------
    format
        The integers.
    scale
        Step between neighbours (the unit of `levels`); floating point, positive. Its shape is in
        this module's table.
    zero_point
        The integer of 0.0 (int32), same shape; without meaning where there are levels.
    """

    format: Format
    scale: Tensor
    zero_point: Tensor

    def to_integers(self, values: Tensor) -> Tensor:
        """Nearest integer of each value, as floating point; outliers not yet clipped.

        With levels there is nothing beyond the ends: outliers get the last one.
        """
        scaled = values / self._spread(self.scale)
        if self.format.levels is not None:
            levels = torch.tensor(self.format.levels, dtype=scaled.dtype, device=scaled.device)
            middles = (levels[1:] + levels[:-1]) / 2
            return torch.bucketize(scaled, middles).to(scaled.dtype)
        return torch.round(scaled) + self._spread(self.zero_point).to(self.scale.dtype)

    def round(self, values: Tensor) -> Tensor:
        """Nearest grid point of each value; what lies outside goes to the nearest end."""
        if self.format.levels is not None:
            return self.to_values(self.to_integers(values)).to(values.dtype)
        # As to_integers, clamp and to_values, in fewer passes over the values.
        scale, zero = self._spread(self.scale), self._spread(self.zero_point).to(self.scale.dtype)
        steps = torch.round(values / scale)
        if self.format.symmetric:
            steps = steps.clamp(self.format.lowest, self.format.highest)
        else:
            steps = steps.clamp(self.format.lowest - zero, self.format.highest - zero)
        return (steps * scale).to(values.dtype)

    def to_values(self, integers: Tensor) -> Tensor:
        """Give the values that integers stand for."""
        scale = self._spread(self.scale)
        if self.format.levels is not None:
            levels = torch.tensor(self.format.levels, dtype=scale.dtype, device=scale.device)
            return levels[integers.long()] * scale
        return (integers.to(scale.dtype) - self._spread(self.zero_point).to(scale.dtype)) * scale

    def clips(self, values: Tensor) -> Tensor:
        """Say of each value whether it lies outside the grid (boolean)."""
        if self.format.levels is not None:
            scaled = values / self._spread(self.scale)
            return (scaled < self.format.levels[0]) | (scaled > self.format.levels[-1])
        integers = self.to_integers(values)
        return (integers < self.format.lowest) | (integers > self.format.highest)

    def to(self, device: torch.device) -> Grid:
        """Move to a device."""
        return Grid(self.format, self.scale.to(device), self.zero_point.to(device))

    def _spread(self, of_grids: Tensor) -> Tensor:
        """Bring scales or zero points to a shape that broadcasts to the values."""
        if self.format.group_size is None:
            return of_grids
        return of_grids.repeat_interleave(self.format.group_size, -1)


def fake_quantize(values: Tensor, how: Format | Grid | None, pads: Tensor | None = None) -> Tensor:
    """Round values to a grid, given or (for a dynamic format) their own; None leaves them.

    Parameters
    ----------
    values
        Any shape that the format's granularity makes sense of.
    how
        What to round to.
    pads
        Which of the values are pads, boolean, broadcastable to them: a grid for each sequence
        does not look at them. Rounded they are all the same.
    """
    if how is None:
        return values
    if isinstance(how, Grid):
        return how.round(values)
    seen = values
    if pads is not None and how.granularity == "sequence":
        seen = values.masked_fill(pads, 0)  # every grid has 0 anyway
    return how.cover(*how.find_range(seen)).round(values)
