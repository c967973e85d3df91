"""Metrics equal scikit-learn's and scipy's; intervals cover what they should."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as oracle

from frugalfm.tasks import score_classes, score_numbers
from frugalfm.tasks.metrics import _from_cells, _resample, sample_classes, to_json


@pytest.mark.filterwarnings("ignore:A single label")
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_class_metrics_equal_sklearn(pairs):
    true, predicted = np.array(pairs).T
    found = score_classes(true, predicted, resamples=0)
    assert found["accuracy"].value == pytest.approx(oracle.accuracy_score(true, predicted))
    f1 = oracle.f1_score(true, predicted, average="macro", zero_division=0)
    assert found["macro_f1"].value == pytest.approx(f1)
    mcc = oracle.matthews_corrcoef(true, predicted)
    assert found["mcc"].value == pytest.approx(mcc, abs=1e-12)


@given(
    st.lists(
        st.tuples(st.integers(-3, 3), st.floats(-5, 5).map(lambda x: round(x, 1))),
        min_size=2,
        max_size=40,
    )
)
def test_number_metrics_equal_scipy(pairs):
    true, predicted = np.array(pairs, dtype=float).T
    found = score_numbers(true, predicted, resamples=0)
    assert found["mse"].value == pytest.approx(oracle.mean_squared_error(true, predicted))
    if len(set(true)) == 1 or len(set(predicted)) == 1:
        assert np.isnan(found["spearman"].value)
        assert np.isnan(found["pearson"].value)
    else:
        assert found["spearman"].value == pytest.approx(stats.spearmanr(true, predicted)[0])
        assert found["pearson"].value == pytest.approx(stats.pearsonr(true, predicted)[0])
    if len(set(true)) > 1:
        assert found["r2"].value == pytest.approx(oracle.r2_score(true, predicted))
    else:
        assert np.isnan(found["r2"].value)


def test_every_resample_equals_the_metric_of_the_drawn_sequences():
    """Intervals of both kinds against a loop that really draws whole sequences."""
    random = np.random.default_rng(1)
    lengths = random.integers(1, 9, size=40)
    groups = np.repeat(np.arange(40), lengths)
    true = random.integers(3, size=len(groups))
    predicted = np.where(random.random(len(groups)) < 0.6, true, random.integers(3))
    scores = {"accuracy": [], "macro_f1": [], "mcc": []}
    for weights in np.concatenate(list(_resample(40, 200, seed=7))):
        index = np.concatenate([np.tile(np.flatnonzero(groups == g), int(w)) for g, w in
                                enumerate(weights) if w])  # fmt: skip
        t, p = true[index], predicted[index]
        scores["accuracy"].append(oracle.accuracy_score(t, p))
        scores["macro_f1"].append(oracle.f1_score(t, p, average="macro"))
        scores["mcc"].append(oracle.matthews_corrcoef(t, p))
    found = score_classes(true, predicted, groups, resamples=200, seed=7)
    for name, values in scores.items():
        expected = np.quantile(values, [0.025, 0.975])
        np.testing.assert_allclose([found[name].low, found[name].high], expected, rtol=1e-12)


def test_every_resample_of_numbers_equals_scipy():
    random = np.random.default_rng(2)
    true = random.normal(size=50).round(1)
    predicted = (true + random.normal(size=50)).round(1)
    index = [np.repeat(np.arange(50), w.astype(int)) for w in next(_resample(50, 100, seed=3))]
    expected = {
        "spearman": [stats.spearmanr(true[i], predicted[i])[0] for i in index],
        "pearson": [stats.pearsonr(true[i], predicted[i])[0] for i in index],
        "r2": [oracle.r2_score(true[i], predicted[i]) for i in index],
        "mse": [oracle.mean_squared_error(true[i], predicted[i]) for i in index],
    }
    found = score_numbers(true, predicted, resamples=100, seed=3)
    for name, values in expected.items():
        ends = np.quantile(values, [0.025, 0.975])
        np.testing.assert_allclose([found[name].low, found[name].high], ends, rtol=1e-9)


def test_resamples_are_drawn_with_replacement():
    weights = np.concatenate(list(_resample(30, 4000, seed=0)))
    assert weights.shape == (4000, 30)
    assert (weights.sum(1) == 30).all()
    assert abs((weights == 0).mean() - (1 - 1 / 30) ** 30) < 0.01


@pytest.mark.parametrize("per_sequence", [1, 8])
def test_intervals_cover_the_truth(per_sequence):
    """95 % intervals of an accuracy of 0.7; residues of a sequence are right or wrong together."""
    random = np.random.default_rng(5)
    groups = np.repeat(np.arange(150), per_sequence)
    covered = 0
    for trial in range(300):
        right = (random.random(150) < 0.7)[groups]
        found = score_classes(right * 0, 1 - right, groups, resamples=300, seed=trial)["accuracy"]
        covered += found.low <= 0.7 <= found.high
    assert 0.91 <= covered / 300 <= 0.98


def test_intervals_of_spearman_cover_the_truth():
    random = np.random.default_rng(6)
    truth = 6 / np.pi * np.arcsin(0.6 / 2)  # of a bivariate normal with correlation 0.6
    covered = 0
    for trial in range(200):
        x = random.normal(size=200)
        y = 0.6 * x + 0.8 * random.normal(size=200)
        found = score_numbers(x, y, resamples=300, seed=trial)["spearman"]
        covered += found.low <= truth <= found.high
    assert 0.90 <= covered / 200 <= 0.99


def test_seed_decides_the_interval():
    true, predicted = np.arange(100) % 3, np.arange(100) % 2
    first = score_classes(true, predicted, seed=1)
    assert score_classes(true, predicted, seed=1) == first
    assert score_classes(true, predicted, seed=2) != first


def test_a_class_absent_from_a_resample_is_not_counted():
    weights = np.array([[2.0, 1.0, 0.0]])
    cells = np.array([0, 0, 2]), np.array([0, 1, 2])
    found = _from_cells(weights, *cells, classes=3)["macro_f1"]
    assert found == pytest.approx(oracle.f1_score([0, 0, 0], [0, 0, 1], average="macro"))


def test_a_large_constant_has_no_correlation():
    found = score_numbers(np.arange(20.0), np.full(20, 1e9 + 0.1), resamples=50)
    assert np.isnan(found["pearson"].value)
    assert np.isnan(found["spearman"].low)
    text = json.dumps(to_json(found), allow_nan=False)
    assert json.loads(text)["pearson"]["value"] is None


def test_samples_are_scores_of_the_drawn_rows():
    random = np.random.default_rng(0)
    true, predicted = random.integers(3, size=(2, 50))
    found = sample_classes(true, predicted, resamples=40, seed=5)
    rows = np.random.default_rng(5).integers(50, size=(40, 50))
    expected = [oracle.matthews_corrcoef(true[drawn], predicted[drawn]) for drawn in rows]
    np.testing.assert_allclose(found["mcc"], expected, atol=1e-12)
    # The rows do not depend on what is predicted, so that differences are paired.
    other = sample_classes(true, true, resamples=40, seed=5)["accuracy"]
    assert (other == 1).all()
    interval = score_classes(true, predicted, resamples=40, seed=5)["mcc"]
    assert interval.low == pytest.approx(np.quantile(found["mcc"], 0.025))


def test_resamples_without_any_item_are_left_out():
    """Of four sequences two have no residue with a label; some resamples hold those alone."""
    groups = np.array([0, 0, 0, 3, 3])
    true, predicted = np.array([0, 1, 1, 0, 1]), np.array([0, 1, 1, 1, 0])
    with np.errstate(all="raise"):
        found = score_classes(true, predicted, groups, resamples=4000)
    assert found["accuracy"].value == pytest.approx(0.6)
    # All right of the first sequence, all wrong of the last.
    assert (found["accuracy"].low, found["accuracy"].high) == (0, 1)
    assert (found["mcc"].low, found["mcc"].high) == (-1, 1)
