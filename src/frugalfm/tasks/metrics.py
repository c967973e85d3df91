"""Metrics of predictions, with percentile bootstrap intervals over sequences (Efron 1979).

Resamples are rows of weights: how often each test sequence was drawn. Every metric is a function
of weighted sums, so that a thousand resamples are a few matrix products. With several items a
sequence (residues), whole sequences are drawn, since residues of one are no independent evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
from scipy import sparse

__all__ = ["Estimate", "score_classes", "score_numbers", "to_json"]

_CHUNK = 1 << 22  # weights held at a time
_ROUNDING = 1e-13  # of the mean: what is left of a constant after its mean is subtracted
_Metrics = dict[str, np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A metric and the ends of its confidence interval; NaN where it is undefined."""

    value: float
    low: float
    high: float


def score_classes(
    true: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Accuracy, macro F1 and multi-class Matthews correlation.

    Macro F1 is the mean over the classes that occur among the true or predicted ones, as in
    scikit-learn. The multi-class correlation is Gorodkin's (2004), 0 where undefined.

    Parameters
    ----------
    true, predicted
        Class numbers from 0, shape ``(items,)``.
    groups
        Number of the sequence that each item belongs to, from 0; each item is its own when None.
    resamples
        Bootstrap resamples; with 0 the intervals are NaN.
    level
        Coverage of the intervals.
    seed
        Determines the resamples.

    Returns
    -------
    dict
        ``accuracy``, ``macro_f1`` and ``mcc``.
    """
    true, predicted = np.asarray(true, np.int64), np.asarray(predicted, np.int64)
    groups = np.arange(len(true)) if groups is None else np.asarray(groups, np.int64)
    classes = 1 + int(max(true.max(), predicted.max()))
    cells, cell_of = np.unique(true * classes + predicted, return_inverse=True)
    ones = np.ones(len(true))
    # One row a sequence, one column a pair (true, predicted) that occurs; repeats are summed.
    counts = sparse.csr_array((ones, (groups, cell_of)), shape=(1 + int(groups.max()), len(cells)))
    transposed = counts.T.tocsr()

    def evaluate(weights: np.ndarray) -> _Metrics:
        return _from_cells((transposed @ weights.T).T, cells // classes, cells % classes, classes)

    return _bootstrap(evaluate, counts.shape[0], resamples, level, seed)


def score_numbers(
    true: np.ndarray,
    predicted: np.ndarray,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Spearman's and Pearson's correlation, coefficient of determination, mean squared error.

    Ties share their mean rank. A correlation with a constant is NaN.

    Parameters
    ----------
    true, predicted
        Shape ``(items,)``, finite; one item a sequence.
    resamples, level, seed
        As in :func:`score_classes`.

    Returns
    -------
    dict
        ``spearman``, ``pearson``, ``r2`` and ``mse`` (in squared units of the label).
    """
    true, predicted = np.asarray(true, np.float64), np.asarray(predicted, np.float64)

    def evaluate(weights: np.ndarray) -> _Metrics:
        total = weights.sum(1)
        variance = (weights * _centre(true[None], weights) ** 2).sum(1) / total
        mse = weights @ (true - predicted) ** 2 / total
        with np.errstate(divide="ignore", invalid="ignore"):
            r2 = np.where(variance > 0, 1 - mse / variance, np.nan)
        ranks = _rank(true, weights), _rank(predicted, weights)
        return {
            "spearman": _correlate(*ranks, weights),
            "pearson": _correlate(true[None], predicted[None], weights),
            "r2": r2,
            "mse": mse,
        }

    return _bootstrap(evaluate, len(true), resamples, level, seed)


def to_json(estimates: dict[str, Estimate]) -> dict[str, dict[str, float | None]]:
    """Make estimates fit for JSON: NaN becomes None."""
    return {
        name: {key: None if np.isnan(x) else float(x) for key, x in asdict(estimate).items()}
        for name, estimate in estimates.items()
    }


def _bootstrap(
    evaluate: Callable[[np.ndarray], _Metrics], n: int, resamples: int, level: float, seed: int
) -> dict[str, Estimate]:
    values = {name: float(found[0]) for name, found in evaluate(np.ones((1, n))).items()}
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in values}
    for weights in _resample(n, resamples, seed):
        for name, found in evaluate(weights).items():
            drawn[name].append(found)
    tails = ((1 - level) / 2, (1 + level) / 2)
    estimates = {}
    for name, value in values.items():
        found = np.concatenate([*drawn[name], np.empty(0)])
        found = found[~np.isnan(found)]  # a resample may hold one value only
        low, high = np.quantile(found, tails) if len(found) else (np.nan, np.nan)
        estimates[name] = Estimate(value, float(low), float(high))
    return estimates


def _resample(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield weights, shape ``(some, n)``: each row sums to `n`."""
    random = np.random.default_rng(seed)
    size = max(1, _CHUNK // n)
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        drawn = random.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)


def _from_cells(
    weights: np.ndarray, true: np.ndarray, predicted: np.ndarray, classes: int
) -> _Metrics:
    """Metrics of weighted confusion counts, shape ``(resamples, cells)``."""
    n = weights.sum(1)
    of_true = weights @ np.eye(classes)[true]
    of_predicted = weights @ np.eye(classes)[predicted]
    right = true == predicted
    hits = weights[:, right] @ np.eye(classes)[true[right]]
    correct = hits.sum(1)
    occurring = of_true + of_predicted
    present = occurring > 0
    f1 = np.divide(2 * hits, occurring, out=np.zeros_like(hits), where=present)
    covariance = correct * n - (of_true * of_predicted).sum(1)
    spread = np.sqrt((n**2 - (of_true**2).sum(1)) * (n**2 - (of_predicted**2).sum(1)))
    mcc = np.divide(covariance, spread, out=np.zeros_like(n), where=spread > 0)
    return {"accuracy": correct / n, "macro_f1": f1.sum(1) / present.sum(1), "mcc": mcc}


def _rank(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean rank of each value in a sample that holds it `weights` times, shape as `weights`."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    starts = np.cumsum(sizes) - sizes
    sums = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks = np.cumsum(sums, axis=1) - (sums - 1) / 2
    return np.asarray(ranks[:, group])


def _correlate(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted Pearson correlation of each row; NaN where one side is constant."""
    x, y = _centre(x, weights), _centre(y, weights)
    spread = np.sqrt((weights * x**2).sum(1) * (weights * y**2).sum(1))
    covariance = (weights * x * y).sum(1)
    undefined = np.full_like(spread, np.nan)
    return np.asarray(np.divide(covariance, spread, out=undefined, where=spread > 0))


def _centre(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Subtract each row's weighted mean; exactly zero if the row is constant but for rounding."""
    mean = (weights * x).sum(1, keepdims=True) / weights.sum(1, keepdims=True)
    centred = np.where(weights > 0, x - mean, 0)
    largest = np.abs(centred).max(1, keepdims=True)
    return np.where(largest > _ROUNDING * np.abs(mean), centred, 0)
