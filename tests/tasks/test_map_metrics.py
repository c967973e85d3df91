"""Metrics of maps against brute force, scipy and sets of pairs."""

import itertools
import json

import numpy as np
import pytest
from scipy import stats

from frugalfm.tasks.brackets import decode_pairs
from frugalfm.tasks.map_metrics import (
    FLOOR,
    choose_threshold,
    measure_map,
    measure_pairs,
    score_maps,
    top_precision,
)
from frugalfm.tasks.maps import CAP, MapTargets
from frugalfm.tasks.metrics import to_json


def symmetric(random, length):
    upper = np.triu(random.normal(size=(length, length)))
    return upper + np.triu(upper, 1).T


def test_contacts_equal_brute_force():
    random = np.random.default_rng(0)
    xyz = random.normal(scale=5, size=(60, 3)).astype(np.float32)
    xyz[[5, 30]] = np.nan
    maps = MapTargets("contact", np.array([60]), (xyz,))
    predicted = symmetric(random, 60)
    found = measure_map(maps, 0, predicted)
    size = 58
    for span, low, high in (
        ("", 6, 99), ("short_", 6, 11), ("medium_", 12, 23), ("long_", 24, 99)
    ):  # fmt: skip
        ranked = sorted(
            (-predicted[i, j], np.linalg.norm(xyz[i] - xyz[j]) < 8)
            for i in range(60)
            for j in range(i + low, min(60, i + high + 1))
            if not {i, j} & {5, 30}
        )
        for name, share in (("top_L", 1), ("top_L/2", 2), ("top_L/5", 5)):
            best = [touch for _, touch in ranked[: size // share]]
            assert found[span + name] == pytest.approx(np.mean(best))


def test_short_sequences():
    maps = MapTargets("contact", np.array([12, 5]), (np.array([[0, 8]]), np.empty((0, 2), int)))
    predicted = np.zeros((12, 12))
    predicted[0, 8] = predicted[8, 0] = 1
    found = measure_map(maps, 0, predicted)
    assert found["top_L/5"] == 0.5  # two pairs: the contact, and one of the rest
    assert np.isnan(found["long_top_L"])
    assert all(np.isnan(value) for value in measure_map(maps, 1, np.zeros((5, 5))).values())


def test_ties_count_as_drawn_at_random():
    values = np.array([1, 0, 1, 0, 1.0])
    scores = np.array([2, 1, 1, 1, 0.0])
    expected = np.mean([(1 + values[list(two)].sum()) / 3
                        for two in itertools.combinations([1, 2, 3], 2)])  # fmt: skip
    assert top_precision(values, scores, 3) == pytest.approx(expected)
    assert top_precision(values, scores, 9) == pytest.approx(0.6)
    assert np.isnan(top_precision(values[:0], scores[:0], 3))


def test_distances_equal_scipy():
    random = np.random.default_rng(1)
    xyz = random.normal(scale=9, size=(40, 3)).astype(np.float32)
    maps = MapTargets("distance", np.array([40]), (xyz,))
    predicted = 15 + 6 * symmetric(random, 40)
    found = measure_map(maps, 0, predicted)
    true, guess = [], []
    for i in range(40):
        for j in range(i + 6, 40):
            true.append(min(np.linalg.norm(xyz[i] - xyz[j]), CAP))
            guess.append(min(predicted[i, j], CAP))
    assert max(true) == CAP
    assert found["spearman"] == pytest.approx(stats.spearmanr(true, guess)[0], abs=1e-6)
    assert found["mae"] == pytest.approx(np.abs(np.subtract(true, guess)).mean(), rel=1e-5)
    empty = measure_map(MapTargets("distance", np.array([3]), (xyz[:3],)), 0, np.zeros((3, 3)))
    assert np.isnan(empty["spearman"])


def test_base_pairs_equal_sets():
    true = [(0, 20), (1, 19), (2, 18), (5, 12)]
    found = [(0, 20), (1, 18), (5, 13), (7, 15)]
    maps = MapTargets("base-pair", np.array([21]), (np.array(true),))
    measured = measure_pairs(maps, 0, np.array(found))
    hits = len(set(true) & set(found))
    assert measured["precision"] == hits / 4
    assert measured["recall"] == hits / 4
    assert measured["f1"] == pytest.approx(2 * hits / 8)

    def near(pair, others):
        i, j = pair
        shifts = [(i, j), (i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
        return any(p in others for p in shifts)

    precision = np.mean([near(pair, true) for pair in found])
    recall = np.mean([near(pair, found) for pair in true])
    assert measured["f1_shifted"] == pytest.approx(stats.hmean([precision, recall]))


def test_nothing_to_find():
    maps = MapTargets("base-pair", np.array([10, 10]), (np.empty((0, 2), int), np.array([[0, 9]])))
    none = np.empty((0, 2), int)
    assert measure_pairs(maps, 0, none)["f1"] == 1
    assert measure_pairs(maps, 0, np.array([[0, 9]]))["f1"] == 0
    missed = measure_pairs(maps, 1, none)
    assert missed["f1"] == 0
    assert np.isnan(missed["precision"])
    assert missed["recall"] == 0


def test_threshold_is_the_best_of_all_tried():
    random = np.random.default_rng(2)
    pieces, decoded = [], []
    for _ in range(6):
        piece = np.array([[i, 29 - i] for i in range(8)])
        p = random.random((30, 30)) * 0.4
        p = (p + p.T) / 2
        p[piece[:, 0], piece[:, 1]] = p[piece[:, 1], piece[:, 0]] = random.uniform(0.5, 0.9, 8)
        pieces.append(piece)
        decoded.append(decode_pairs(p, FLOOR))
    maps = MapTargets("base-pair", np.full(6, 30), tuple(pieces))
    threshold, measured = choose_threshold(maps, decoded)
    assert 0.38 < threshold <= 0.5
    assert np.mean([found["f1"] for found in measured]) == 1


def test_means_and_intervals():
    rows = [
        {"f1": 0.5, "precision": np.nan, "hits": 1, "chosen": 2, "true": 2},
        {"f1": 1.0, "precision": 0.5, "hits": 3, "chosen": 3, "true": 3},
        {"f1": 0.0, "precision": 0.0, "hits": 0, "chosen": 4, "true": 0},
    ]
    found = score_maps(rows, resamples=300, seed=1)
    assert set(found) == {"f1", "precision", "pooled_f1"}
    assert found["f1"].value == pytest.approx(0.5)
    assert found["precision"].value == pytest.approx(0.25)
    assert found["pooled_f1"].value == pytest.approx(8 / 14)
    assert found["f1"].low < 0.5 < found["f1"].high
    assert score_maps(rows, resamples=300, seed=1)["f1"] == found["f1"]
    undefined = score_maps([{"x": np.nan}], resamples=5)
    assert json.dumps(to_json(undefined), allow_nan=False)
