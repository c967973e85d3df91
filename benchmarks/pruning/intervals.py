"""Metrics on resampled test sequences, the same for every arm and seed.

The intervals are those of :mod:`frugalfm.tasks.intervals`, which add the variance of seeds to that
of test sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from frugalfm.tasks.intervals import Interval, Sample, compare, summarise

__all__ = ["Interval", "Sample", "adjust_holm", "bootstrap", "compare", "stack", "summarise"]


def bootstrap(
    kind: str,
    metric: str,
    true: list[np.ndarray] | np.ndarray,
    predicted: list[list[np.ndarray]] | list[np.ndarray],
    members: np.ndarray | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Sample]:
    """Values of a metric, and those on the same resampled test sequences, for several models.

    Parameters
    ----------
    kind
        ``"classes"``, ``"numbers"``, or ``"means"`` of values measured one by one.
    metric
        ``"accuracy"`` or ``"macro_f1"`` of classes, ``"spearman"`` of numbers, any name of means.
    true
        One array of class numbers for each test sequence (one element each, or one a residue);
        or one array of numbers, one a sequence. Means need no truth.
    predicted
        The same for each model; of means the values, NaN where there is none.
    members
        Where rows are pairs of sequences, the numbers of the two, shape ``(rows, 2)``: sequences
        are drawn, and a pair counts as often as the product of its two.
    resamples, seed
        Of the bootstrap over test sequences.

    Returns
    -------
    list of Sample
        One for each model, with a single value and ``(1, resamples)`` draws.
    """
    n = len(true)
    counts = _draw_counts(n, resamples, seed, members)
    if kind == "means":
        found = [_mean(np.asarray(one, float), counts) for one in predicted]
    elif kind == "numbers":
        evaluate = _spearman_of(np.asarray(true, float))
        found = [evaluate(np.asarray(one, float), counts) for one in predicted]
    else:
        of = _accuracy if metric == "accuracy" else _macro_f1
        # Of some sequences no residue has a class.
        parts = [*true, *(part for one in predicted for part in one)]
        classes = 1 + max(int(part.max(initial=-1)) for part in parts)
        found = [
            of(_count_cells(list(true), list(one), classes), counts, classes) for one in predicted
        ]
    return [Sample(values[:1], values[None, 1:]) for values in found]


def stack(samples: Sequence[Sample]) -> Sample:
    """Gather the seeds of one arm."""
    return Sample(
        np.concatenate([one.values for one in samples]),
        np.concatenate([one.drawn for one in samples]),
    )


def adjust_holm(ps: Sequence[float | None]) -> list[float]:
    """Adjust p-values for their number (Holm 1979); undefined ones become 1 and do not count."""
    known = [number for number, p in enumerate(ps) if p is not None]
    adjusted, highest = [1.0] * len(ps), 0.0
    for rank, number in enumerate(sorted(known, key=lambda n: ps[n] or 0.0)):
        highest = max(highest, min(1.0, (len(known) - rank) * (ps[number] or 0.0)))
        adjusted[number] = highest
    return adjusted


def _draw_counts(n: int, resamples: int, seed: int, members: np.ndarray | None) -> np.ndarray:
    """How often each row is drawn, shape ``(1 + resamples, n)``; once each at first."""
    random = np.random.default_rng(seed)
    units = n if members is None else 1 + int(members.max())
    counts = np.ones((1 + resamples, n), np.int64)
    for row in counts[1:]:
        drawn = np.bincount(random.integers(units, size=units), minlength=units)
        if members is None:
            row[:] = drawn
        else:
            a, b = members.T
            row[:] = np.where(a == b, drawn[a], drawn[a] * drawn[b])
    return counts


def _mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    return np.asarray((counts[:, known] @ values[known]) / counts[:, known].sum(1))


def _count_cells(true: list[np.ndarray], predicted: list[np.ndarray], classes: int) -> np.ndarray:
    """Confusion counts of each sequence, shape ``(n, classes^2)``."""
    rows = np.repeat(np.arange(len(true)), [len(part) for part in true])
    cells = np.concatenate(true) * classes + np.concatenate(predicted)
    flat = np.bincount(rows * classes**2 + cells, minlength=len(true) * classes**2)
    return flat.reshape(len(true), classes**2)


def _accuracy(cells: np.ndarray, counts: np.ndarray, classes: int) -> np.ndarray:
    right = cells[:, :: classes + 1].sum(1)
    return np.asarray((counts @ right) / (counts @ cells.sum(1)))


def _macro_f1(cells: np.ndarray, counts: np.ndarray, classes: int) -> np.ndarray:
    confusion = (counts.astype(np.float64) @ cells).reshape(-1, classes, classes)
    hits = np.einsum("bii->bi", confusion)
    occurring = confusion.sum(1) + confusion.sum(2)
    f1 = np.divide(2 * hits, occurring, out=np.zeros_like(hits), where=occurring > 0)
    return np.asarray(f1.sum(1) / (occurring > 0).sum(1))


def _spearman_of(true: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Rank correlation with `true` on resamples; the ranks of `true` are found once."""
    kept: list[tuple[np.ndarray, np.ndarray]] = []

    def evaluate(predicted: np.ndarray, counts: np.ndarray) -> np.ndarray:
        if not kept:
            drawn = [np.repeat(np.arange(len(true)), row) for row in counts]
            kept.extend((rows, _standardise(stats.rankdata(true[rows]))) for rows in drawn)
        return np.array(
            [np.mean(y * _standardise(stats.rankdata(predicted[rows]))) for rows, y in kept]
        )

    return evaluate


def _standardise(ranks: np.ndarray) -> np.ndarray:
    """Subtract the mean and divide by the spread; NaN for constants."""
    spread = ranks.std()
    return np.asarray((ranks - ranks.mean()) / (spread if spread > 0 else np.nan))
