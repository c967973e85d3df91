"""Observers: from what passes a site to the range that its grid has to cover.

Activations pass in batches, never pads, and get one range each; a weight is seen at once, with a
range for every one of its grids. ``minmax`` covers all; ``running`` averages the batches' ranges;
``percentile`` and ``mse`` clip, to lose a few large values or to round the others less.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from frugalfm.errors import InputError
from frugalfm.quantization.quantizers import Format, Grid

__all__ = [
    "Histogram",
    "LeastError",
    "MinMax",
    "Observer",
    "ObserverName",
    "Percentile",
    "RunningMinMax",
    "find_weight_range",
    "make_observer",
]

ObserverName = Literal["minmax", "running", "percentile", "mse"]

PERCENTILE = 99.99
"""Share of the values that ``percentile`` keeps, in percent; half of the rest on either side."""

_BINS = 8192
_SLACK = 1e-6  # lest 5 values of 100 are 4.999...
_FRACTIONS = tuple(percent / 100 for percent in range(100, 0, -1))
"""Of the full range: the clips that ``mse`` tries."""


class Observer(Protocol):
    """Turns batches of values into a range."""

    def observe(self, values: Tensor) -> None:
        """Take in one batch."""

    def range(self) -> tuple[Tensor, Tensor] | None:
        """Lower and upper end; None before the first batch."""


def make_observer(
    name: ObserverName, form: Format, *, momentum: float = 0.9, percentile: float = PERCENTILE
) -> Observer:
    """Make the observer of one activation.

    Parameters
    ----------
    name
        Of the observer.
    form
        Of the grid that its range is for, one for the tensor.
    momentum
        Of ``running``.
    percentile
        Of ``percentile``.
    """
    check_observer(name)
    if name == "minmax":
        return MinMax()
    if name == "running":
        return RunningMinMax(momentum)
    return Percentile(percentile) if name == "percentile" else LeastError(form)


def find_weight_range(
    weight: Tensor, form: Format, name: ObserverName = "minmax", *, percentile: float = PERCENTILE
) -> tuple[Tensor, Tensor]:
    """Find the ranges of a weight's grids.

    Parameters
    ----------
    weight
        Shape ``(out, in)``.
    form
        Of its grids.
    name
        ``running`` is ``minmax`` here: there is only one weight.
    percentile
        Of ``percentile``, exact.

    Returns
    -------
    tuple
        Lower and upper ends, in the shape of the grids' scales.
    """
    check_observer(name)
    low, high = form.find_range(weight)
    if name in {"minmax", "running"}:
        return low, high
    if name == "percentile":
        return _cut(form.split(weight), percentile)
    return _search(
        form, low, high, lambda grid: form.split((grid.round(weight) - weight).square()).sum(-1)
    )


def check_observer(name: str) -> None:
    """Refuse a name that is not an observer's."""
    if name not in get_args(ObserverName):
        known = ", ".join(get_args(ObserverName))
        raise InputError(f"observer {name!r} is not known; use one of {known}")


class MinMax:
    """The range of everything seen."""

    def __init__(self) -> None:
        self._range: tuple[Tensor, Tensor] | None = None

    def observe(self, values: Tensor) -> None:
        """Take in one batch."""
        low, high = values.detach().aminmax()
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
        low, high = values.detach().aminmax()
        if self._range is not None:
            past, new = self._momentum, 1 - self._momentum
            low = past * self._range[0] + new * low
            high = past * self._range[1] + new * high
        self._range = low, high

    def range(self) -> tuple[Tensor, Tensor] | None:
        """Lower and upper end; None before the first batch."""
        return self._range


class Histogram:
    """Counts of values in 8,192 bins of equal width around 0.

    The bins span ``[-m, m)`` with m a power of two, at most twice the largest magnitude seen;
    when a larger one comes, m doubles and neighbours are merged, so that the counts are exact and
    do not depend on batches or their order. A bin is at most 1/2048 of the largest magnitude
    wide: all that is read off the histogram is right to that.
    """

    def __init__(self) -> None:
        self.counts: Tensor | None = None
        self.end = 0.0
        self._range: tuple[Tensor, Tensor] | None = None

    def add(self, values: Tensor) -> None:
        """Count values; of what is not finite only the range takes note."""
        values = values.detach().float().flatten()
        if not len(values):
            return
        low, high = values.aminmax()
        if self._range is not None:
            low, high = low.minimum(self._range[0]), high.maximum(self._range[1])
        self._range = low, high
        largest = float(torch.maximum(-low, high))
        if not math.isfinite(largest):
            return
        if self.counts is None:
            self.counts = torch.zeros(_BINS, dtype=torch.int64, device=values.device)
            self.end = 2.0 ** (math.floor(math.log2(max(largest, 1e-30))) + 1)
        while self.end <= largest:
            self._widen()
        # A product with a power of two is exact, so that merging is, too.
        places = torch.floor(values * (_BINS / 2 / self.end)).long() + _BINS // 2
        self.counts += torch.bincount(places, minlength=_BINS)

    @property
    def range(self) -> tuple[Tensor, Tensor] | None:
        """Smallest and largest value, exactly; None if none has been seen."""
        return self._range

    @property
    def edges(self) -> Tensor:
        """Ends of the bins, ascending (fp64)."""
        return torch.linspace(-self.end, self.end, _BINS + 1, dtype=torch.float64)

    def _widen(self) -> None:
        assert self.counts is not None
        merged = self.counts.view(-1, 2).sum(1)
        self.counts = torch.zeros_like(self.counts)
        self.counts[_BINS // 4 : _BINS // 4 + _BINS // 2] = merged
        self.end *= 2


class Percentile:
    """The range that keeps a share of the values, half of the others beyond either end.

    Parameters
    ----------
    percentile
        The share in percent, above 50 and up to 100. The ends are right to one bin of
        :class:`Histogram`, towards keeping more, and never beyond what was seen.
    """

    def __init__(self, percentile: float = PERCENTILE) -> None:
        check_percentile(percentile)
        self._beyond = (1 - percentile / 100) / 2
        self._histogram = Histogram()

    def observe(self, values: Tensor) -> None:
        """Take in one batch."""
        self._histogram.add(values)

    def range(self) -> tuple[Tensor, Tensor] | None:
        """Lower and upper end; None before the first batch."""
        seen, counts = self._histogram.range, self._histogram.counts
        if seen is None or counts is None:
            return seen
        below = counts.cumsum(0).cpu()
        allowed = math.floor(self._beyond * int(below[-1]) + _SLACK)
        first = int(torch.searchsorted(below, allowed, right=True))
        last = int(torch.searchsorted(below, int(below[-1]) - allowed))
        edges = self._histogram.edges.to(seen[0])
        return edges[first].maximum(seen[0]), edges[last + 1].minimum(seen[1])


class LeastError:
    """The range that the squared error of rounding is least with.

    Every percent of the range is tried as a clip: of both ends together, then (unless the grid is
    symmetric) of each end with the other held, twice. Errors are those of the histogram's bins.

    Parameters
    ----------
    form
        Of the grid, one for the tensor.
    """

    def __init__(self, form: Format) -> None:
        self._form = form
        self._histogram = Histogram()

    def observe(self, values: Tensor) -> None:
        """Take in one batch."""
        self._histogram.add(values)

    def range(self) -> tuple[Tensor, Tensor] | None:
        """Lower and upper end; None before the first batch."""
        seen, counts = self._histogram.range, self._histogram.counts
        if seen is None or counts is None:
            return seen
        edges = self._histogram.edges.to(counts.device)
        # Bins at the ends of what was seen are not full: their middle may lie outside.
        centres = ((edges[1:] + edges[:-1]) / 2).clamp(seen[0].double(), seen[1].double())
        used = counts > 0
        points, weights = centres[used].to(seen[0].dtype), counts[used].double()
        return _search_points(self._form, *seen, points, weights)


def check_percentile(percentile: float) -> None:
    """Refuse a share that is not above 50 % and up to 100 %."""
    if not 50 < percentile <= 100:
        raise InputError(f"a percentile of {percentile} keeps too little; use 50 to 100")


def _cut(parts: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    """Leave so many of the smallest and largest of the last dimension's values outside, exactly."""
    check_percentile(percentile)
    beyond = math.floor((1 - percentile / 100) / 2 * parts.shape[-1] + _SLACK)
    ordered = parts.sort(-1).values
    return ordered[..., beyond], ordered[..., -1 - beyond]


def _search(
    form: Format, low: Tensor, high: Tensor, lose: Callable[[Grid], Tensor]
) -> tuple[Tensor, Tensor]:
    """Clip each of several ranges by itself to where the loss of its grid is least."""
    best = low, high
    least = lose(form.cover(low, high))
    for move_low, move_high in _list_passes(form):
        start = best
        for fraction in _FRACTIONS:
            trial = (
                low * fraction if move_low else start[0],
                high * fraction if move_high else start[1],
            )
            loss = lose(form.cover(*trial))
            better = loss < least
            least = torch.where(better, loss, least)
            best = (
                torch.where(better, trial[0], best[0]),
                torch.where(better, trial[1], best[1]),
            )
    return best


def _search_points(
    form: Format, low: Tensor, high: Tensor, points: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Clip one range to where the squared error of weighted points is least; all clips at once."""
    fractions = torch.tensor(_FRACTIONS).to(low)
    best, least = (low, high), math.inf
    for move_low, move_high in _list_passes(form):
        lows = low * fractions if move_low else best[0].expand_as(fractions)
        highs = high * fractions if move_high else best[1].expand_as(fractions)
        rounded = form.cover(lows[:, None], highs[:, None]).round(points)
        losses = ((rounded - points).double().square() * weights).sum(-1)
        chosen = int(losses.argmin())
        if float(losses[chosen]) < least:
            best, least = (lows[chosen], highs[chosen]), float(losses[chosen])
    return best


def _list_passes(form: Format) -> list[tuple[bool, bool]]:
    """Which ends to move, pass by pass."""
    together = [(True, True)]
    return together if form.symmetric else together + [(False, True), (True, False)] * 2
