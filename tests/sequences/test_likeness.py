"""Identity against counting by hand, where the right alignment is known."""

import numpy as np
import pytest
from families import draw, lay_out, mutate

from frugalfm.sequences.likeness import Pool, measure_identity
from frugalfm.sequences.sketches import Sketcher


def identity(pairs, alphabet="rna", k=10):
    sequences = [sequence for pair in pairs for sequence in pair]
    data, offsets = lay_out(sequences)
    sketches = Sketcher(alphabet, k).sketch(data, offsets)
    pool = Pool(np.frombuffer(data, np.uint8), offsets.astype(np.int64), sketches)
    rows = np.arange(0, len(sequences), 2)
    return measure_identity(pool, rows, rows + 1)


def substitute(rng, sequence, count):
    letters = list(sequence)
    for place in rng.choice(len(letters), count, replace=False):
        letters[place] = "ACGU"[("ACGU".index(letters[place]) + rng.integers(1, 4)) % 4]
    return "".join(letters)


def test_substitutions_are_counted_exactly():
    rng = np.random.default_rng(0)
    parents = [draw(rng, 200) for _ in range(20)]
    found = identity([(substitute(rng, p, n), p) for n, p in enumerate(parents)])
    np.testing.assert_allclose(found, 1 - np.arange(20) / 200)


@pytest.mark.parametrize("gap", [1, 5, 40])
def test_a_gap_costs_what_it_removes(gap):
    """An insertion's letters face nothing; a deletion costs the member none of its letters."""
    rng = np.random.default_rng(gap)
    whole = draw(rng, 300)
    less = whole[:150] + whole[150 + gap :]
    longer, shorter = identity([(whole, less), (less, whole)])
    assert 1 - gap / 300 <= longer < 1 - gap / 300 + 0.5 * gap / 300 + 0.01  # some agree by chance
    assert shorter == 1


def test_a_fragment_is_in_the_whole_but_not_the_reverse():
    rng = np.random.default_rng(1)
    whole = draw(rng, 400)
    part = whole[100:200]
    inside, outside = identity([(part, whole), (whole, part)])
    assert inside == 1
    assert outside == 0.25


def test_strangers_the_short_and_the_empty_have_nothing_in_common():
    rng = np.random.default_rng(2)
    pairs = [(draw(rng, 200), draw(rng, 200)), ("ACG", "ACG"), ("", draw(rng, 50)), ("", "")]
    np.testing.assert_array_equal(identity(pairs), 0)


def test_a_pair_is_judged_the_same_in_any_company():
    rng = np.random.default_rng(3)
    parents = [draw(rng, int(n)) for n in rng.integers(12, 500, 60)]
    pairs = [(mutate(rng, p, rng.uniform(0, 0.3)), p) for p in parents]
    together = identity(pairs)
    np.testing.assert_array_equal(together, np.concatenate([identity([p]) for p in pairs]))
    assert ((together >= 0) & (together <= 1)).all()


def test_few_mutations_are_judged_near_their_number():
    """With gaps too: one gap between two shared k-mers is placed where it should be."""
    rng = np.random.default_rng(4)
    parents = [draw(rng, 300) for _ in range(40)]
    found = identity([(mutate(rng, p, 0.05), p) for p in parents])
    assert abs(np.median(found) - 0.95) < 0.01
    assert found.min() > 0.8
