"""Intervals and tests over seeds and test sequences.

A measured value varies for two reasons: other seeds give other coresets, weights and batches, and
another test set would hold other sequences. With `n` seeds on one test set, the variance of their
mean is taken as ``s^2 / n`` of the seeds plus that of the mean when test sequences are drawn
again (bootstrap; the same draws for every arm and seed, so that differences are paired). The
degrees of freedom of the sum are Welch-Satterthwaite's (1946), with those of the bootstrap
infinite: with no spread of the test set this is Student's interval, with no spread of the seeds
the normal one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

__all__ = ["Interval", "Sample", "compare", "summarise"]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds, its interval, and whether it is zero.

    Attributes
    ----------
    value, low, high
        The mean and the ends of its interval.
    p
        Two-sided, of a mean of zero.
    seeds
        How many there are.
    se_seeds, se_test
        Standard errors due to seeds and due to the sequences of the test set.
    """

    value: float
    low: float
    high: float
    p: float
    seeds: int
    se_seeds: float
    se_test: float

    def to_json(self) -> dict[str, float | None]:
        """Fit for JSON: NaN becomes None."""
        return {key: None if np.isnan(value) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Sample:
    """One arm's values of a metric.

    Attributes
    ----------
    values
        One for each seed, shape ``(seeds,)``.
    drawn
        The same on resampled test sequences, shape ``(seeds, resamples)``; the resamples are the
        same for all seeds and arms.
    """

    values: np.ndarray
    drawn: np.ndarray


def summarise(sample: Sample, level: float = 0.95) -> Interval:
    """Mean over the seeds; with a single seed, the interval is that of the test set alone."""
    n = len(sample.values)
    value = float(np.mean(sample.values))
    of_seeds = float(np.std(sample.values, ddof=1) / np.sqrt(n)) if n > 1 else 0.0
    means = sample.drawn.mean(0)
    of_test = float(np.nanstd(means, ddof=1)) if means.size > 1 else 0.0
    error = float(np.hypot(of_seeds, of_test))
    if error == 0 or np.isnan(error):
        p = np.nan if value == 0 or np.isnan(error) else 0.0
        return Interval(value, value, value, p, n, of_seeds, of_test)
    freedom = (n - 1) * (error / of_seeds) ** 4 if of_seeds > 0 else np.inf
    spread = error * float(stats.t.ppf((1 + level) / 2, freedom))
    p = 2 * float(stats.t.sf(abs(value) / error, freedom))
    return Interval(value, value - spread, value + spread, p, n, of_seeds, of_test)


def compare(a: Sample, b: Sample, level: float = 0.95) -> Interval:
    """Mean of `a - b`, paired by seed and by resample of the test set."""
    return summarise(Sample(a.values - b.values, a.drawn - b.drawn), level)
