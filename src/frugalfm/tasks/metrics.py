"""Metrics of predictions, with percentile bootstrap intervals over sequences (Efron 1979).

Resamples are rows of weights: how often each test sequence was drawn. Every metric is a function
of weighted sums, so that a thousand resamples are a few matrix products. With several items a
sequence (residues), whole sequences are drawn, since residues of one are no independent evidence.
Pairs that share sequences are no independent evidence either: sequences are drawn, and a pair
weighs as often as one of its sequences times as often as the other (the pigeonhole bootstrap, Owen
2007), which errs on the side of wide intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
from scipy import sparse

__all__ = [
    "Estimate",
    "bootstrap",
    "correlate_ranks",
    "sample_classes",
    "score_classes",
    "score_numbers",
    "score_ranking",
    "to_json",
]

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
    members: np.ndarray | None = None,
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
    members
        If items are pairs that share sequences: the numbers of the two, from 0, shape
        ``(items, 2)``; sequences are drawn then.
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
    groups = np.arange(len(true)) if groups is None else np.asarray(groups, np.int64)
    evaluate, n = _measure_classes(true, predicted, groups)
    return bootstrap(evaluate, n, resamples, level, seed, members)


def sample_classes(
    true: np.ndarray, predicted: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> _Metrics:
    """Draw the metrics of :func:`score_classes` on resampled rows.

    Returns
    -------
    dict
        Each metric, shape ``(resamples,)``. The rows that a resample holds depend on their number,
        `resamples` and `seed` alone, so that predictions for the same rows can be compared draw by
        draw.
    """
    evaluate, n = _measure_classes(true, predicted, np.arange(len(true)))
    return _draw(evaluate, n, resamples, seed)


def _measure_classes(
    true: np.ndarray, predicted: np.ndarray, groups: np.ndarray
) -> tuple[Callable[[np.ndarray], _Metrics], int]:
    """Metrics as a function of weights of the sequences, and how many of these there are."""
    true, predicted = np.asarray(true, np.int64), np.asarray(predicted, np.int64)
    classes = 1 + int(max(true.max(), predicted.max()))
    cells, cell_of = np.unique(true * classes + predicted, return_inverse=True)
    ones = np.ones(len(true))
    # One row a sequence, one column a pair (true, predicted) that occurs; repeats are summed.
    counts = sparse.csr_array((ones, (groups, cell_of)), shape=(1 + int(groups.max()), len(cells)))
    transposed = counts.T.tocsr()

    def evaluate(weights: np.ndarray) -> _Metrics:
        return _from_cells((transposed @ weights.T).T, cells // classes, cells % classes, classes)

    return evaluate, counts.shape[0]


def score_numbers(
    true: np.ndarray,
    predicted: np.ndarray,
    *,
    members: np.ndarray | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Spearman's and Pearson's correlation, coefficient of determination, and mean errors.

    Ties share their mean rank. A correlation with a constant is NaN.

    Parameters
    ----------
    true, predicted
        Shape ``(items,)``, finite; one item a sequence, or a pair of them.
    members, resamples, level, seed
        As in :func:`score_classes`.

    Returns
    -------
    dict
        ``spearman``, ``pearson``, ``r2``, ``mse`` (in squared units of the label), ``rmse`` and
        ``mae`` (in its units).
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
            "rmse": np.sqrt(mse),
            "mae": weights @ np.abs(true - predicted) / total,
        }

    return bootstrap(evaluate, len(true), resamples, level, seed, members)


def score_ranking(
    true: np.ndarray,
    scores: np.ndarray,
    *,
    members: np.ndarray | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Area under the ROC curve and average precision of scores for yes or no.

    Parameters
    ----------
    true
        0 or 1, shape ``(items,)``, or ``(items, labels)`` for several decisions an item, of which
        the mean over the labels that occur with both values is given.
    scores
        Higher for likelier ones; of the same shape.
    members, resamples, level, seed
        As in :func:`score_classes`.

    Returns
    -------
    dict
        ``auroc`` (ties count half) and ``auprc`` (average precision, as in scikit-learn).
    """
    true, scores = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (true, scores))

    def evaluate(weights: np.ndarray) -> _Metrics:
        columns = zip(true.T, scores.T, strict=True)
        found = np.stack([_rank_apart(y, x, weights) for y, x in columns])
        known = ~np.isnan(found)
        total, count = np.where(known, found, 0).sum(0), known.sum(0)
        means = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
        return {"auroc": means[0], "auprc": means[1]}

    return bootstrap(evaluate, len(true), resamples, level, seed, members)


def correlate_ranks(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation, ties sharing their mean rank; NaN with a constant."""
    ones = np.ones((1, len(x)))
    return float(_correlate(_rank(x, ones), _rank(y, ones), ones)[0])


def to_json(estimates: dict[str, Estimate]) -> dict[str, dict[str, float | None]]:
    """Make estimates fit for JSON: NaN becomes None."""
    return {
        name: {key: None if np.isnan(x) else float(x) for key, x in asdict(estimate).items()}
        for name, estimate in estimates.items()
    }


def bootstrap(
    evaluate: Callable[[np.ndarray], _Metrics],
    n: int,
    resamples: int,
    level: float,
    seed: int,
    members: np.ndarray | None = None,
) -> dict[str, Estimate]:
    """Estimate metrics and their intervals.

    Parameters
    ----------
    evaluate
        From weights of the `n` items, shape ``(some, n)``, to each metric, shape ``(some,)``.
    n, resamples, level, seed, members
        As in :func:`score_classes`.
    """
    values = {name: float(found[0]) for name, found in evaluate(np.ones((1, n))).items()}
    drawn = _draw(evaluate, n, resamples, seed, members)
    tails = ((1 - level) / 2, (1 + level) / 2)
    estimates = {}
    for name, value in values.items():
        found = drawn.get(name, np.empty(0))
        found = found[~np.isnan(found)]  # a resample may hold one value only
        low, high = np.quantile(found, tails) if len(found) else (np.nan, np.nan)
        estimates[name] = Estimate(value, float(low), float(high))
    return estimates


def _draw(
    evaluate: Callable[[np.ndarray], _Metrics],
    n: int,
    resamples: int,
    seed: int,
    members: np.ndarray | None = None,
) -> _Metrics:
    """Metrics on resampled items, shape ``(resamples,)``; nothing without resamples."""
    drawn: dict[str, list[np.ndarray]] = {}
    for weights in _resample(n, resamples, seed, members):
        for name, found in evaluate(weights).items():
            drawn.setdefault(name, []).append(found)
    return {name: np.concatenate(parts) for name, parts in drawn.items()}


def _resample(
    n: int, resamples: int, seed: int, members: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Yield weights, shape ``(some, n)``: each row sums to `n`, unless there are members."""
    size = max(1, _CHUNK // n)
    if members is not None:
        n = 1 + int(members.max())
        size = min(size, max(1, _CHUNK // n))
    random = np.random.default_rng(seed)
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        drawn = random.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)
        if members is not None:
            a, b = members.T
            weights = np.where(a == b, weights[:, a], weights[:, a] * weights[:, b])
            weights = weights[weights.any(1)]  # of few pairs, none may have been drawn whole
        yield weights.astype(np.float64)


def _from_cells(
    weights: np.ndarray, true: np.ndarray, predicted: np.ndarray, classes: int
) -> _Metrics:
    """Metrics of weighted confusion counts, shape ``(resamples, cells)``; NaN of none at all.

    A resample has none if no residue of the sequences that were drawn has a label that counts.
    """
    n = weights.sum(1)
    drawn = n > 0
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
    nothing = np.full_like(n, np.nan)
    return {
        "accuracy": np.divide(correct, n, out=nothing.copy(), where=drawn),
        "macro_f1": np.divide(f1.sum(1), present.sum(1), out=nothing, where=drawn),
        "mcc": np.where(drawn, mcc, np.nan),
    }


def _rank_apart(true: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC and average precision of each row of weights, shape ``(2, rows)``; NaN if one class."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    yes, no = (
        np.add.reduceat((weights * side)[:, order], starts, axis=1) for side in (true, 1 - true)
    )
    # Of each distinct score: the weight at and above it.
    yes_up, no_up = (np.cumsum(side[:, ::-1], axis=1)[:, ::-1] for side in (yes, no))
    all_yes, all_no = yes_up[:, 0], no_up[:, 0]
    below = all_no[:, None] - no_up
    with np.errstate(divide="ignore", invalid="ignore"):
        auroc = (yes * (below + no / 2)).sum(1) / (all_yes * all_no)
        precision = np.where(yes > 0, yes_up / (yes_up + no_up), 0)
        auprc = (yes * precision).sum(1) / all_yes
    return np.where((all_yes > 0) & (all_no > 0), np.stack([auroc, auprc]), np.nan)


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
