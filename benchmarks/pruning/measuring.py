"""From the predictions of evaluations to values of a metric, and those of resampled test sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.pruning.intervals import Sample, bootstrap

from frugalfm.errors import InputError

__all__ = ["measure"]


def measure(places: list[Path], metric: str, task: Path, alphabet: str) -> list[Sample]:
    """Resample the test set of several evaluations of one task, the same for all.

    Parameters
    ----------
    places
        Evaluations.
    metric
        ``accuracy`` or ``macro_f1`` of classes, ``spearman`` of numbers; or a column of the
        predictions (maps are measured one by one), of which the mean is taken.
    task, alphabet
        The task's folder, to see which pairs of sequences share one.

    Raises
    ------
    InputError
        The evaluations are not of the same test sequences, or do not know the metric.
    """
    tables = [pq.read_table(place / "predictions.parquet") for place in places]
    for place, table in zip(places, tables, strict=True):
        _check_same(place, table, places[0], tables[0], metric)
    described = json.loads((places[0] / "metrics.json").read_text())
    if metric in tables[0].column_names:
        values = [table[metric].to_numpy() for table in tables]
        return bootstrap("means", metric, values[0], values)
    members = _find_members(described, task, alphabet)
    if metric == "spearman":
        predicted = [table["prediction"].to_numpy() for table in tables]
        return bootstrap("numbers", metric, tables[0]["label"].to_numpy(), predicted, members)
    number = {name: code for code, name in enumerate(described["classes"])}
    per_residue = described["kind"] == "token"

    def code(table: pa.Table, column: str) -> list[np.ndarray]:
        rows = table[column].to_pylist()
        # What a mask leaves out has no class.
        return [
            np.array([number.get(item, -1) for item in (row if per_residue else [row])])
            for row in rows
        ]

    true = code(tables[0], "label")
    known = [part >= 0 for part in true]

    def keep(parts: list[np.ndarray]) -> list[np.ndarray]:
        return [part[there] for part, there in zip(parts, known, strict=True)]

    predicted = [keep(code(table, "prediction")) for table in tables]
    return bootstrap("classes", metric, keep(true), predicted, members)


def _check_same(
    place: Path, table: pa.Table, first_place: Path, first: pa.Table, metric: str
) -> None:
    same = table["row"] == first["row"]
    if "label" in table.column_names:
        same = same and table["label"] == first["label"]
    elif metric not in table.column_names:
        raise InputError(f"{place}: has no {metric}; there are {', '.join(table.column_names)}")
    if not same:
        raise InputError(f"{place}: has other test sequences than {first_place}")


def _find_members(described: dict[str, Any], task: Path, alphabet: str) -> np.ndarray | None:
    """Numbers of the two sequences of each pair, where some sequence is in several pairs."""
    if described["kind"] not in {"interaction", "affinity"}:
        return None
    from frugalfm.tasks import read_task
    from frugalfm.tasks.results import find_shared

    return find_shared(read_task(task, alphabet, kind=described["kind"]).test)
