"""Observers: from what passes a site to the range that its grid has to cover.

An observer is fed tensors of shape ``(tokens, features)`` or ``(rows, features)``, never pads.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["MinMax", "Observer", "RunningMinMax", "find_range"]


class Observer(Protocol):
    """Turns batches of values into a range; percentile or error-minimising ones fit as well."""

    def observe(self, values: Tensor) -> None:
        """Take in one batch."""

    def range(self) -> tuple[Tensor, Tensor] | None:
        """Lower and upper end; None before the first batch."""


def find_range(values: Tensor, *, per_row: bool) -> tuple[Tensor, Tensor]:
    """Smallest and largest value: of the whole tensor (0-d), or of each row (last size 1)."""
    if per_row:
        return values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    low, high = values.aminmax()
    return low, high


class MinMax:
    """The range of everything seen.

    Parameters
    ----------
    per_row
        One range for each row; every batch must have the same rows (as a weight does).
    """

    def __init__(self, *, per_row: bool = False) -> None:
        self._per_row = per_row
        self._range: tuple[Tensor, Tensor] | None = None

    def observe(self, values: Tensor) -> None:
        """Take in one batch."""
        low, high = find_range(values.detach(), per_row=self._per_row)
        if self._range is not None:
            low, high = low.minimum(self._range[0]), high.maximum(self._range[1])
        self._range = low, high

    def range(self) -> tuple[Tensor, Tensor] | None:
        """Lower and upper end; None before the first batch."""
        return self._range


class RunningMinMax:
    """Exponential moving average of the batches' ranges, so that no one batch decides.

    Parameters
    ----------
    momentum
        Weight of the past; the first batch counts in full.
    """

    def __init__(self, momentum: float = 0.9) -> None:
        self._momentum = momentum
        self._range: tuple[Tensor, Tensor] | None = None

    def observe(self, values: Tensor) -> None:
        """Take in one batch."""
        low, high = find_range(values.detach(), per_row=False)
        if self._range is not None:
            past, new = self._momentum, 1 - self._momentum
            low = past * self._range[0] + new * low
            high = past * self._range[1] + new * high
        self._range = low, high

    def range(self) -> tuple[Tensor, Tensor] | None:
        """Lower and upper end; None before the first batch."""
        return self._range
