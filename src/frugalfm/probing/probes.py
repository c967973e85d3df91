"""Linear probes: logistic and ridge regression on standardised features, one per setting.

Fitting is scikit-learn's. The standardisation is folded into the weights afterwards, so that a
fitted probe is one matrix and one bias on the raw embeddings.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

__all__ = [
    "ALPHAS",
    "CS",
    "Probe",
    "choose",
    "fit_labels",
    "fit_logistic",
    "fit_ridge",
    "fit_sparse",
]

CS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Inverse strengths of logistic regression's penalty, strongest first."""
ALPHAS = (1e5, 1e4, 1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2)
"""Strengths of ridge regression's penalty, strongest first."""

# A largest gradient of the mean loss; tighter ones change no metric that a dev set can tell.
_TOLERANCE = 1e-3
_ITERATIONS = 1000
_CERTAIN = 30.0  # log odds


@dataclass(frozen=True)
class Probe:
    """A fitted linear probe.

    Attributes
    ----------
    weights, bias
        float64, shape ``(outputs, width)`` and ``(outputs,)``, for raw embeddings: one output a
        class, or one for regression.
    setting
        Of the penalty.
    converged
        Whether the solver reached its tolerance.
    """

    weights: np.ndarray
    bias: np.ndarray
    setting: float
    converged: bool = True

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """Logits or values, shape ``(items, outputs)``."""
        # In single precision: features are, and residues are many.
        return np.asarray(x @ self.weights.T.astype(np.float32) + self.bias)

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Softmax of the logits."""
        logits = self.outputs(x)
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(odds / odds.sum(1, keepdims=True))


def fit_logistic(
    x: np.ndarray, y: np.ndarray, classes: int, cs: Sequence[float] = CS
) -> list[Probe]:
    """Multinomial logistic regression (L-BFGS), one probe for each setting.

    Parameters
    ----------
    x
        Embeddings, shape ``(items, width)``.
    y
        Class numbers, at least two of them, shape ``(items,)``.
    classes
        Number of classes; those that do not occur in `y` are never predicted.
    cs
        Inverse strengths of the L2 penalty.
    """
    mean, scale = _measure(x)
    standard = (x.astype(np.float64) - mean) / scale
    probes = []
    for c in cs:
        # A warm start would stop at once under a weak penalty, as the one before it has.
        model = LogisticRegression(C=c, solver="lbfgs", max_iter=_ITERATIONS, tol=_TOLERANCE)
        # Threads contend with torch's for matrices this small; one also adds in one order.
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", ConvergenceWarning)  # reported by `converged`
            model.fit(standard, y)
        coefficients, intercept = model.coef_, model.intercept_
        if len(model.classes_) == 2:  # scikit-learn keeps the second class's logit only
            coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
            intercept = np.concatenate([np.zeros_like(intercept), intercept])
        weights = np.zeros((classes, x.shape[1]))
        bias = np.full(classes, -1e30)
        weights[model.classes_] = coefficients / scale
        bias[model.classes_] = intercept - (coefficients / scale) @ mean
        probes.append(Probe(weights, bias, c, bool(model.n_iter_.max() < _ITERATIONS)))
    return probes


def fit_labels(x: np.ndarray, flags: np.ndarray, cs: Sequence[float] = CS) -> list[Probe]:
    """Logistic regression of several labels a row, one probe a setting.

    Parameters
    ----------
    x
        Features, shape ``(items, width)``.
    flags
        0 or 1, shape ``(items, labels)``.
    cs
        Inverse strengths of the penalty, for all labels the same.

    Returns
    -------
    list of Probe
        With an output a label: the log odds of 1, which are 30 or -30 whatever the features where
        all rows have the label, or none.
    """
    columns = [_fit_flag(x, own, cs) for own in flags.T]
    return [
        Probe(
            np.concatenate([probe.weights for probe in probes]),
            np.concatenate([probe.bias for probe in probes]),
            probes[0].setting,
            all(probe.converged for probe in probes),
        )
        for probes in zip(*columns, strict=True)
    ]


def _fit_flag(x: np.ndarray, flags: np.ndarray, cs: Sequence[float]) -> list[Probe]:
    """One label, as log odds."""
    if flags.min() == flags.max():
        always = np.array([_CERTAIN if flags[0] else -_CERTAIN])
        return [Probe(np.zeros((1, x.shape[1])), always, c) for c in cs]
    return [
        replace(probe, weights=np.diff(probe.weights, axis=0), bias=np.diff(probe.bias))
        for probe in fit_logistic(x, flags, 2, cs)
    ]


def fit_sparse(x: np.ndarray, y: np.ndarray, cs: Sequence[float] = CS) -> list[Probe]:
    """Logistic regression of yes or no with an L1 penalty (liblinear), one probe a setting.

    Parameters
    ----------
    x
        Features, shape ``(items, width)``.
    y
        0 or 1, both of them, shape ``(items,)``.
    cs
        Inverse strengths of the L1 penalty.

    Returns
    -------
    list of Probe
        With one output: the log odds of 1.
    """
    mean, scale = _measure(x)
    standard = (x.astype(np.float64) - mean) / scale
    probes = []
    for c in cs:
        model = LogisticRegression(
            C=c,
            l1_ratio=1,  # since scikit-learn 1.8; older ones would take L2
            solver="liblinear",
            max_iter=_ITERATIONS,
            tol=_TOLERANCE,
            random_state=0,
        )
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(standard, y)
        weights = model.coef_ / scale
        bias = model.intercept_ - weights @ mean
        probes.append(Probe(weights, bias, c, bool(model.n_iter_.max() < _ITERATIONS)))
    return probes


def fit_ridge(x: np.ndarray, y: np.ndarray, alphas: Sequence[float] = ALPHAS) -> list[Probe]:
    """Ridge regression, one probe for each setting.

    Parameters
    ----------
    x
        Embeddings, shape ``(items, width)``.
    y
        Values, shape ``(items,)``.
    alphas
        Strengths of the L2 penalty.
    """
    mean, scale = _measure(x)
    standard = (x.astype(np.float64) - mean) / scale
    probes = []
    for alpha in alphas:
        with threadpool_limits(1):
            model = Ridge(alpha=alpha).fit(standard, y)
        weights = (model.coef_ / scale)[None, :]
        bias = np.atleast_1d(model.intercept_ - weights @ mean)
        probes.append(Probe(weights, bias, alpha))
    return probes


def choose(values: Sequence[float]) -> int:
    """Index of the largest value, the first of equals; NaN is the smallest."""
    return int(np.argmax(np.nan_to_num(np.asarray(values, dtype=float), nan=-np.inf)))


def _measure(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature; 1 for a constant one."""
    mean = x.mean(0, dtype=np.float64)
    scale = x.std(0, dtype=np.float64)
    constant = scale <= 1e-6 * (1e-6 + np.abs(mean))
    return mean, np.where(constant, 1, scale)
