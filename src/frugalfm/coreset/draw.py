"""Exact uniform draws without replacement: hash bottom-k."""

# ruff: noqa: S608 - the SQL is made of this room's own text, of numbers and of quoted literals
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from frugalfm.coreset.pool import Pool, literal

__all__ = ["Cell", "draw"]

_HASH_BITS = 128
_BEYOND_EVERY_HASH = "g"
_Bounds = tuple[str | None, str | None]


class Cell(NamedTuple):
    """Rows that are alike for a strategy: how many there are, and how many of them to draw."""

    number: int
    population: int
    quota: int


def draw(
    pool: Pool, relation: str, cells: Sequence[Cell], *, seed: int, into: str, purpose: str = ""
) -> None:
    """Draw each cell's quota, uniformly, into a temporary table.

    Hash bottom-k: a cell gives the rows with the smallest ``md5("{purpose}{seed}:{id}")``
    (equal ids: the smallest rows). MD5 because, unlike DuckDB's own hash, it is the same in every
    version and on every machine; being of the id, the draw does not depend on the order or number
    of files, and draws of parts can be merged.

    Only rows under a hash threshold a little above the expected one are kept, and the few too
    many are then taken away again, so nothing but those few is ever sorted.

    Parameters
    ----------
    pool
        The scores.
    relation
        SQL with the columns ``id, row, cell`` and any others, which the table gets too.
    cells
        The population and quota of each cell; other cells give nothing.
    seed
        Another seed, another draw.
    into
        Name of the table, replaced if it is there.
    purpose
        Makes draws with one seed independent of each other.
    """
    cells = [cell for cell in cells if cell.quota > 0]
    bounds = {cell.number: _hash_bounds(cell) for cell in cells}
    _keep_below(pool, relation, cells, bounds, f"{purpose}{seed}:", into)
    if missed := _missed(pool, cells, into):
        # Beyond six standard deviations, or many equal ids: look at the whole of those cells.
        bounds |= dict.fromkeys(missed, ("", _BEYOND_EVERY_HASH))
        _keep_below(pool, relation, cells, bounds, f"{purpose}{seed}:", into)
    pool.query(
        f"DELETE FROM {into} WHERE row IN (WITH surplus AS ("
        "  SELECT cell, count(*) - any_value(quota) AS too_many"
        f" FROM {into} JOIN bounds USING (cell) GROUP BY cell)"
        " SELECT row FROM (SELECT row, too_many,"
        "  row_number() OVER (PARTITION BY cell ORDER BY hash DESC, row DESC) AS place"
        f" FROM {into} JOIN bounds USING (cell) JOIN surplus USING (cell) WHERE hash > low)"
        " WHERE place <= too_many)"
    )


def _hash_bounds(cell: Cell) -> _Bounds:
    """Hashes that enclose the quota-th smallest of the cell; None where all of it is taken."""
    if cell.quota == cell.population:
        return None, None
    margin = 6 * math.sqrt(cell.quota) + 20
    low, high = cell.quota - margin, cell.quota + margin
    return _hash_at(low / cell.population), _hash_at(high / cell.population)


def _hash_at(share: float) -> str:
    if share <= 0:
        return ""
    if share >= 1:
        return _BEYOND_EVERY_HASH
    return f"{int(share * 2**_HASH_BITS):0{_HASH_BITS // 4}x}"


def _keep_below(
    pool: Pool,
    relation: str,
    cells: Sequence[Cell],
    bounds: Mapping[int, _Bounds],
    prefix: str,
    into: str,
) -> None:
    """Fill the table with the rows whose hash is at most their cell's upper bound."""
    pool.make_table(
        "bounds",
        pa.table(
            {
                "cell": [cell.number for cell in cells],
                "quota": [cell.quota for cell in cells],
                "low": pa.array((bounds[cell.number][0] for cell in cells), pa.string()),
                "high": pa.array((bounds[cell.number][1] for cell in cells), pa.string()),
            }
        ),
    )
    pool.query(
        f"CREATE OR REPLACE TEMP TABLE {into} AS SELECT * FROM ("
        f" SELECT r.*, high, CASE WHEN high IS NULL THEN '' ELSE md5({literal(prefix)} || id) END"
        f" AS hash FROM ({relation}) AS r JOIN bounds USING (cell))"
        " WHERE hash <= coalesce(high, '')"
    )


def _missed(pool: Pool, cells: Sequence[Cell], into: str) -> list[int]:
    """Cells whose quota-th smallest hash is not between their bounds after all."""
    counts = {
        cell: (sure, found)
        for cell, sure, found in pool.query(
            f"SELECT cell, count(*) FILTER (hash <= low), count(*)"
            f" FROM {into} JOIN bounds USING (cell) GROUP BY cell"
        )
    }
    missed = []
    for cell in cells:
        sure, found = counts.get(cell.number, (0, 0))
        if not sure <= cell.quota <= found:
            missed.append(cell.number)
    return missed
