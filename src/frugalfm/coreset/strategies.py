"""The strategies: how many rows to take of which cell of the pool.

Each strategy only counts; it returns a :class:`Plan`, and :func:`frugalfm.coreset.draw.draw`
then carries any plan out. Where the budget is shared among sources, each source is treated as a
pool of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from frugalfm.coreset.budgets import apportion, length_bin_start
from frugalfm.coreset.eligible import Preference
from frugalfm.coreset.order import WHOLE, Groups, Numbers, OrderStatistic, Ranking
from frugalfm.coreset.pool import Block, Pool

__all__ = [
    "LENGTH_BINS",
    "PREFERENCES",
    "Part",
    "Plan",
    "Strata",
    "Strategy",
    "Stratum",
    "expect_deciles",
    "length_bins",
    "plan_random",
    "plan_window",
    "score_deciles",
]

Strategy = Literal[
    "top-influence",
    "top-influence-by-length",
    "coverage",
    "coverage-log",
    "top-loss",
    "middle-loss",
    "bottom-loss",
    "random",
]

PREFERENCES: Mapping[str, Preference] = {
    "top-influence": Preference("influence", 1),
    "top-influence-by-length": Preference("influence", 1),
    "top-loss": Preference("loss", 1),
    "bottom-loss": Preference("loss", -1),
}
"""What a strategy wants of a cluster; the others draw."""

_BINS = 64


class Stratum(NamedTuple):
    """A range of scores or lengths, and the number of sequences in it before selection."""

    number: int
    low: float
    high: float
    population: int


class Strata(NamedTuple):
    """What the strata are, in words; all of them, ascending; and the number of that of chosen rows.

    The last from the columns ``cell``, ``influence`` and ``length``.
    """

    kind: str
    all: Sequence[Stratum]
    number: Callable[[Mapping[str, Any]], Numbers]


class Part(NamedTuple):
    """A source, or the whole pool: how many may be chosen, and how many to choose."""

    size: int
    quota: int


@dataclass(frozen=True)
class Plan:
    """What to draw.

    Attributes
    ----------
    columns
        Columns that `cell` reads.
    cell
        The cell of each row of a block: from 0, or -1 for rows that are not wanted; None if all
        rows are in cell 0. Rows of one cell are alike for the strategy.
    populations, quotas
        How many rows each cell has, and how many of them to draw.
    strata
        What the report counts; None for tenths of the pool by influence.
    dropped
        How many of the hardest sequences were set aside first.
    without
        Positions, ascending, that are not drawn whatever their cell.
    ties_only
        Most cells are taken whole or not at all, so that few ids need a hash.
    reach
        Lowest and highest cell of a row by the upper bits of its influence, if these say so much;
        the number of cells stands for rows that are not wanted.
    """

    columns: tuple[str, ...]
    cell: Callable[[Block], Numbers | None]
    populations: npt.NDArray[np.int64]
    quotas: npt.NDArray[np.int64]
    strata: Strata | None = None
    dropped: int = 0
    without: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    ties_only: bool = False
    reach: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]] | None = None


def expect_deciles(ranking: Ranking) -> None:
    """Ask a ranking for what :func:`score_deciles` needs, should it make a pass before."""
    ranking.expect([1, *_decile_ranks(ranking)])


def score_deciles(ranking: Ranking) -> Strata:
    """Cut the pool into tenths by influence, from the lowest; equal influences stay together.

    Each tenth reaches from just above the one before up to and including its ``high``.
    """
    ranks = _decile_ranks(ranking)
    found = ranking.at({0: [1, *ranks]})
    tops = [found[0, rank] for rank in ranks]
    lows = [found[0, 1].value, *(top.value for top in tops)]
    up_to = [0, *(top.below + top.equal for top in tops)]
    strata = [Stratum(i, lows[i], lows[i + 1], up_to[i + 1] - up_to[i]) for i in range(len(tops))]
    inner = np.array([top.value for top in tops[:-1]], np.float32)
    return Strata(
        "score decile", strata, lambda chosen: np.searchsorted(inner, chosen["influence"])
    )


def _decile_ranks(ranking: Ranking) -> list[int]:
    return [-(-tenth * int(ranking.sizes[0]) // 10) for tenth in range(1, 11)]


def plan_random(groups: Groups, parts: Sequence[Part]) -> Plan:
    """Draw uniformly, whatever the scores."""
    return Plan(
        groups.columns,
        groups.number or (lambda _: None),
        np.array([part.size for part in parts]),
        np.array([part.quota for part in parts]),
    )


def plan_window(
    pool: Pool,
    column: str,
    place: Literal["top", "middle", "bottom"],
    groups: Groups,
    parts: Sequence[Part],
    *,
    by_length: bool = False,
    ranking: Ranking,
) -> Plan:
    """Take the highest, middle or lowest values of a column; where they are equal, draw.

    With `by_length` inside length bins, each sqrt(2) times as long as the one before, which share
    a quota in proportion to their sizes: so short sequences do not win by being short.

    `ranking` is that of the column over the whole pool, with `by_length` inside `LENGTH_BINS`.
    """
    if groups is not WHOLE or pool.eligible is not None:
        ranking = Ranking(pool, column, _with_bins(groups) if by_length else groups)
    inside = ranking.groups
    sizes = ranking.sizes
    quotas = np.array([part.quota for part in parts])
    if by_length:
        quotas = _by_bin(sizes.reshape(-1, _BINS), parts)
    begins = {"top": sizes - quotas, "middle": (sizes - quotas) // 2, "bottom": 0 * sizes}[place]
    found = ranking.at(
        {
            group: sorted({int(begins[group]) + 1, int(begins[group] + quotas[group])})
            for group in np.flatnonzero(quotas).tolist()
        }
    )
    windows = [
        _Window(found[g, first + 1], found[g, first + quota], first, quota) if quota else None
        for g, (first, quota) in enumerate(zip(begins.tolist(), quotas.tolist(), strict=True))
    ]
    cells = [window.cells() if window else [(0, 0)] * 3 for window in windows]
    populations, drawn = np.array(cells, np.int64).reshape(-1, 2).T
    strata = Strata("length bin", _bin_strata(sizes), _bin_of) if by_length else None
    return Plan(
        (column, *inside.columns),
        _window_cells(column, windows, inside),
        populations,
        drawn,
        strata,
        ties_only=True,
    )


class _Window(NamedTuple):
    """Consecutive ranks of a group: the value of the first and of the last, and how many."""

    low: OrderStatistic
    high: OrderStatistic
    before: int
    quota: int

    def cells(self) -> list[tuple[int, int]]:
        """Return population and quota between the two values, at the low, and at the high."""
        if self.low.value == self.high.value:
            return [(0, 0), (self.low.equal, self.quota), (0, 0)]
        between = self.high.below - self.low.below - self.low.equal
        at_low = self.low.below + self.low.equal - self.before
        at_high = self.before + self.quota - self.high.below
        return [(between, between), (self.low.equal, at_low), (self.high.equal, at_high)]


def _window_cells(
    column: str, windows: Sequence[_Window | None], groups: Groups
) -> Callable[[Block], Numbers]:
    """Cells of a group: 3 g between the two values, 3 g + 1 at the low, 3 g + 2 at the high."""
    nothing = (np.inf, -np.inf)
    bounds = [(w.low.value, w.high.value) if w else nothing for w in windows]
    lows, highs = np.array(bounds, np.float32).T
    lowest, highest = lows.min(), highs.max()

    def cell(block: Block) -> Numbers:
        found = np.full(block.size, -1, np.int32)
        values = block[column]
        places = np.flatnonzero((values >= lowest) & (values <= highest))
        values, group = values[places], np.zeros(len(places), np.int32)
        if groups.number is not None:
            group = groups.number(block.take(places))
            inside = (values >= lows[group]) & (values <= highs[group]) & (group >= 0)
            places, values, group = places[inside], values[inside], group[inside]
        kind = np.where(values == lows[group], 1, np.where(values == highs[group], 2, 0))
        found[places] = 3 * group + kind
        return found

    return cell


def length_bins(lengths: npt.NDArray[Any]) -> Numbers:
    """Bins of lengths, each sqrt(2) times as long as the one before."""
    bins: Numbers = _BIN_OF.take(lengths, mode="clip")
    if len(lengths) and lengths.max() >= len(_BIN_OF):
        long = np.flatnonzero(lengths >= len(_BIN_OF))
        bins[long] = np.searchsorted(_BIN_STARTS, lengths[long], side="right") - 1
    return bins


_BIN_STARTS = np.array([length_bin_start(number) for number in range(_BINS)])
_BIN_OF = np.searchsorted(_BIN_STARTS[1:], np.arange(1 << 16), side="right").astype(np.int32)


def _with_bins(groups: Groups) -> Groups:
    def number(block: Block) -> Numbers:
        bins = length_bins(block["length"])
        if groups.number is None:
            return bins
        group = groups.number(block)
        return np.where(group < 0, -1, group * _BINS + bins)

    columns = ("length", *groups.columns)
    return Groups(groups.count * _BINS, columns, number, complete=groups.complete)


LENGTH_BINS = _with_bins(WHOLE)


def _by_bin(sizes: npt.NDArray[np.int64], parts: Sequence[Part]) -> npt.NDArray[np.int64]:
    quotas = np.zeros(sizes.shape, np.int64)
    for row, part in enumerate(parts):
        if part.quota:
            of_bin = {int(b): int(sizes[row, b]) for b in np.flatnonzero(sizes[row])}
            for number, quota in apportion(part.quota, of_bin).items():
                quotas[row, number] = quota
    return quotas.reshape(-1)


def _bin_of(chosen: Mapping[str, Any]) -> Numbers:
    return length_bins(chosen["length"])


def _bin_strata(sizes: npt.NDArray[np.int64]) -> list[Stratum]:
    population = sizes.reshape(-1, _BINS).sum(0)
    return [
        Stratum(n, length_bin_start(n), length_bin_start(n + 1) - 1, int(population[n]))
        for n in np.flatnonzero(population).tolist()
    ]
