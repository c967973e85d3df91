"""The strategies: how many rows to take of which cell of the pool.

Each strategy only counts; it returns a :class:`Plan`, and :func:`frugalfm.coreset.draw.draw`
then carries any plan out.
"""

# ruff: noqa: S608 - the SQL is made of this room's own text, of numbers and of quoted literals
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

import pyarrow as pa

from frugalfm.coreset.budgets import allocate, apportion, length_bin, length_bin_start
from frugalfm.coreset.draw import Cell, draw
from frugalfm.coreset.order import order_statistics
from frugalfm.coreset.pool import Pool, literal
from frugalfm.errors import InputError

__all__ = [
    "Deciles",
    "Plan",
    "Strategy",
    "Stratum",
    "plan_coverage",
    "plan_random",
    "plan_top",
    "plan_top_by_length",
    "score_deciles",
]

Strategy = Literal["top-influence", "top-influence-by-length", "coverage", "random"]


class Stratum(NamedTuple):
    """A range of scores or lengths, and the number of sequences in it before selection."""

    number: int
    low: float
    high: float
    population: int


class Deciles(NamedTuple):
    """Tenths of the pool by influence, and the SQL that gives a row's tenth."""

    strata: Sequence[Stratum]
    number: str


@dataclass(frozen=True)
class Plan:
    """What to draw.

    Attributes
    ----------
    relation
        SQL over the pool with the pool's columns and ``cell``.
    cells
        How many to draw of which cell.
    strata
        What the report counts, in ascending order.
    stratum
        SQL that gives a drawn row's stratum.
    kind
        What the strata are, in words.
    dropped
        How many of the hardest sequences were set aside first.
    """

    relation: str
    cells: Sequence[Cell]
    strata: Sequence[Stratum]
    stratum: str
    kind: str
    dropped: int = 0


def score_deciles(pool: Pool) -> Deciles:
    """Cut the pool into tenths by influence, from the lowest; equal influences stay together.

    Each tenth reaches from just above the one before up to and including its ``high``.
    """
    ranks = [-(-tenth * pool.size // 10) for tenth in range(1, 11)]
    found = order_statistics(pool, "SELECT 0 AS grp, influence FROM scores", {0: [1, *ranks]})
    tops = [found[0, rank] for rank in ranks]
    lows = [found[0, 1].value, *(top.value for top in tops)]
    up_to = [0, *(top.below + top.equal for top in tops)]
    strata = [Stratum(i, lows[i], lows[i + 1], up_to[i + 1] - up_to[i]) for i in range(len(tops))]
    steps = (f"(influence > {literal(top.value)})::INT" for top in tops[:-1])
    return Deciles(strata, " + ".join(steps))


def plan_random(pool: Pool, budget: int, deciles: Deciles) -> Plan:
    """Draw uniformly, whatever the scores."""
    cells = [Cell(0, pool.size, budget)]
    return Plan("SELECT *, 0 AS cell FROM scores", cells, *deciles, "score decile")


def plan_top(pool: Pool, budget: int, deciles: Deciles) -> Plan:
    """Take the highest influences; where they are equal, draw."""
    relation, cells = _top_of_groups(
        pool, "SELECT *, 0 AS grp FROM scores", {0: pool.size}, {0: budget}
    )
    return Plan(relation, cells, *deciles, "score decile")


def plan_top_by_length(pool: Pool, budget: int) -> Plan:
    """Take the highest influences inside length bins, in proportion to the bins.

    Bins grow by a factor of sqrt(2): 1, 2, 3, 4, 6, 8, 12, 16, 23, 32, ...
    """
    population: Counter[int] = Counter()
    lengths = pool.query("SELECT length, count(*) FROM scores GROUP BY length ORDER BY length")
    if lengths[0][0] < 1:
        raise InputError(f"a score has the length {lengths[0][0]}; lengths start at 1, score again")
    bins = [length_bin(length) for length, _ in lengths]
    for number, (_, count) in zip(bins, lengths, strict=True):
        population[number] += count
    pool.make_table("bins", pa.table({"length": [length for length, _ in lengths], "grp": bins}))
    relation, cells = _top_of_groups(
        pool,
        "SELECT scores.*, grp FROM scores JOIN bins USING (length)",
        population,
        apportion(budget, population),
    )
    strata = [
        Stratum(number, length_bin_start(number), length_bin_start(number + 1) - 1, count)
        for number, count in sorted(population.items())
    ]
    return Plan(relation, cells, strata, "grp", "length bin")


def plan_coverage(pool: Pool, budget: int, seed: int, strata: int, drop_hardest: float) -> Plan:
    """Coverage-centric influence: an even draw from equal-width strata of the scores.

    The `drop_hardest` share with the highest influence is set aside (of equal influences, as many
    as needed, drawn at random); the remaining range is cut into `strata` of equal width, and
    :func:`allocate` shares the budget among them.

    Source: "Investigating Data Pruning for Pretraining Biological Foundation Models at Scale"
    (arXiv 2512.12932).
    """
    if strata < 1:
        raise InputError(f"--strata {strata}: must be at least 1")
    if not 0 <= drop_hardest < 1:
        raise InputError(f"--drop-hardest {drop_hardest}: must be at least 0 and below 1")
    # As a decimal: 0.29 * 100 is 28.999... in binary.
    dropped = math.floor(Fraction(str(drop_hardest)) * pool.size)
    if budget > pool.size - dropped:
        raise InputError(
            f"--budget of {budget} sequences: coverage leaves {pool.size - dropped} of "
            f"{pool.size} after setting aside the hardest {dropped}; choose at most "
            f"{pool.size - dropped}, or a smaller --drop-hardest than {drop_hardest}"
        )
    relation, low, high = _without_hardest(pool, dropped, seed)
    width = (high - low) / strata
    # The maximum belongs to the last stratum; a constant makes a single one.
    number = f"least({strata - 1}, floor((influence - {literal(low)}) / {literal(width)}))::INT"
    relation = f"SELECT *, {number if width > 0 else '0'} AS cell FROM ({relation})"
    sizes = dict(pool.query(f"SELECT cell, count(*) FROM ({relation}) GROUP BY cell"))
    quotas = allocate(budget, sizes)
    cells = [Cell(cell, size, quotas[cell]) for cell, size in sorted(sizes.items())]
    ranges = [
        Stratum(
            i, low + i * width, high if i == strata - 1 else low + (i + 1) * width, sizes.get(i, 0)
        )
        for i in range(strata)
    ]
    return Plan(relation, cells, ranges, "cell", "equal-width score range", dropped)


def _without_hardest(pool: Pool, dropped: int, seed: int) -> tuple[str, float, float]:
    """Return SQL of the pool without its highest influences, and the range that remains."""
    rank = pool.size - dropped
    found = order_statistics(pool, "SELECT 0 AS grp, influence FROM scores", {0: [1, rank]})
    low, highest = found[0, 1].value, found[0, rank]
    relation = f"SELECT * FROM scores WHERE influence <= {literal(highest.value)}"
    surplus = highest.below + highest.equal - rank
    if surplus:
        # An own purpose: were the same hash used twice, survivors would be favoured in the draw.
        tied = f"SELECT *, 0 AS cell FROM scores WHERE influence = {literal(highest.value)}"
        cell = Cell(0, highest.equal, surplus)
        draw(pool, tied, [cell], seed=seed, into="dropped", purpose="drop:")
        relation = f"SELECT * FROM ({relation}) ANTI JOIN dropped USING (row)"
    return relation, low, highest.value


def _top_of_groups(
    pool: Pool, grouped: str, population: Mapping[int, int], quotas: Mapping[int, int]
) -> tuple[str, list[Cell]]:
    """Plan each group's highest influences: all above its threshold, and a draw of those at it."""
    ranks = {grp: [population[grp] - quota + 1] for grp, quota in quotas.items() if quota}
    thresholds = order_statistics(pool, grouped, ranks)
    cells = []
    for (grp, _), found in thresholds.items():
        above = population[grp] - found.below - found.equal
        cells += [Cell(2 * grp, above, above), Cell(2 * grp + 1, found.equal, quotas[grp] - above)]
    pool.make_table(
        "thresholds",
        pa.table(
            {
                "grp": [grp for grp, _ in thresholds],
                "threshold": [found.value for found in thresholds.values()],
            }
        ),
    )
    relation = (
        "SELECT g.*, 2 * grp + (influence = threshold)::INT AS cell "
        f"FROM ({grouped}) AS g JOIN thresholds USING (grp) WHERE influence >= threshold"
    )
    return relation, cells
