"""Clusters of simulated families, and the promises that hold for any pool."""

import numpy as np
import pytest
from families import draw, draw_families, lay_out, mutate
from sklearn.metrics import adjusted_rand_score

from frugalfm.sequences import grouping
from frugalfm.sequences.clusters import IDENTITY, number_clusters
from frugalfm.sequences.grouping import group_greedily
from frugalfm.sequences.likeness import Pool, measure_identity
from frugalfm.sequences.sketches import Sketcher, choose_k


def make_pool(sequences, alphabet="rna", seed=0):
    data, offsets = lay_out(sequences)
    sketches = Sketcher(alphabet, choose_k(alphabet, len(data)), seed=seed).sketch(data, offsets)
    return Pool(np.frombuffer(data, np.uint8), offsets.astype(np.int64), sketches)


def order_of(sequences):
    return np.array(sorted(range(len(sequences)), key=lambda i: (-len(sequences[i]), sequences[i])))


def group(sequences, folder, alphabet="rna", threshold=None, seed=0):
    pool = make_pool(sequences, alphabet, seed)
    threshold = IDENTITY[alphabet] if threshold is None else threshold
    return group_greedily(pool, order_of(sequences), threshold, folder)


@pytest.mark.parametrize(
    ("alphabet", "worst", "least"),
    [
        ("rna", 0.0, 1.0),
        ("rna", 0.1, 0.85),
        ("rna", 0.2, 0.4),
        ("protein", 0.1, 0.95),
        ("protein", 0.2, 0.85),
    ],
)
def test_families_are_found(alphabet, worst, least, tmp_path):
    """Two mutants differ by up to twice `worst`; MMseqs2's linclust reaches 0.89 and 0.48 (RNA)."""
    rng = np.random.default_rng(0)
    sequences, truth = draw_families(rng, 60, 30, worst, alphabet)
    found = group(sequences, tmp_path, alphabet)
    np.testing.assert_array_equal(truth, truth[found])  # no cluster mixes families
    assert adjusted_rand_score(truth, found) >= least


def test_every_member_is_like_its_representative_which_is_as_long(tmp_path):
    sequences, _ = draw_families(np.random.default_rng(1), 30, 20, 0.4)
    found = group(sequences, tmp_path)
    np.testing.assert_array_equal(found, found[found])
    members = np.flatnonzero(found != np.arange(len(found)))
    assert len(members) > 50
    assert (measure_identity(make_pool(sequences), members, found[members]) >= 0.7).all()
    lengths = np.array([len(sequence) for sequence in sequences])
    assert (lengths[found] >= lengths).all()


def test_a_chain_of_kin_does_not_become_one_cluster(tmp_path):
    """Neighbours are alike, the ends are not."""
    rng = np.random.default_rng(2)
    chain = [draw(rng, 400)]
    for _ in range(20):
        chain.append(mutate(rng, chain[-1], 0.1))
    found = group(chain, tmp_path)
    assert 3 <= len(np.unique(found)) <= 15


def test_neither_the_order_of_rows_nor_memory_matters(tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    sequences = list(dict.fromkeys(draw_families(rng, 30, 15, 0.25)[0]))
    found = group(sequences, tmp_path)
    shuffled = rng.permutation(len(sequences))
    again = group([sequences[i] for i in shuffled], tmp_path)
    np.testing.assert_array_equal(shuffled[again], found[shuffled])
    monkeypatch.setattr(grouping, "_ENTRIES", 500)
    monkeypatch.setattr(grouping, "_LETTERS", 1000)
    np.testing.assert_array_equal(group(sequences, tmp_path), found)


def test_a_stranger_that_is_first_does_not_keep_kin_apart(tmp_path):
    """One long sequence holds a piece of each of two: they are compared all the same."""
    rng = np.random.default_rng(4)
    kin = draw(rng, 60)
    long = draw(rng, 400) + kin[:40] + draw(rng, 400)
    found = group([long, kin + draw(rng, 1), kin], tmp_path, threshold=0.9)
    np.testing.assert_array_equal(found, [0, 1, 1])


def test_without_kmers_everyone_is_alone(tmp_path):
    found = group(["ACGU", "ACGUA", "N" * 50, "A"], tmp_path)
    np.testing.assert_array_equal(found, np.arange(4))


def test_numbers_are_dense_and_begin_with_the_largest():
    representatives = np.array([0, 4, 0, 3, 4, 0, 6, 6])
    order = np.array([6, 4, 3, 0, 1, 2, 5, 7])
    numbers, sizes = number_clusters(representatives, order)
    np.testing.assert_array_equal(numbers, [0, 2, 0, 3, 2, 0, 1, 1])
    np.testing.assert_array_equal(sizes, [3, 2, 2, 1])
