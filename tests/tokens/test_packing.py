"""Packs hold every row once, none overflows, and hardly a place is left empty."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalfm.errors import InputError
from frugalfm.tokens.batches import SPECIALS
from frugalfm.tokens.packing import place_tokens, plan_packs

LENGTHS = st.lists(st.integers(1, 62), min_size=1, max_size=150).map(
    lambda x: np.array(x, dtype=np.int32)
)


@given(LENGTHS, st.integers(10, 700), st.integers(0, 3), st.integers(0, 3))
def test_every_row_once_in_rows_of_the_width(lengths, budget, seed, epoch):
    plans = [plan_packs(lengths, budget, 64, seed=seed, epoch=epoch, bucket=32) for _ in range(2)]
    batches = plans[0]
    packs = [pack for batch in batches for pack in batch]
    assert sorted(np.concatenate(packs).tolist()) == list(range(len(lengths)))
    assert all((lengths[pack] + SPECIALS).sum() <= 64 for pack in packs)
    assert all(64 * len(batch) <= budget or len(batch) == 1 for batch in batches)
    for one, two in zip(packs, (p for batch in plans[1] for p in batch), strict=True):
        assert np.array_equal(one, two)


@given(LENGTHS)
def test_best_fit_decreasing_needs_few_packs(lengths):
    """At most 11/9 of the best plus one (Johnson et al. 1974), so of the sum of sizes too."""
    packs = sum(map(len, plan_packs(lengths, 64, 64, seed=0, epoch=0)))
    sizes = lengths + SPECIALS
    # No fewer than the sizes fill, nor than there are rows of more than half a pack.
    fewest = max(-(-int(sizes.sum()) // 64), int((sizes > 32).sum()))
    assert packs >= fewest
    # Half-full at least, but for one: two such would have shared a pack.
    assert packs <= 2 * int(sizes.sum()) / 64 + 1


@given(LENGTHS)
def test_places_lay_sequences_one_after_the_other(lengths):
    (batch,) = plan_packs(lengths, 64 * 1000, 64, seed=0, epoch=0)
    sizes = lengths[np.concatenate(batch)].astype(np.int64) + SPECIALS
    places, segments = place_tokens(batch, sizes, 64)
    expected, seen = np.zeros((len(batch), 64), np.int64), []
    for row, pack in enumerate(batch):
        at = 0
        for number, index in enumerate(pack, 1):
            size = lengths[index] + SPECIALS
            expected[row, at : at + size] = number
            seen += range(row * 64 + at, row * 64 + at + size)
            at += size
    assert np.array_equal(segments, expected)
    assert places.tolist() == seen


def test_little_is_left_empty_and_epochs_differ():
    lengths = np.random.default_rng(0).integers(20, 400, 5000)
    plans = [plan_packs(lengths, 16_384, 512, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0))]
    for other in plans[1:]:
        assert not np.array_equal(plans[0][0][0], other[0][0])
    assert sum(map(len, plans[0])) * 512 < 1.02 * (lengths + SPECIALS).sum()


def test_a_row_too_long_is_an_error_with_a_remedy():
    with pytest.raises(InputError, match="--pack 64: the longest sequence has 72 tokens"):
        plan_packs(np.array([5, 70]), 640, 64, seed=0, epoch=0)
