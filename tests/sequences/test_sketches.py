"""Sketches against sets of k-mers made letter by letter."""

import numpy as np
import pytest
from families import LETTERS, draw, lay_out, mutate
from hypothesis import given
from hypothesis import strategies as st

from frugalfm.sequences import sketches as room
from frugalfm.sequences.sketches import EMPTY, Sketcher

HALF = np.uint64(32)
CLASSES = ["LVIM", "CU", "A", "G", "ST", "P", "FYW", "EDNQBZ", "KRO", "H"]


def words(sequence, k, alphabet="rna"):
    """K-mers and where each first occurs."""
    found = {}
    for place in range(len(sequence) - k + 1):
        word = sequence[place : place + k]
        if alphabet == "protein":
            word = "".join(str(i) for c in word for i, g in enumerate(CLASSES) if c in g)
        elif set(word) - set(LETTERS[alphabet]):
            continue
        if len(word) == k:
            found.setdefault(word, place)
    return found


def read(sketch):
    held = sketch[sketch != EMPTY]
    return dict(zip((held & np.uint64(0xFFFFFFFF)).tolist(), (held >> HALF).tolist(), strict=True))


@pytest.mark.parametrize(
    ("alphabet", "k", "extra"), [("rna", 5, "N"), ("dna", 16, ""), ("protein", 7, "XU")]
)
def test_a_short_sequence_is_held_whole(alphabet, k, extra, monkeypatch):
    monkeypatch.setattr(room, "_LETTERS", 100)
    rng = np.random.default_rng(0)
    letters = list(LETTERS[alphabet] * 3 + extra)
    sequences = ["".join(rng.choice(letters, n)) for n in [0, 1, k - 1, k, k + 1, 60, 30, 60, 2]]
    sketches = Sketcher(alphabet, k, seed=3).sketch(*lay_out(sequences))
    numbers = {}
    for sequence, sketch in zip(sequences, sketches, strict=True):
        expected = words(sequence, k, alphabet)
        found = read(sketch)
        assert sorted(found) == sorted(expected.values())
        for word, place in expected.items():
            assert numbers.setdefault(word, found[place]) == found[place]
        assert (np.sort(sketch) == sketch).all()
    assert len(set(numbers.values())) == len(numbers)  # one to one


@given(st.lists(st.text("ACGUN", max_size=80), min_size=1, max_size=10), st.integers(0, 2**31 - 1))
def test_a_sketch_depends_on_its_sequence_and_the_seed_alone(sequences, seed):
    sketcher = Sketcher("rna", 6, size=8, seed=seed)
    together = sketcher.sketch(*lay_out(sequences))
    for sequence, sketch in zip(sequences, together, strict=True):
        np.testing.assert_array_equal(sketch, sketcher.sketch(*lay_out([sequence]))[0])
        assert set(read(sketch)) <= set(words(sequence, 6).values())


def test_kin_choose_the_same_kmers():
    rng = np.random.default_rng(0)
    parent = draw(rng, 2000)
    child, other = mutate(rng, parent, 0.02), draw(rng, 2000)
    sketches = Sketcher("rna", 14).sketch(*lay_out([parent, child, other])) >> HALF
    kept = len(np.intersect1d(sketches[0], sketches[1]))
    assert kept > 64 * 0.98**14 * 0.7
    assert not len(np.intersect1d(sketches[0], sketches[2]))


def test_the_numbers_are_spread_evenly():
    hashes = room._scatter(np.arange(100_000, dtype=np.uint32), 7)
    counts = np.histogram(hashes, 20, (0, 2**32))[0]
    assert abs(counts - 5000).max() < 5 * np.sqrt(5000)
