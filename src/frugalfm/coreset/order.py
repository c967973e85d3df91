"""Exact order statistics of the scores, in two passes and bounded memory."""

# ruff: noqa: S608 - the SQL is made of this room's own text, of numbers and of quoted literals
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from frugalfm.coreset.pool import Pool

__all__ = ["OrderStatistic", "order_statistics"]

# `influence` rounded to 8 significant bits, in float64 (Veltkamp's splitting with 2^45 + 1). It is
# monotone, has about 2^16 values, and each of them stands for about 2^16 different float32: so
# either histogram is small, whatever the scores.
_ROUNDED = (
    "(influence * 35184372088833::DOUBLE"
    " - (influence * 35184372088833::DOUBLE - influence::DOUBLE))"
)


class OrderStatistic(NamedTuple):
    """The value at a rank, how many values are smaller, and how many are the same."""

    value: float
    below: int
    equal: int


def order_statistics(
    pool: Pool, relation: str, ranks: Mapping[int, Sequence[int]]
) -> dict[tuple[int, int], OrderStatistic]:
    """Find the influence at each rank, exactly, without sorting.

    A histogram over rounded influences finds the bucket of each rank; a second pass counts the
    values inside those buckets only.

    Parameters
    ----------
    pool
        The scores.
    relation
        SQL with the columns ``grp`` (integer) and ``influence``.
    ranks
        For each group, ranks in ascending order of influence, the smallest being 1.

    Returns
    -------
    dict
        From (group, rank).
    """
    wanted = [(group, rank) for group, of_group in ranks.items() for rank in of_group]
    coarse = _histogram(pool, f"SELECT grp, {_ROUNDED} AS value FROM ({relation})")
    buckets = {key: _at_rank(coarse, *key) for key in wanted}
    distinct = dict.fromkeys((group, found.value) for (group, _), found in buckets.items())
    numbers = {key: number for number, key in enumerate(distinct)}
    pool.make_table(
        "buckets",
        pa.table(
            {
                "grp": [group for group, _ in numbers],
                "bucket": [bucket for _, bucket in numbers],
                "number": list(numbers.values()),
            }
        ),
    )
    # Adding zero turns -0.0, which equals 0.0, into it.
    fine = _histogram(
        pool,
        f"SELECT number AS grp, influence + 0::FLOAT AS value FROM ({relation}) AS r "
        f"JOIN buckets ON r.grp = buckets.grp AND {_ROUNDED} = bucket",
    )
    statistics = {}
    for (group, rank), (bucket, below, _) in buckets.items():
        found = _at_rank(fine, numbers[group, bucket], rank - below)
        statistics[group, rank] = found._replace(below=below + found.below)
    return statistics


_Histogram = dict[str, npt.NDArray[Any]]


def _histogram(pool: Pool, relation: str) -> _Histogram:
    histogram: _Histogram = pool.connection.execute(
        f"SELECT grp, value, count(*) AS number FROM ({relation}) GROUP BY ALL ORDER BY grp, value"
    ).fetchnumpy()
    return histogram


def _at_rank(histogram: _Histogram, group: int, rank: int) -> OrderStatistic:
    start, stop = np.searchsorted(histogram["grp"], [group, group + 1])
    up_to = np.cumsum(histogram["number"][start:stop])
    place = int(np.searchsorted(up_to, rank))
    equal = int(histogram["number"][start + place])
    return OrderStatistic(
        float(histogram["value"][start + place]), int(up_to[place]) - equal, equal
    )
