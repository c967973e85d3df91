"""Rankings equal scikit-learn's; pairs that share sequences are drawn by their sequences."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import metrics as oracle

from frugalfm.tasks.metrics import _resample, score_classes, score_numbers, score_ranking


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(-3, 3), st.integers(0, 3)),
        min_size=2,
        max_size=30,
    )
)
def test_rankings_equal_sklearn(rows):
    true, scores, _ = np.array(rows).T
    assume(0 < true.mean() < 1)
    found = score_ranking(true, scores, resamples=0)
    assert found["auroc"].value == pytest.approx(oracle.roc_auc_score(true, scores))
    assert found["auprc"].value == pytest.approx(oracle.average_precision_score(true, scores))


def test_several_labels_and_one_that_never_occurs():
    random = np.random.default_rng(0)
    true = random.integers(2, size=(50, 3))
    true[:, 2] = 0
    scores = random.normal(size=(50, 3)) + true
    found = score_ranking(true, scores, resamples=20)
    expected = oracle.roc_auc_score(true[:, :2], scores[:, :2], average="macro")
    assert found["auroc"].value == pytest.approx(expected)
    assert np.isnan(score_ranking(true[:, 2], scores[:, 2], resamples=5)["auroc"].value)


def test_resampled_rankings_equal_sklearn_of_the_drawn():
    random = np.random.default_rng(1)
    true, scores = random.integers(2, size=60), random.normal(size=60).round(1)
    index = [np.repeat(np.arange(60), w.astype(int)) for w in next(_resample(60, 80, seed=3))]
    expected = [oracle.roc_auc_score(true[i], scores[i]) for i in index]
    found = score_ranking(true, scores, resamples=80, seed=3)["auroc"]
    np.testing.assert_allclose([found.low, found.high], np.quantile(expected, [0.025, 0.975]))


def test_pairs_are_drawn_by_their_sequences():
    random = np.random.default_rng(2)
    members = random.integers(12, size=(40, 2))
    members[0] = 3, 3
    members[1] = 11, 10
    weights = np.concatenate(list(_resample(40, 50, 5, members)))
    drawn = np.concatenate(list(_resample(12, 50, 5)))
    expected = [
        [row[a] if a == b else row[a] * row[b] for a, b in members.tolist()] for row in drawn
    ]
    np.testing.assert_array_equal(weights, np.array(expected))
    true = random.integers(2, size=40)
    guess = np.where(random.random(40) < 0.7, true, 1 - true)
    found = score_classes(true, guess, members=members, resamples=50, seed=5)["accuracy"]
    right = (true == guess).astype(float)
    values = [(w @ right) / w.sum() for w in weights]
    np.testing.assert_allclose([found.low, found.high], np.quantile(values, [0.025, 0.975]))


def test_intervals_of_pairs_that_share_sequences_cover_the_truth():
    """Every sequence makes its pairs easy or hard together; drawing pairs alone would not cover."""
    random = np.random.default_rng(4)
    members = np.array([(a, b) for a in range(14) for b in range(14, 28)])
    covered = {True: 0, False: 0}
    for trial in range(120):
        level = random.normal(size=28)
        error = level[members].sum(1) + random.normal(size=len(members))
        for shared in covered:
            found = score_numbers(
                np.zeros(len(members)) + np.arange(len(members)) * 1e-9,
                np.abs(error),
                members=members if shared else None,
                resamples=150,
                seed=trial,
            )["mae"]
            truth = np.sqrt(3) * np.sqrt(2 / np.pi)
            covered[shared] += found.low <= truth <= found.high
    assert covered[True] / 120 >= 0.9
    assert covered[False] < covered[True]


def test_a_resample_without_a_whole_pair_is_left_out():
    weights = list(_resample(1, 400, 0, np.array([[0, 1]])))
    assert 0 < sum(map(len, weights)) < 400
    assert all(part.all() for part in weights)


def test_errors_in_units_of_the_label():
    found = score_numbers(np.array([1.0, 2, 4]), np.array([1.0, 4, 1]), resamples=10)
    assert found["mae"].value == pytest.approx(5 / 3)
    assert found["rmse"].value == pytest.approx(np.sqrt(13 / 3))
