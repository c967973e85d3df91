"""Coverage-centric influence: an even draw from strata of the scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from frugalfm.coreset.budgets import allocate
from frugalfm.coreset.draw import draw
from frugalfm.coreset.order import (
    WHOLE,
    Counts,
    Groups,
    Numbers,
    OrderStatistic,
    Ranking,
    key_of_upper,
    sort_keys,
    upper_bits,
)
from frugalfm.coreset.pool import Block, Mask, Pool
from frugalfm.coreset.strategies import Part, Plan, Strata, Stratum
from frugalfm.errors import InputError

__all__ = ["hardest", "plan_coverage"]

_DECADES = 6
_ASIDE, _UNSURE = -1, -2
_NEGATIVE_ZERO = 0x8000  # its upper bits
_GROUP_BITS = np.uint64(33)  # one more than a key has


def hardest(size: int, share: float) -> int:
    """Return how many of so many sequences are set aside as the hardest."""
    # As a decimal: 0.29 * 100 is 28.999... in binary.
    return math.floor(Fraction(str(share)) * size)


def check_options(strata: int, drop_hardest: float) -> None:
    """Refuse options of coverage that make no sense."""
    if not 1 <= strata <= 10_000:
        raise InputError(f"--strata {strata}: must be at least 1 and at most 10000")
    if not 0 <= drop_hardest < 1:
        raise InputError(f"--drop-hardest {drop_hardest}: must be at least 0 and below 1")


def plan_coverage(
    pool: Pool,
    groups: Groups,
    parts: Sequence[Part],
    *,
    strata: int,
    drop_hardest: float,
    seed: int,
    logarithmic: bool,
    ranking: Ranking,
) -> Plan:
    """Draw evenly from strata of the scores, without the hardest sequences.

    The `drop_hardest` share with the highest influence is set aside (of equal influences, as many
    as needed, drawn at random); the remaining range is cut into `strata` of equal width, and
    :func:`~frugalfm.coreset.budgets.allocate` shares the budget among them.

    Influences have heavy tails, and then nearly all of them are in a few of the equal strata, so
    that the draw is nearly uniform (9 of 50 filled, for log-normal ones of sigma 2). With
    `logarithmic`, strata are of equal width in the logarithm, over at most six decades below the
    highest: whatever is lower, or not positive, belongs to the lowest stratum.

    Source: "Investigating Data Pruning for Pretraining Biological Foundation Models at Scale"
    (arXiv 2512.12932); the logarithm is ours.
    """
    if groups is not WHOLE or pool.eligible is not None:
        ranking = Ranking(pool, "influence", groups)
    dropped = [hardest(part.size, drop_hardest) for part in parts]
    ranks = {g: [1, part.size - dropped[g]] for g, part in enumerate(parts) if part.quota}
    found = ranking.at(ranks)
    ends = {g: (found[g, 1], found[g, last]) for g, (_, last) in ranks.items()}
    cuts = _Cuts(
        [
            _edges(ends[g][0].value, ends[g][1].value, strata, logarithmic) if g in ends else None
            for g in range(groups.count)
        ],
        groups,
        strata,
    )
    populations, tied = _count(pool, cuts, ranking.counts)
    surplus = {g: high.below + high.equal - ranks[g][1] for g, (_, high) in ends.items()}
    without = _draw_surplus(pool, groups, {g: high for g, (_, high) in ends.items()}, surplus,
                            tied, seed)  # fmt: skip
    for g, number in surplus.items():
        populations[g, cuts.last(g)] -= number
    quotas = np.zeros_like(populations)
    for g, part in enumerate(parts):
        if part.quota:
            shares = allocate(
                part.quota, {int(s): int(populations[g, s]) for s in np.flatnonzero(populations[g])}
            )
            quotas[g, list(shares)] = list(shares.values())
    return Plan(
        ("influence", *groups.columns),
        cuts.cell,
        populations.reshape(-1),
        quotas.reshape(-1),
        Strata(
            f"{'log-' if logarithmic else 'equal-width '}score range",
            [
                Stratum(g * strata + s, low, high, int(populations[g, s]))
                for g in ends
                for s, (low, high) in enumerate(cuts.ranges(g, ends[g][0].value))
            ],
            lambda chosen: chosen["cell"],
        ),
        sum(dropped[g] for g in ends),
        without,
        reach=cuts.reach,
    )


def _edges(low: float, high: float, strata: int, logarithmic: bool) -> npt.NDArray[np.float32]:
    """Return where the second to the last stratum begin, then the highest value that counts.

    Each edge is the smallest float32 that is not below the exact edge.
    """
    if logarithmic and high > 0:
        bottom = max(low, high / 10**_DECADES)
        exact = [bottom * (high / bottom) ** (i / strata) for i in range(1, strata)]
    else:
        exact = [low + i * ((high - low) / strata) for i in range(1, strata)]
    wide = np.minimum(np.array(exact, np.float64), high)
    if low == high or (logarithmic and high <= 0):
        wide[:] = np.inf  # one stratum, the first
    near = wide.astype(np.float32)
    near = np.where(near < wide, np.nextafter(near, np.float32(np.inf)), near)
    return np.append(near, np.float32(high)).astype(np.float32)


class _Cuts:
    """The stratum of any influence, by way of its upper 16 bits wherever these suffice.

    Attributes
    ----------
    reach
        Lowest and highest stratum of influences by their upper bits, each of shape ``(2 ** 16,)``
        (the number of strata stands for what is set aside); None if there are several groups.
    """

    def __init__(
        self, edges: Sequence[npt.NDArray[np.float32] | None], groups: Groups, strata: int
    ):
        self.groups, self.strata, self._edges = groups, strata, edges
        # The number of edges at or below a key is its stratum; above the highest influence that
        # counts begins one more, of those set aside.
        first = np.arange(1 << 16, dtype=np.uint64) << np.uint64(16)
        tables, bounds = [], []
        for number, own in enumerate(edges):
            keys = np.zeros(strata, np.uint64)
            if own is not None:
                keys = sort_keys(own).astype(np.uint64)
                keys[-1] += np.uint64(1)
                keys = np.minimum(keys, keys[-1])
            lowest = np.searchsorted(keys, first, side="right")
            highest = np.searchsorted(keys, first + np.uint64(0xFFFF), side="right")
            table = np.where(lowest == highest, lowest, _UNSURE)
            table[table == strata] = _ASIDE
            tables.append(table.astype(np.int16))
            bounds.append(keys + (np.uint64(number) << _GROUP_BITS))
        self._sorted, self._bounds = np.stack(tables), np.concatenate(bounds)
        at = key_of_upper()
        self._tables = self._sorted[:, at]
        # Without -0.0, which shares its upper bits with values below zero.
        self._unsure = self._tables == _UNSURE
        self._tables[:, _NEGATIVE_ZERO] = _UNSURE
        highest[at[_NEGATIVE_ZERO]] = lowest[at[0]]
        self.reach = (lowest[at], highest[at]) if groups.number is None else None

    def cell(self, block: Block) -> Numbers:
        """Cells are numbered group by group; -1 for what is set aside."""
        group, influence = _group(self.groups, block), block["influence"]
        cell: Numbers = self._tables[group, upper_bits(influence)].astype(np.int32)
        if (unsure := np.flatnonzero(cell == _UNSURE)).size:
            if self.groups.number is None:
                cell[unsure] = self._exact_of_one(influence[unsure])
            else:
                cell[unsure] = self._exact(influence[unsure], group[unsure].astype(np.int64))
        return np.where(cell < 0, cell, cell + group * np.int32(self.strata))

    def count(self, counts: Counts) -> Counts:
        """Count the rows of each stratum of each group, but for those that :meth:`unsure` finds."""
        found = np.zeros((self.groups.count, self.strata), np.int64)
        group, place = np.nonzero(self._sorted >= 0)
        np.add.at(found, (group, self._sorted[group, place]), counts[group, place])
        return found

    def unsure(self, block: Block) -> Mask:
        """Return where the upper bits of an influence do not tell its stratum."""
        upper = upper_bits(block["influence"] + np.float32(0))  # -0.0 becomes 0.0
        if self.groups.number is None:
            found: Mask = self._unsure[0].take(upper)
        else:
            found = self._unsure[self.groups.number(block), upper]
        return found

    def _exact_of_one(self, influence: npt.NDArray[np.float32]) -> Numbers:
        """As :meth:`_exact` where there is one group: faster, which counts."""
        own = self._edges[0]
        assert own is not None
        stratum: Numbers = np.searchsorted(own[:-1], influence, side="right")
        stratum[influence > own[-1]] = _ASIDE
        return stratum

    def _exact(self, influence: npt.NDArray[np.float32], group: Numbers) -> Numbers:
        keys = sort_keys(influence).astype(np.uint64)
        keys += group.astype(np.uint64) << _GROUP_BITS
        stratum: Numbers = np.searchsorted(self._bounds, keys, side="right") - group * self.strata
        stratum[stratum == self.strata] = _ASIDE
        return stratum

    def highest(self) -> npt.NDArray[np.float32]:
        """Return the highest influence of each group that counts; NaN for groups left out."""
        ends = [np.float32(np.nan) if own is None else own[-1] for own in self._edges]
        return np.array(ends, np.float32)

    def last(self, group: int) -> int:
        """Return the stratum of the highest influence that counts."""
        own = self._edges[group]
        assert own is not None
        return int(np.count_nonzero(own[:-1] <= own[-1]))

    def ranges(self, group: int, low: float) -> list[tuple[float, float]]:
        """Return the lowest and highest value of each stratum."""
        own = self._edges[group]
        assert own is not None
        bounds = [low, *np.minimum(own, own[-1]).tolist()]
        return list(itertools.pairwise(bounds))


def _count(pool: Pool, cuts: _Cuts, upper: Counts) -> tuple[Counts, list[int]]:
    """Count the rows of each cell; also tell which row groups hold a highest influence.

    `upper` are counts by group and first digits; if these are the upper 16 bits, few rows are left
    to look at.
    """
    cells, highest = cuts.groups.count * cuts.strata, cuts.highest()
    coarse = upper.shape[-1] == 1 << 16

    def look(blocks: Iterator[Block]) -> tuple[Counts, bool]:
        counts, tied = np.zeros(cells + 1, np.int64), False
        for block in blocks:
            wanted = cuts.unsure(block) if coarse else np.ones(block.size, np.bool_)
            if block.eligible is not None:
                wanted &= block.eligible
            cell = cuts.cell(block.take(np.flatnonzero(wanted)))
            counts += np.bincount(cell + 1, minlength=cells + 1)
            tied |= bool((block["influence"] == highest[_group(cuts.groups, block)]).any())
        return counts[1:], tied

    columns = ["influence", *cuts.groups.columns]
    found = list(pool.map(look, columns, desc="strata"))
    counts = np.sum([own for own, _ in found], axis=0).reshape(-1, cuts.strata)
    counts += cuts.count(upper) if coarse else 0
    return counts, [number for number, (_, tied) in enumerate(found) if tied]


def _draw_surplus(
    pool: Pool,
    groups: Groups,
    highs: Mapping[int, OrderStatistic],
    surplus: Mapping[int, int],
    tied: Sequence[int],
    seed: int,
) -> npt.NDArray[np.int64]:
    """Draw which of the rows at the highest influence that counts are set aside after all."""
    if not any(surplus.values()):
        return np.empty(0, np.int64)
    values = np.full(groups.count, np.nan, np.float32)
    populations, quotas = np.zeros((2, groups.count), np.int64)
    for g, high in highs.items():
        values[g], populations[g], quotas[g] = high.value, high.equal, surplus[g]

    def cell(block: Block) -> Numbers:
        group = _group(groups, block)
        return np.where(block["influence"] == values[group], group, np.int32(-1))

    columns = ("influence", *groups.columns)
    plan = Plan(columns, cell, populations, quotas, ties_only=True)
    # An own purpose: were the same hash used twice, survivors would be favoured in the draw.
    drawn = draw(pool, plan, seed=seed, purpose="drop", among=tied)
    return np.concatenate([batch["place"].to_numpy() for batch in drawn.batches()])


def _group(groups: Groups, block: Block) -> Any:
    return np.int32(0) if groups.number is None else groups.number(block)
