"""Batches hold every row once, within the budget, in an order that only seed and epoch set."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from frugalfm.tokens.batches import SPECIALS, plan_by_length, plan_epoch

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=200).map(
    lambda x: np.array(x, dtype=np.int32)
)


def check(batches, lengths, budget):
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * (lengths[batch].max() + SPECIALS)
        assert padded <= budget or len(batch) == 1


@given(LENGTHS, st.integers(10, 2000))
def test_every_row_once_within_the_budget(lengths, budget):
    check(plan_by_length(lengths, budget), lengths, budget)
    check(plan_epoch(lengths, budget, seed=1, epoch=2, bucket=16), lengths, budget)


@given(LENGTHS, st.integers(0, 5), st.integers(0, 5))
def test_order_is_reproducible(lengths, seed, epoch):
    first, second = (plan_epoch(lengths, 500, seed=seed, epoch=epoch) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_epochs_and_seeds_differ_and_padding_is_small():
    lengths = np.random.default_rng(0).integers(20, 1000, 5000)
    plans = [plan_epoch(lengths, 16_384, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0))]
    for a, b in ((0, 1), (0, 2)):
        assert not np.array_equal(plans[a][0], plans[b][0])
    padded = sum(len(b) * (lengths[b].max() + SPECIALS) for b in plans[0])
    assert padded < 1.05 * (lengths + SPECIALS).sum()
