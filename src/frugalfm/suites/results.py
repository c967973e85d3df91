"""From cells to means, intervals and the comparisons of the GERM paper (arXiv 2505.00598)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

__all__ = ["FULL", "PUBLISHED", "collect", "estimate_mean"]

FULL = "full"
_ADAPTERS = ("lora", "qlora", "loftq")
Row = dict[str, Any]

PUBLISHED = {("dnabert2", "germ"): 0.3798}
"""Headlines by reference and checkpoint: the share of the drop from full tuning that is gone.

How the paper computes it is not published; that it is this share is our reading.
"""


def estimate_mean(
    values: Sequence[float], spreads: Sequence[float] = ()
) -> dict[str, float | str | None]:
    """Mean with a 95 % interval: Student's over seeds, or that of test rows where there is one.

    Parameters
    ----------
    values
        One of each seed.
    spreads
        Of a single seed: half-widths of the bootstrap intervals of the independent tasks that the
        value is the mean of.

    Returns
    -------
    dict
        ``value, low, high`` and ``interval``: ``seeds``, ``test`` or None.
    """
    found = np.asarray(values, float)
    mean = float(found.mean())
    if len(found) > 1:
        half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found))
        return _interval(mean, float(half), "seeds")
    if len(spreads):
        return _interval(mean, math.sqrt(sum(x**2 for x in spreads)) / len(spreads), "test")
    return {"value": mean, "low": None, "high": None, "interval": None}


def collect(rows: Sequence[Row], *, suite: dict[str, Any], checkpoints: list[str]) -> Row:
    """Bring cells into one JSON-serialisable whole.

    Averages, drops and comparisons are over the tasks that every column has, so that they are
    of the same tasks.

    Parameters
    ----------
    rows
        ``task, checkpoint, method, seed, mcc, mcc_low, mcc_high, seconds`` and more, one a cell.
    suite
        What was run: ``tasks, methods, seeds, limits`` and so on; passed on.
    checkpoints
        By name; the first is the reference.

    Returns
    -------
    dict
        `suite` with ``checkpoints``, ``scores`` (a task, checkpoint and method each), ``common``
        (tasks), ``averages`` (a checkpoint and method each), ``drops`` (from full tuning, a
        checkpoint and adapter each, and their mean as ``all``) and ``comparison`` (the share of
        the reference's drop that is gone, a checkpoint and adapter each, likewise).
    """
    table = _Table(rows, list(suite["tasks"]), checkpoints, suite["methods"], suite["seeds"])
    drops = table.drops()
    return {
        **suite,
        "checkpoints": checkpoints,
        "scores": table.scores(),
        "common": table.common,
        "averages": table.averages(),
        "drops": drops,
        "comparison": _compare(drops, checkpoints),
    }


class _Table:
    """Cells by their place."""

    def __init__(
        self,
        rows: Sequence[Row],
        tasks: list[str],
        checkpoints: list[str],
        methods: list[str],
        seeds: int,
    ) -> None:
        self.cells: dict[tuple[str, str, str], list[Row]] = {}
        for row in sorted(rows, key=lambda row: row["seed"]):
            place = (row["task"], row["checkpoint"], row["method"])
            self.cells.setdefault(place, []).append(row)
        self.tasks, self.checkpoints, self.seeds = tasks, checkpoints, seeds
        self.columns = [(name, method) for name in checkpoints for method in methods]
        self.common = [
            task for task in tasks if all(self._is_whole(task, *column) for column in self.columns)
        ]

    def _is_whole(self, task: str, name: str, method: str) -> bool:
        wanted = 1 if method == "probe" else self.seeds
        return len(self.cells.get((task, name, method), [])) == wanted

    def scores(self) -> list[Row]:
        return [
            {
                "task": task,
                "checkpoint": name,
                "method": method,
                "n": len(found),
                **estimate_mean([row["mcc"] for row in found]),
                **(_bounds(found[0]) if len(found) == 1 else {}),
            }
            for task in self.tasks
            for name, method in self.columns
            if (found := self.cells.get((task, name, method)))
        ]

    def by_seed(self, name: str, method: str) -> np.ndarray:
        """MCC, shape ``(seeds, common tasks)``."""
        found = [[row["mcc"] for row in self.cells[task, name, method]] for task in self.common]
        return np.array(found, float).T

    def averages(self) -> list[Row]:
        if not self.common:
            return []
        found = []
        for name, method in self.columns:
            cells = [row for task in self.common for row in self.cells[task, name, method]]
            spreads = [(row["mcc_high"] - row["mcc_low"]) / 2 for row in cells]
            found.append(
                {
                    "checkpoint": name,
                    "method": method,
                    **estimate_mean(self.by_seed(name, method).mean(1).tolist(), spreads),
                    "median_seconds": float(np.median([row["seconds"] for row in cells])),
                }
            )
        return found

    def drops(self) -> list[Row]:
        """MCC(full) - MCC(adapter), the mean over tasks, with each seed paired with itself."""
        found: list[Row] = []
        for name in self.checkpoints if self.common else []:
            adapters = [m for m in _ADAPTERS if (name, m) in self.columns]
            if not adapters or (name, FULL) not in self.columns:
                continue
            full = self.by_seed(name, FULL)
            each = {m: (full - self.by_seed(name, m)).mean(1) for m in adapters}
            each["all"] = np.mean(list(each.values()), axis=0)
            found += [
                {"checkpoint": name, "method": method, **estimate_mean(values.tolist())}
                for method, values in each.items()
            ]
        return found


def _compare(drops: list[Row], checkpoints: list[str]) -> list[Row]:
    """1 - drop / drop of the reference; undefined unless the reference's is positive."""
    reference = checkpoints[0]
    base = {row["method"]: row for row in drops if row["checkpoint"] == reference}
    found = []
    for row in drops:
        if row["checkpoint"] == reference:
            continue
        other = base[row["method"]]
        defined = other["value"] > 0
        published = PUBLISHED.get((_plain(reference), _plain(row["checkpoint"])))
        found.append(
            {
                "checkpoint": row["checkpoint"],
                "method": row["method"],
                "reduction": 1 - row["value"] / other["value"] if defined else None,
                # Where the reference's drop may be none, a share of it means nothing.
                "certain": bool(defined and other["low"] is not None and other["low"] > 0),
                "published": published if row["method"] == "all" else None,
            }
        )
    return found


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _bounds(row: Row) -> Row:
    return {"low": row["mcc_low"], "high": row["mcc_high"], "interval": "test"}


def _interval(value: float, half: float, of: str) -> dict[str, float | str | None]:
    return {"value": value, "low": value - half, "high": value + half, "interval": of}
