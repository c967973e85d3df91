"""Probes equal their definition, whatever the scale of the features."""

import numpy as np
import pytest

from frugalfm.probing import probes
from frugalfm.probing.probes import choose, fit_labels, fit_logistic, fit_ridge, fit_sparse


@pytest.fixture
def features():
    random = np.random.default_rng(0)
    scale = np.array([1e-3, 1, 50, 1, 1])
    x = random.normal(size=(300, 5)) * scale + np.array([3, 0, 100, 0, 7])
    x[:, 4] = 7  # a constant feature
    return x.astype(np.float32)


def test_ridge_equals_the_normal_equations(features):
    y = features[:, 1].astype(float) + 0.1 * features[:, 2]
    x = features.astype(np.float64)
    scale = np.where(x.std(0) > 0, x.std(0), 1)
    z = (x - x.mean(0)) / scale
    for probe in fit_ridge(features, y, [100.0, 0.5]):
        w = np.linalg.solve(z.T @ z + probe.setting * np.eye(5), z.T @ (y - y.mean()))
        expected = z @ w + y.mean()
        np.testing.assert_allclose(probe.outputs(features)[:, 0], expected, atol=2e-4)


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_is_a_minimum_of_its_loss(features, classes):
    """The gradient of the multinomial loss, written out, is nearly zero."""
    random = np.random.default_rng(1)
    y = np.clip((features[:, 1] + random.normal(size=300) + 1).astype(int), 0, classes - 1)
    x = features.astype(np.float64)
    scale = np.where(x.std(0) > 0, x.std(0), 1)
    z = (x - x.mean(0)) / scale
    for probe in fit_logistic(features, y, classes, [1.0, 0.01]):
        assert probe.converged
        p = probe.probabilities(features)
        assert p.shape == (300, classes)
        np.testing.assert_allclose(p.sum(1), 1)
        slope = (p - np.eye(classes)[y]).T @ z / 300
        w = probe.weights * scale
        if classes == 2:  # the one vector of the binary model is the difference of two
            slope, w = slope[1:], w[1:] - w[:1]
        np.testing.assert_allclose(slope + w / (probe.setting * 300), 0, atol=3e-3)


def test_absent_classes_are_never_predicted(features):
    y = np.where(features[:, 1] > 0, 3, 1)
    probe = fit_logistic(features, y, 5, [1.0])[0]
    p = probe.probabilities(features)
    assert (p[:, [0, 2, 4]] == 0).all()
    assert (p.argmax(1) == y).mean() > 0.95


def test_a_solver_that_stops_early_says_so(features, monkeypatch):
    monkeypatch.setattr(probes, "_ITERATIONS", 2)
    y = (features[:, 1] > 0).astype(int)
    assert not fit_logistic(features, y, 2, [100.0])[0].converged


def test_choose_prefers_the_strongest_of_equals_and_never_nan():
    assert choose([0.2, 0.5, 0.5]) == 1
    assert choose([np.nan, -0.1, np.nan]) == 1
    assert choose([np.nan, np.nan]) == 0


def test_sparse_is_a_minimum_of_its_loss(features):
    """Subgradients of mean loss + |w| / (C n): as steep as the penalty where w is not 0."""
    random = np.random.default_rng(1)
    y = (features[:, 1] + 0.5 * random.normal(size=300) > 0).astype(int)
    x = features.astype(np.float64)
    scale = np.where(x.std(0) > 0, x.std(0), 1)
    z = (x - x.mean(0)) / scale
    for c in (0.05, 1.0):
        probe = fit_sparse(features, y, [c])[0]
        assert probe.converged
        w = probe.weights[0] * scale
        p = 1 / (1 + np.exp(-(x @ probe.weights[0] + probe.bias[0])))
        slope = z.T @ (p - y)
        there = np.abs(w) > 1e-8
        assert there.any()
        np.testing.assert_allclose(slope[there], -np.sign(w[there]) / c, rtol=0.02, atol=0.5)
        assert (np.abs(slope[~there]) <= 1.02 / c + 0.5).all()
    assert (fit_sparse(features, y, [0.01])[0].weights == 0).sum() > 2


def test_each_label_is_a_regression_of_its_own():
    """Against two classes a label; a label that all rows have, or none, is certain."""
    random = np.random.default_rng(0)
    x = random.standard_normal((60, 5))
    flags = np.stack([x[:, 0] > 0, x[:, 1] > 1, np.ones(60), np.zeros(60)], 1).astype(np.int64)
    for probe, one, other in zip(
        fit_labels(x, flags), fit_logistic(x, flags[:, 0], 2), fit_logistic(x, flags[:, 1], 2),
        strict=True,
    ):  # fmt: skip
        outputs = probe.outputs(x)
        for column, alone in enumerate((one, other)):
            expected = np.diff(alone.outputs(x), axis=1)[:, 0]
            np.testing.assert_allclose(outputs[:, column], expected, rtol=1e-9, atol=1e-9)
        assert (outputs[:, 2] == 30).all()
        assert (outputs[:, 3] == -30).all()
