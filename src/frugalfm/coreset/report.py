"""The occupancy report: what a selection took from which part of the pool."""

# ruff: noqa: S608 - the SQL is made of this room's own text, of numbers and of quoted literals
from __future__ import annotations

import math
from typing import Any

from frugalfm.coreset.pool import Pool
from frugalfm.coreset.strategies import Deciles, Plan

__all__ = ["as_text", "occupancy"]

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_MOST_LINES = 10


def occupancy(pool: Pool, plan: Plan, deciles: Deciles) -> dict[str, Any]:
    """Describe the table ``chosen`` beside the pool.

    Returns
    -------
    dict
        ``strata_kind`` and ``strata`` (each with ``stratum, low, high, population, chosen``),
        ``filled`` (strata that hold any sequence), ``dropped``; ``pool`` and ``chosen`` (each with
        ``sequences``, ``mean_loss`` and ``length_quantiles``); and ``score_deciles``, the number
        chosen from each tenth of the pool by influence, so that strategies can be compared.
    """
    chosen = dict(pool.query("SELECT stratum, count(*) FROM chosen GROUP BY stratum"))
    by_decile = dict(pool.query(f"SELECT {deciles.number} AS d, count(*) FROM chosen GROUP BY d"))
    return {
        "strata_kind": plan.kind,
        "strata": [
            {
                "stratum": stratum.number,
                "low": stratum.low,
                "high": stratum.high,
                "population": stratum.population,
                "chosen": chosen.get(stratum.number, 0),
            }
            for stratum in plan.strata
        ],
        "filled": sum(stratum.population > 0 for stratum in plan.strata),
        "dropped": plan.dropped,
        "pool": _composition(pool, "scores"),
        "chosen": _composition(pool, "chosen"),
        "score_deciles": [by_decile.get(stratum.number, 0) for stratum in deciles.strata],
    }


def _composition(pool: Pool, table: str) -> dict[str, Any]:
    lengths = pool.query(
        f"SELECT length, count(*), sum(loss) FROM {table} GROUP BY length ORDER BY length"
    )
    size = sum(count for _, count, _ in lengths)
    mean_loss = sum(loss for *_, loss in lengths if loss is not None) / size
    quantiles = {}
    for quantile in _QUANTILES:
        rank, up_to = max(1, math.ceil(quantile * size)), 0
        for length, count, _ in lengths:
            up_to += count
            if up_to >= rank:
                quantiles[f"{quantile:.0%}"] = length
                break
    return {
        "sequences": size,
        # Rounded, because sums made in parallel differ in their last bits.
        "mean_loss": float(f"{mean_loss:.6g}") if math.isfinite(mean_loss) else None,
        "length_quantiles": quantiles,
    }


def as_text(report: dict[str, Any]) -> str:
    """Return the report as the few lines that the command prints."""
    kind, strata, filled = report["strata_kind"], report["strata"], report["filled"]
    lines = [
        f"{report['strategy']}: {report['chosen']['sequences']} of "
        f"{report['pool']['sequences']} sequences"
    ]
    if report["dropped"]:
        lines[0] += f"; the hardest {report['dropped']} were set aside"
    lines.append(f"{kind:>30} {'pool':>12} {'chosen':>12}")
    lines += [
        f"{low:>14.5g} .. {high:<12.5g} {population:>12} {chosen:>12}"
        for low, high, population, chosen in _merged(strata)
    ]
    for name, of in (("pool", report["pool"]), ("chosen", report["chosen"])):
        quantiles = of["length_quantiles"]
        loss = "not finite" if of["mean_loss"] is None else f"{of['mean_loss']:.4g}"
        lines.append(
            f"{name:>6}: length {quantiles['5%']} / {quantiles['50%']} / {quantiles['95%']} "
            f"(5 / 50 / 95 %), mean loss {loss}"
        )
    if report["strategy"] == "coverage" and filled < len(strata):
        text = f"{filled} of {len(strata)} strata filled"
        if filled < len(strata) / 2:
            text = f"warning: only {text} (uneven scores), so this is close to random"
        lines.append(text)
    return "\n".join(lines)


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
