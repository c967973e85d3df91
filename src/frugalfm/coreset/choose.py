"""Choose rows of the pool, and say what was chosen."""

# ruff: noqa: S608 - the SQL is made of this room's own text, of numbers and of quoted literals
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from frugalfm.coreset.budgets import parse_budget
from frugalfm.coreset.draw import draw
from frugalfm.coreset.pool import Pool, literal, open_pool
from frugalfm.coreset.report import occupancy
from frugalfm.coreset.strategies import (
    Deciles,
    Plan,
    Strategy,
    plan_coverage,
    plan_random,
    plan_top,
    plan_top_by_length,
    score_deciles,
)
from frugalfm.errors import InputError

__all__ = ["choose_rows", "write_selection"]

_SELECTION = (
    "SELECT id, row::BIGINT AS row, influence, stratum::INT AS stratum FROM chosen ORDER BY row"
)


def choose_rows(
    score_files: Sequence[Path],
    strategy: Strategy,
    budget: int | str,
    *,
    seed: int = 0,
    strata: int = 50,
    drop_hardest: float = 0.1,
    memory_limit: str = "1GB",
    scratch: Path | None = None,
) -> pa.Table:
    """Choose rows by their scores.

    The choice depends on the ids, the scores and the seed only, not on the order or number of
    files. Memory: `memory_limit` and the returned table.

    Parameters
    ----------
    score_files
        Parquet parts with ``id, row, influence, loss, length``.
    strategy
        ``top-influence``, ``top-influence-by-length``, ``coverage`` or ``random``.
    budget
        A number of sequences, or a percentage of the pool such as ``"1%"``.
    seed
        Seed of the draws, also of those among equal influences.
    strata, drop_hardest
        Of ``coverage``: number of equal-width strata, share of highest influences set aside.
    memory_limit, scratch
        See :func:`frugalfm.coreset.pool.open_pool`.

    Returns
    -------
    pyarrow.Table
        ``id, row, influence, stratum`` of exactly the budget, in ascending order of row.

    Raises
    ------
    InputError
        Damaged files, scores that are not finite, a budget that cannot be met.
    """
    with open_pool(score_files, memory_limit=memory_limit, scratch=scratch) as pool:
        _choose(pool, strategy, parse_budget(budget, pool.size), seed, strata, drop_hardest)
        return pool.connection.sql(_SELECTION).to_arrow_table()


def write_selection(
    score_files: Sequence[Path],
    selection: Path,
    strategy: Strategy,
    budget: int | str,
    *,
    seed: int = 0,
    strata: int = 50,
    drop_hardest: float = 0.1,
    memory_limit: str = "1GB",
    scratch: Path | None = None,
) -> dict[str, Any]:
    """Choose rows as :func:`choose_rows` does, but into a Parquet file, in bounded memory.

    Returns
    -------
    dict
        The occupancy report; see :func:`frugalfm.coreset.report.occupancy`.
    """
    with open_pool(score_files, memory_limit=memory_limit, scratch=scratch) as pool:
        count = parse_budget(budget, pool.size)
        plan, deciles = _choose(pool, strategy, count, seed, strata, drop_hardest)
        pool.query(f"COPY ({_SELECTION}) TO {literal(str(selection))} (FORMAT parquet)")
        return {"strategy": strategy, "budget": count} | occupancy(pool, plan, deciles)


def _choose(
    pool: Pool, strategy: Strategy, budget: int, seed: int, strata: int, drop_hardest: float
) -> tuple[Plan, Deciles]:
    """Fill the table ``chosen`` (the pool's columns and ``stratum``)."""
    deciles = score_deciles(pool)
    if strategy == "random":
        plan = plan_random(pool, budget, deciles)
    elif strategy == "top-influence":
        plan = plan_top(pool, budget, deciles)
    elif strategy == "top-influence-by-length":
        plan = plan_top_by_length(pool, budget)
    elif strategy == "coverage":
        plan = plan_coverage(pool, budget, seed, strata, drop_hardest)
    else:
        raise InputError(f"--strategy {strategy}: no such strategy")
    draw(pool, plan.relation, plan.cells, seed=seed, into="drawn")
    pool.query(
        f"CREATE OR REPLACE TEMP VIEW chosen AS SELECT *, {plan.stratum} AS stratum FROM drawn"
    )
    found, differing = pool.query("SELECT count(*), count(DISTINCT row) FROM chosen")[0]
    # The checks of the pool and the arithmetic of the plan promise this; a coreset must keep it.
    if not found == differing == budget:
        raise AssertionError(
            f"chose {found} sequences, {differing} of them different, not {budget}"
        )
    return plan, deciles
