"""Choose rows of the pool, and say what was chosen."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frugalfm.coreset.aligned import Aligned, SourceColumn, name_sources
from frugalfm.coreset.budgets import parse_budget
from frugalfm.coreset.coverage import check_options, hardest, plan_coverage
from frugalfm.coreset.draw import Drawn, draw
from frugalfm.coreset.eligible import cap_clusters, require_complexity
from frugalfm.coreset.footers import read_tally
from frugalfm.coreset.mixture import parse_mixture, share_out
from frugalfm.coreset.opening import open_pool
from frugalfm.coreset.order import WHOLE, Counts, Groups, Ranking, count_upper, in_order
from frugalfm.coreset.pool import Block, Pool
from frugalfm.coreset.report import (
    cluster_composition,
    occupancy,
    pool_clusters,
    source_composition,
)
from frugalfm.coreset.strategies import (
    LENGTH_BINS,
    PREFERENCES,
    Part,
    Plan,
    Strata,
    Strategy,
    expect_deciles,
    plan_random,
    plan_window,
    score_deciles,
)
from frugalfm.coreset.tally import Tally
from frugalfm.errors import InputError

__all__ = ["Choice", "choose_rows", "write_selection"]

_SELECTION = pa.schema(
    [
        ("id", pa.string()),
        ("row", pa.int64()),
        ("influence", pa.float32()),
        ("stratum", pa.int32()),
    ]
)

_WINDOWS: dict[str, tuple[str, Literal["top", "middle", "bottom"]]] = {
    "top-influence": ("influence", "top"),
    "top-influence-by-length": ("influence", "top"),
    "top-loss": ("loss", "top"),
    "middle-loss": ("loss", "middle"),
    "bottom-loss": ("loss", "bottom"),
}


@dataclass(frozen=True)
class Choice:
    """What to choose.

    Attributes
    ----------
    strategy
        See :data:`frugalfm.coreset.Strategy`.
    budget
        A number of sequences, or a percentage of the pool such as ``"1%"``.
    seed
        Seed of the draws, also of those among equal values.
    strata, drop_hardest
        Of ``coverage`` and ``coverage-log``: number of strata, share of highest influences that
        is set aside.
    max_per_cluster
        At most so many of each cluster.
    min_complexity
        Nothing less complex than this.
    mixture
        How sources share the budget; see :func:`frugalfm.coreset.mixture.parse_mixture`.
    """

    strategy: Strategy
    budget: int | str
    seed: int = 0
    strata: int = 50
    drop_hardest: float = 0.1
    max_per_cluster: int | None = None
    min_complexity: float | None = None
    mixture: str | None = None


def choose_rows(
    score_files: Sequence[Path], strategy: Strategy, budget: int | str, **options: Any
) -> pa.Table:
    """Choose rows by their scores, as :func:`write_selection` does.

    Parameters
    ----------
    score_files
        Parquet parts with ``id, row, influence, loss, length``.
    strategy, budget
        See :class:`Choice`.
    options
        Other fields of :class:`Choice`, and the options of :func:`write_selection`.

    Returns
    -------
    pyarrow.Table
        ``id, row, influence, stratum`` of exactly the budget, in ascending order of row.
    """
    files = ("clusters", "sources", "memory_limit", "scratch")
    beside = {name: options.pop(name) for name in files if name in options}
    with tempfile.TemporaryDirectory(dir=beside.get("scratch")) as folder:
        path = Path(folder) / "selection.parquet"
        write_selection(score_files, path, Choice(strategy, budget, **options), **beside)
        return pq.read_table(path)


def write_selection(
    score_files: Sequence[Path],
    selection: Path,
    choice: Choice,
    *,
    clusters: Sequence[Path] = (),
    sources: SourceColumn | None = None,
    rows: int | None = None,
    memory_limit: str = "1GB",
    scratch: Path | None = None,
) -> dict[str, Any]:
    """Choose rows by their scores into a Parquet file, in bounded memory.

    What may not be chosen (too simple, beyond the cap of its cluster) is taken out first; then
    the budget is shared among sources, and the strategy is applied to what remains of each. The
    choice depends on the ids, the scores and the seed only, not on the order or number of files.

    Parameters
    ----------
    score_files
        Parquet parts with ``id, row, influence, loss, length``, in any order.
    selection
        Gets ``id, row, influence, stratum`` of exactly the budget, in ascending order of row.
    choice
        What to choose.
    clusters
        Parquet parts with ``row, cluster, complexity`` of every sequence of the pool, in order.
    sources
        Where the source of each sequence is written.
    rows
        How many sequences the pool must have; any number by default.
    memory_limit
        What may be held in memory of anything that grows with the pool; beside it there are some
        150 MB, and 100 bytes for each of the rows near a threshold.
    scratch
        Existing folder for temporary files; the system's by default. Left empty.

    Returns
    -------
    dict
        The report; see :func:`frugalfm.coreset.report.occupancy`.

    Raises
    ------
    InputError
        Damaged files, scores that are not finite, a budget that cannot be met.
    """
    _check(choice, clusters, sources)
    options: dict[str, Any] = {"memory_limit": memory_limit, "scratch": scratch}
    options["keep"] = "loss" if choice.strategy.endswith("-loss") else "influence"
    options["within"] = LENGTH_BINS if choice.strategy.endswith("-by-length") else WHOLE
    with open_pool(score_files, **options) as (pool, rankings):
        if rows is not None and (pool.size, pool.first_row) != (rows, 0):
            raise InputError(
                f"{Path(score_files[0]).parent}: holds {pool.size} scores for the {rows} sequences "
                "of the shards, or not of every sequence one; score them again"
            )
        names = _align(pool, score_files, clusters, sources)
        budget = parse_budget(choice.budget, pool.size)
        not_eligible = _restrict(pool, choice)
        ranking = rankings["influence"]
        expect_deciles(ranking)
        plan = _plan(pool, rankings, choice, budget, names)
        chosen = Tally(len(names))
        whole = Tally(len(names), ranking.watch(), known=read_tally(score_files))
        whole.influences = ranking.counts[0]
        beside = [name for name in ("source", "cluster") if name in pool.aligned]
        carry = ["row", "id", "influence", *Tally.columns, *beside]
        drawn = draw(pool, plan, seed=choice.seed, carry=carry, tally=whole)
        deciles = score_deciles(ranking)
        strata = plan.strata or deciles
        counts = _write(drawn, strata, deciles, chosen, selection, budget)
        report: dict[str, Any] = {
            "strategy": choice.strategy,
            "budget": budget,
            "not_eligible": not_eligible,
        }
        report |= occupancy(whole, chosen, strata, *counts, dropped=plan.dropped)
        report["sources"] = source_composition(names, whole, chosen)
        report["clusters"] = _clusters(pool, drawn) if clusters else None
        return report


def _write(
    drawn: Drawn, strata: Strata, deciles: Strata, chosen: Tally, path: Path, budget: int
) -> tuple[Counts, Counts]:
    """Write the selection, and count what it took from which stratum and tenth of the pool."""
    counts = np.zeros(1 + max(stratum.number for stratum in strata.all), np.int64)
    tenths = np.zeros(len(deciles.all), np.int64)
    last = -1
    with (
        pq.ParquetWriter(path, _SELECTION, use_dictionary=False) as writer,
        ThreadPoolExecutor(1) as behind,  # one batch is written while the next is described
    ):
        written: Future[None] | None = None
        for batch in drawn.batches():
            columns = {name: batch[name].to_numpy() for name in batch.schema.names if name != "id"}
            stratum = strata.number(columns)
            table = pa.table([batch["id"], batch["row"], batch["influence"],
                              pa.array(stratum, pa.int32())], schema=_SELECTION)  # fmt: skip
            if written is not None:
                written.result()
            written = behind.submit(writer.write_table, table)
            chosen.add(columns)
            count_upper(chosen.influences, columns["influence"])
            np.add.at(counts, stratum, 1)
            np.add.at(tenths, deciles.number(columns), 1)
            if not (np.diff(columns["row"], prepend=last) > 0).all():
                raise AssertionError("chose a sequence twice")
            last = columns["row"][-1] if len(batch) else last
        if written is not None:
            written.result()
    chosen.influences = in_order(chosen.influences)
    # The checks of the pool and the arithmetic of the plan promise this; a coreset must keep it.
    if chosen.size != budget:
        raise AssertionError(f"chose {chosen.size} sequences, not {budget}")
    return counts, tenths


def _plan(
    pool: Pool,
    rankings: Mapping[str, Ranking],
    choice: Choice,
    budget: int,
    names: Sequence[str],
) -> Plan:
    mixture = None if choice.mixture is None else parse_mixture(choice.mixture)
    groups = WHOLE
    if mixture is not None:
        groups = Groups(len(names), ("source",), lambda block: block["source"])
    sizes = _sizes(pool, groups)
    covers = choice.strategy.startswith("coverage")
    drop = choice.drop_hardest if covers else 0.0
    capacities = [size - hardest(size, drop) for size in sizes]
    if mixture is None and budget > capacities[0]:
        raise _too_large(pool, choice, budget, sizes[0], capacities[0])
    parts = list(map(Part, sizes, share_out(budget, capacities, names, mixture)))
    if choice.strategy == "random":
        return plan_random(groups, parts)
    if covers:
        return plan_coverage(
            pool,
            groups,
            parts,
            strata=choice.strata,
            drop_hardest=drop,
            seed=choice.seed,
            logarithmic=choice.strategy == "coverage-log",
            ranking=rankings["influence"],
        )
    if choice.strategy not in _WINDOWS:
        raise InputError(f"--strategy {choice.strategy}: no such strategy")
    column, place = _WINDOWS[choice.strategy]
    by_length = choice.strategy.endswith("-by-length")
    ranking = rankings["within" if by_length else column]
    return plan_window(pool, column, place, groups, parts, by_length=by_length, ranking=ranking)


def _too_large(pool: Pool, choice: Choice, budget: int, size: int, capacity: int) -> InputError:
    left = f"only {size} of {pool.size} are eligible" if size < pool.size else f"{size} are there"
    remedy = f"choose at most {capacity}"
    if capacity < size:
        left += f", and coverage sets the hardest {size - capacity} of them aside"
        remedy += f", or a smaller --drop-hardest than {choice.drop_hardest}"
    if size < pool.size:
        remedy += ", or relax --max-per-cluster or --min-complexity"
    return InputError(f"--budget of {budget} sequences: {left}; {remedy}")


def _sizes(pool: Pool, groups: Groups) -> list[int]:
    """Count the eligible rows of each group."""
    if groups.number is None:
        return [pool.size if pool.eligible is None else int(np.count_nonzero(pool.eligible))]
    number = groups.number

    def look(blocks: Iterator[Block]) -> Counts:
        counts = np.zeros(groups.count, np.int64)
        for block in blocks:
            own = number(block)
            own = own if block.eligible is None else own[block.eligible]
            counts += np.bincount(own, minlength=groups.count)
        return counts

    found = list(pool.map(look, groups.columns, desc="sources"))
    sizes: list[int] = np.sum(found, axis=0).tolist()
    return sizes


def _align(
    pool: Pool,
    score_files: Sequence[Path],
    clusters: Sequence[Path],
    sources: SourceColumn | None,
) -> tuple[str, ...]:
    """Put clusters and sources beside the pool; return the names of the sources."""
    if clusters:
        for name in ("cluster", "complexity"):
            pool.aligned[name] = Aligned(clusters, name, numbered=True)
    if sources is None:
        return ()
    column, names = name_sources(sources, score_files, pool.scratch, pool.memory)
    pool.aligned["source"] = column
    return names


def _restrict(pool: Pool, choice: Choice) -> dict[str, int]:
    """Take out what may not be chosen; return how many for which reason."""
    found = {}
    if choice.min_complexity is not None:
        found[f"below complexity {choice.min_complexity:g}"] = require_complexity(
            pool, choice.min_complexity
        )
    if choice.max_per_cluster is not None:
        found[f"beyond {choice.max_per_cluster} of a cluster"] = cap_clusters(
            pool, choice.max_per_cluster, PREFERENCES.get(choice.strategy), choice.seed
        )
    return found


def _clusters(pool: Pool, drawn: Drawn) -> dict[str, Any]:
    pool.kept.clear()  # the memory is needed now
    return {
        "pool": cluster_composition(pool, pool_clusters(pool)),
        "chosen": cluster_composition(pool, (batch["cluster"] for batch in drawn.batches())),
    }


def _check(choice: Choice, clusters: Sequence[Path], sources: SourceColumn | None) -> None:
    check_options(choice.strata, choice.drop_hardest)
    for option, value in (
        ("--max-per-cluster", choice.max_per_cluster),
        ("--min-complexity", choice.min_complexity),
    ):
        if value is not None and not clusters:
            raise InputError(f"{option} needs --clusters, a folder that `cluster` made")
    if choice.max_per_cluster is not None and choice.max_per_cluster < 1:
        raise InputError(f"--max-per-cluster must be at least 1, not {choice.max_per_cluster}")
    if choice.mixture is not None:
        parse_mixture(choice.mixture)
        if sources is None:
            raise InputError("--mixture needs --source, the column that names the sources")
