"""From cells to means, intervals and the comparisons of the GERM paper (arXiv 2505.00598)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from frugalfm.tasks.intervals import Sample, summarise

__all__ = ["FULL", "PUBLISHED", "Draws", "Place", "collect", "estimate_mean"]

FULL = "full"
_ADAPTERS = ("lora", "qlora", "loftq")
Row = dict[str, Any]
Place = tuple[str, str, str, int]
"""Task, checkpoint, method and seed of a cell."""
Draws = Mapping[Place, np.ndarray]
"""A cell's MCC on resampled test rows, shape ``(resamples,)``: the same rows in all cells of a
task, others in another task."""

PUBLISHED = {("dnabert2", "germ"): 0.3798}
"""Headlines by reference and checkpoint: the share of the drop from full tuning that is gone.

How the paper computes it is not published; that it is this share is our reading.
"""


def estimate_mean(sample: Sample) -> dict[str, float | str | None]:
    """Mean over seeds with a 95 % interval, of other seeds and other test rows.

    Both vary: with ``n`` seeds the variance of the mean is ``s^2 / n`` of the seeds plus that of
    the mean on resampled test rows (see :mod:`frugalfm.tasks.intervals`). Seeds that all give the
    same, such as heads that stay the probe that they start as, therefore have the interval of the
    test rows, as a single run has.

    Parameters
    ----------
    sample
        Values of each seed, and the same on resampled test rows. Without resamples, the interval
        is Student's over seeds.

    Returns
    -------
    dict
        ``value, low, high`` and ``interval``: what is drawn anew, ``seeds and test``, ``seeds``,
        ``test``, or None, and then there are no ends.
    """
    parts = [("seeds", len(sample.values) > 1), ("test", sample.drawn.shape[1] > 1)]
    of = " and ".join(name for name, varies in parts if varies) or None
    found = summarise(sample)
    low, high = (found.low, found.high) if of else (None, None)
    return {"value": found.value, "low": low, "high": high, "interval": of}


def collect(
    rows: Sequence[Row],
    *,
    suite: dict[str, Any],
    checkpoints: list[str],
    draws: Draws | None = None,
) -> Row:
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
    draws
        Of each cell; without them intervals are over seeds alone.

    Returns
    -------
    dict
        `suite` with ``checkpoints``, ``scores`` (a task, checkpoint and method each), ``common``
        (tasks), ``averages`` (a checkpoint and method each), ``drops`` (from full tuning, a
        checkpoint and adapter each, and their mean as ``all``) and ``comparison`` (the share of
        the reference's drop that is gone, a checkpoint and adapter each, likewise).
    """
    tasks = list(suite["tasks"])
    table = _Table(rows, tasks, checkpoints, suite["methods"], suite["seeds"], draws or {})
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
        draws: Draws,
    ) -> None:
        self.cells: dict[tuple[str, str, str], list[Row]] = {}
        for row in sorted(rows, key=lambda row: row["seed"]):
            place = (row["task"], row["checkpoint"], row["method"])
            self.cells.setdefault(place, []).append(row)
        self.tasks, self.checkpoints, self.seeds, self.draws = tasks, checkpoints, seeds, draws
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
                **estimate_mean(self.sample(task, name, method)),
                **(_bounds(found[0]) if len(found) == 1 else {}),
            }
            for task in self.tasks
            for name, method in self.columns
            if (found := self.cells.get((task, name, method)))
        ]

    def sample(self, task: str, name: str, method: str) -> Sample:
        """MCC of one task."""
        rows = self.cells[task, name, method]
        drawn = [self.draws.get((task, name, method, row["seed"]), np.empty(0)) for row in rows]
        return Sample(np.array([row["mcc"] for row in rows], float), np.array(drawn, float))

    def average(self, name: str, method: str) -> Sample:
        """Mean MCC of the common tasks, whose test rows are drawn independently."""
        found = [self.sample(task, name, method) for task in self.common]
        return _mean(found)

    def averages(self) -> list[Row]:
        if not self.common:
            return []
        found = []
        for name, method in self.columns:
            cells = [row for task in self.common for row in self.cells[task, name, method]]
            found.append(
                {
                    "checkpoint": name,
                    "method": method,
                    **estimate_mean(self.average(name, method)),
                    "median_seconds": float(np.median([row["seconds"] for row in cells])),
                }
            )
        return found

    def drops(self) -> list[Row]:
        """MCC(full) - MCC(adapter), the mean over tasks; paired by seed and by test rows."""
        found: list[Row] = []
        for name in self.checkpoints if self.common else []:
            adapters = [m for m in _ADAPTERS if (name, m) in self.columns]
            if not adapters or (name, FULL) not in self.columns:
                continue
            full = self.average(name, FULL)
            others = {method: self.average(name, method) for method in adapters}
            each = {
                method: Sample(full.values - other.values, full.drawn - other.drawn)
                for method, other in others.items()
            }
            each["all"] = _mean(list(each.values()))
            found += [
                {"checkpoint": name, "method": method, **estimate_mean(sample)}
                for method, sample in each.items()
            ]
        return found


def _mean(samples: Sequence[Sample]) -> Sample:
    """Mean of values and of draws."""
    return Sample(
        np.mean([sample.values for sample in samples], axis=0),
        np.mean([sample.drawn for sample in samples], axis=0),
    )


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
                # Where the reference's drop may be none, a share of it means nothing; one run
                # cannot tell.
                "certain": bool(
                    defined and "seeds" in (other["interval"] or "") and other["low"] > 0
                ),
                "published": published if row["method"] == "all" else None,
            }
        )
    return found


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _bounds(row: Row) -> Row:
    return {"low": row["mcc_low"], "high": row["mcc_high"], "interval": "test"}
