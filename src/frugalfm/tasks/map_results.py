"""What predicted maps are worth: metrics beside a baseline, and a table, whoever predicted them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from frugalfm.tasks.brackets import decode_pairs, write_structure
from frugalfm.tasks.folder import Task
from frugalfm.tasks.map_metrics import (
    FLOOR,
    Measured,
    choose_threshold,
    measure_map,
    measure_pairs,
    score_maps,
)
from frugalfm.tasks.maps import MapTargets
from frugalfm.tasks.results import Evaluation, summarise
from frugalfm.tasks.splits import Split

__all__ = ["MapBaseline", "describe_map", "report_maps", "targets_of"]

_BINS = 64  # separations that are told apart; longer ones fall into octaves' eighths


def targets_of(split: Split) -> MapTargets:
    """Targets of pairs of positions, of a split that has them."""
    assert split.maps is not None, "the task is not one of maps"
    return split.maps


def report_maps(
    task: Task,
    dev: list[Measured],
    test: list[Measured],
    predictions: list[dict[str, Any]],
    *,
    how: dict[str, Any],
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Score maps that were measured one by one.

    Parameters
    ----------
    task
        Whose splits were predicted.
    dev, test
        What :func:`~frugalfm.tasks.map_metrics.measure_map` gave for each sequence, in order.
    predictions
        Of each test sequence: what :func:`describe_map` gave.
    how
        Entries that say how the predictions were made.
    resamples, seed
        Of the bootstrap, which draws whole sequences.

    Returns
    -------
    Evaluation
        As of :func:`~frugalfm.tasks.results.report_predictions`; the baseline is
        :class:`MapBaseline`. Predictions have the columns ``row``, those of `predictions`, and the
        metrics of each sequence.
    """
    baseline = MapBaseline.fit(task.train)
    measured = {"dev": dev, "test": test, "baseline": _measure_baseline(baseline, task)}
    scores = {
        name: score_maps(maps, resamples=resamples, seed=seed) for name, maps in measured.items()
    }
    metrics = summarise(task, how, scores, baseline.name, resamples=resamples, seed=seed)
    columns: dict[str, Any] = {"row": pa.array(task.test.rows, pa.int64())}
    for name in predictions[0]:
        columns[name] = pa.array([found[name] for found in predictions])
    for name in test[0]:
        columns[name] = pa.array([found[name] for found in test], pa.float64())
    return Evaluation(metrics, pa.table(columns))


def describe_map(
    split: Split, index: int, predicted: np.ndarray, threshold: float = 0.5
) -> dict[str, Any]:
    """Give the part of a predicted map that is written down.

    Returns
    -------
    dict
        ``prediction``: base pairs in dot-bracket notation (and the ``label``, as written), the L
        likeliest contacts as a list of ``{i, j, score}`` with positions from 0; for distances
        nothing.
    """
    maps = targets_of(split)
    if maps.kind == "base-pair":
        pairs = decode_pairs(predicted, threshold)[0]
        structure = write_structure(pairs, int(maps.lengths[index]))
        return {"label": split.texts[index].as_py(), "prediction": structure}
    if maps.kind == "distance":
        return {}
    i, j, _ = maps.pairs(index)
    scores = predicted[i, j]
    top = np.argsort(-scores, kind="stable")[: int(maps.lengths[index])]
    rows = zip(i[top].tolist(), j[top].tolist(), scores[top].tolist(), strict=True)
    return {"prediction": [{"i": a, "j": b, "score": score} for a, b, score in rows]}


@dataclass(frozen=True)
class MapBaseline:
    """What the training targets say without a model: their mean at each separation.

    Base pairs are also told apart by their two letters.

    Attributes
    ----------
    means
        Shape ``(letters, letters, separations)``; one letter unless pairs are base pairs.
    letters
        Letter of the alphabet to its number, by bytes.
    """

    means: np.ndarray
    letters: np.ndarray

    @classmethod
    def fit(cls, train: Split) -> MapBaseline:
        """Average over all valid pairs of the training split."""
        maps = targets_of(train)
        letters = np.zeros(256, np.int64)
        if maps.kind == "base-pair":
            found = np.unique(
                np.frombuffer("".join(train.sequences.to_pylist()).encode(), np.uint8)
            )
            letters[found] = np.arange(len(found))
        size = int(letters.max()) + 1
        bins = int(_bin(np.array([maps.lengths.max()]))[0]) + 1
        shape = (size, size, bins)
        sums, counts = np.zeros(np.prod(shape)), np.zeros(np.prod(shape))
        for index, codes in enumerate(_codes(train, letters)):
            i, j, values = maps.pairs(index)
            cell = np.ravel_multi_index((codes[i], codes[j], _bin(j - i)), shape)
            sums += np.bincount(cell, values, minlength=len(sums))
            counts += np.bincount(cell, minlength=len(sums))
        overall = sums.sum() / max(counts.sum(), 1)
        means = np.divide(sums, counts, out=np.full_like(sums, overall), where=counts > 0)
        return cls(means.reshape(shape), letters)

    @property
    def name(self) -> str:
        """What is predicted, in words."""
        of = "separation and letters" if len(self.means) > 1 else "separation"
        return f"mean of the training targets by {of}"

    def predict(self, split: Split) -> Iterator[np.ndarray]:
        """Predict the map of each sequence, symmetric."""
        for codes in _codes(split, self.letters):
            place = np.arange(len(codes))
            apart = np.minimum(_bin(np.abs(place[:, None] - place)), self.means.shape[2] - 1)
            found = self.means[codes[:, None], codes[None, :], apart]
            upper = np.triu(found)
            yield upper + np.triu(found, 1).T


def _measure_baseline(baseline: MapBaseline, task: Task) -> list[Measured]:
    maps = targets_of(task.test)
    if maps.kind != "base-pair":
        return [
            measure_map(maps, at, found) for at, found in enumerate(baseline.predict(task.test))
        ]
    decoded = [decode_pairs(found, FLOOR) for found in baseline.predict(task.dev)]
    threshold, _ = choose_threshold(targets_of(task.dev), decoded)
    return [
        measure_pairs(maps, at, decode_pairs(found, threshold)[0])
        for at, found in enumerate(baseline.predict(task.test))
    ]


def _codes(split: Split, letters: np.ndarray) -> Iterator[np.ndarray]:
    for text in split.sequences.to_pylist():
        yield letters[np.frombuffer(text.encode(), np.uint8)]


def _bin(apart: np.ndarray) -> np.ndarray:
    """Tell the bin of a separation: each its own up to 64, then eight an octave."""
    wide = _BINS + np.floor(8 * np.log2(np.maximum(apart, _BINS) / _BINS)).astype(np.int64)
    return np.where(apart < _BINS, apart, wide)
