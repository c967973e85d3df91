"""The occupancy report: what a selection took from which part of the pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from frugalfm.coreset.order import Counts
from frugalfm.coreset.pool import Block, Pool
from frugalfm.coreset.sql import limited
from frugalfm.coreset.strategies import Strata
from frugalfm.coreset.tally import Tally, length_histogram, value_histogram

__all__ = ["as_text", "cluster_composition", "occupancy"]

_MOST_LINES = 10
_MOST_SOURCES = 6


def occupancy(
    pool: Tally, chosen: Tally, strata: Strata, counts: Counts, tenths: Counts, *, dropped: int
) -> dict[str, Any]:
    """Describe what was chosen beside the pool.

    Parameters
    ----------
    pool, chosen
        Counts of both.
    strata, counts
        What to count by, and how many were chosen, by number of the stratum.
    tenths
        How many were chosen from each tenth of the pool by influence.
    dropped
        How many were set aside as the hardest.

    Returns
    -------
    dict
        ``strata_kind`` and ``strata`` (each with ``stratum, low, high, population, chosen``),
        ``filled`` (strata that hold any sequence), ``dropped``; ``pool`` and ``chosen`` (each with
        ``sequences``, ``mean_loss``, ``loss_quantiles`` and ``length_quantiles``);
        ``score_deciles``, the number chosen from each tenth of the pool by influence, so that
        strategies can be compared; ``length_bins`` and ``histograms`` of influence and loss (each
        with ``edges``, one more than bars, ``pool`` and ``chosen``).
    """
    return {
        "strata_kind": strata.kind,
        "strata": [
            {
                "stratum": stratum.number,
                "low": stratum.low,
                "high": stratum.high,
                "population": stratum.population,
                "chosen": int(counts[stratum.number]),
            }
            for stratum in strata.all
        ],
        "filled": sum(stratum.population > 0 for stratum in strata.all),
        "dropped": dropped,
        "pool": pool.composition(),
        "chosen": chosen.composition(),
        "score_deciles": tenths.tolist(),
        "histograms": {
            "influence": value_histogram(pool.influences, chosen.influences),
            "loss": value_histogram(pool.losses, chosen.losses),
        },
        "length_bins": length_histogram(pool, chosen),
    }


def source_composition(names: Sequence[str], pool: Tally, chosen: Tally) -> dict[str, Any]:
    """Return, for each source, how many sequences it has and how many were chosen."""
    return {
        name: {"pool": int(pool.sources[n]), "chosen": int(chosen.sources[n])}
        for n, name in enumerate(names)
    }


def cluster_composition(pool: Pool, batches: Iterator[pa.Array]) -> dict[str, int]:
    """Return the number of clusters among some members, and the size of the largest."""
    schema = pa.schema([("cluster", pa.int64())])
    members = pa.RecordBatchReader.from_batches(
        schema, (pa.record_batch([cluster], schema=schema) for cluster in batches)
    )
    with limited(pool.memory, pool.scratch) as connection:
        connection.register("members", members)
        found = connection.execute(
            "SELECT count(*), max(n) FROM (SELECT count(*) AS n FROM members GROUP BY cluster)"
        ).fetchall()
    clusters, largest = found[0]
    return {"clusters": clusters, "largest": largest}


def pool_clusters(pool: Pool) -> Iterator[pa.Array]:
    """Yield the cluster of every sequence of the pool."""

    def look(blocks: Iterator[Block]) -> Any:
        return np.concatenate([block["cluster"] for block in blocks])

    for cluster in pool.map(look, ["cluster"], desc="clusters"):
        yield pa.array(cluster, pa.int64())


def as_text(report: dict[str, Any]) -> str:
    """Return the report as the few lines that the command prints."""
    kind, strata, filled = report["strata_kind"], report["strata"], report["filled"]
    lines = [
        f"{report['strategy']}: {report['chosen']['sequences']} of "
        f"{report['pool']['sequences']} sequences"
    ]
    if left_out := report["not_eligible"]:
        lines[0] += "".join(f"; {number} {why}" for why, number in left_out.items())
    if report["dropped"]:
        lines[0] += f"; the hardest {report['dropped']} were set aside"
    lines.append(f"{kind:>30} {'pool':>12} {'chosen':>12}")
    if len(report["sources"]) > 1 and "score range" in kind:
        lines[-1] = f"{'source':>30} {'pool':>12} {'chosen':>12}"
    else:
        lines += [
            f"{low:>14.5g} .. {high:<12.5g} {population:>12} {chosen:>12}"
            for low, high, population, chosen in _merged(strata)
        ]
    lines += _source_lines(report["sources"])
    for name, of in (("pool", report["pool"]), ("chosen", report["chosen"])):
        lines.append(_describe(name, of))
    if clusters := report["clusters"]:
        lines.append(
            f"clusters: {clusters['chosen']['clusters']} of {clusters['pool']['clusters']}, "
            f"the largest with {clusters['chosen']['largest']} sequences"
        )
    if "score range" in kind and filled < len(strata):
        text = f"{filled} of {len(strata)} strata filled"
        if filled < len(strata) / 2:
            text = f"warning: only {text} (uneven scores), so this is close to random"
            if report["strategy"] == "coverage":
                text += "; coverage-log has strata for such scores"
        lines.append(text)
    return "\n".join(lines)


def _describe(name: str, of: dict[str, Any]) -> str:
    lengths, losses = of["length_quantiles"], of["loss_quantiles"]
    loss = "not finite"
    if losses is not None:
        loss = f"{of['mean_loss']:.4g} ({losses['5%']:.4g} / {losses['95%']:.4g})"
    return (
        f"{name:>6}: length {lengths['5%']} / {lengths['50%']} / {lengths['95%']} "
        f"(5 / 50 / 95 %), mean loss {loss}"
    )


def _source_lines(sources: dict[str, dict[str, int]]) -> list[str]:
    """Return one line for each of the largest sources, and one for the others."""
    ordered = sorted(sources.items(), key=lambda item: -item[1]["pool"])
    rows = [(name, of["pool"], of["chosen"]) for name, of in ordered]
    if len(rows) > _MOST_SOURCES:
        others = rows[_MOST_SOURCES - 1 :]
        rows = rows[: _MOST_SOURCES - 1]
        rows.append(
            (f"{len(others)} other sources", sum(r[1] for r in others), sum(r[2] for r in others))
        )
    return [f"{name:>30} {population:>12} {chosen:>12}" for name, population, chosen in rows]


def _merged(strata: list[dict[str, Any]]) -> list[tuple[float, float, int, int]]:
    """Adjacent strata together, so that no more than ten lines remain."""
    step = -(-len(strata) // _MOST_LINES)
    groups = [strata[i : i + step] for i in range(0, len(strata), step)]
    return [
        (
            group[0]["low"],
            group[-1]["high"],
            sum(s["population"] for s in group),
            sum(s["chosen"] for s in group),
        )
        for group in groups
    ]
