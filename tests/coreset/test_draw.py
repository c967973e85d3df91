import numpy as np
import pytest

from frugalfm.coreset.draw import draw
from frugalfm.coreset.opening import open_pool
from frugalfm.coreset.strategies import Plan


def plan_of(populations, quotas, cell):
    return Plan(("length",), cell, np.array(populations), np.array(quotas))


def places(drawn):
    return [place for batch in drawn.batches() for place in batch["place"].to_pylist()]


def test_a_draw_that_misses_its_bounds_is_exact_still(write_scores):
    # All hashes are the same: either none or all are below any bound.
    with open_pool(write_scores(np.ones(5000), ids=["same"] * 5000)) as (pool, _):
        for quota in (1, 2500, 4999, 5000):
            drawn = draw(pool, plan_of([5000], [quota], lambda block: None), seed=1)
            assert places(drawn) == list(range(quota))


def test_other_purpose_other_draw(write_scores):
    with open_pool(write_scores(np.ones(1000))) as (pool, _):
        plan = plan_of([1000], [500], lambda block: None)
        one, two = (set(places(draw(pool, plan, seed=1, purpose=p))) for p in ("", "drop"))
    assert 200 < len(one & two) < 300


@pytest.mark.parametrize("ties_only", [True, False])
def test_cells_give_their_quotas(write_scores, ties_only):
    lengths = np.random.default_rng(0).integers(1, 6, 20_000)
    counts = np.bincount(lengths - 1)
    quotas = np.array([0, counts[1], 1, counts[3] // 2, counts[4] - 1])
    with open_pool(write_scores(np.ones(20_000), lengths, parts=3)) as (pool, _):
        plan = plan_of(counts, quotas, lambda block: block["length"] - 1)
        object.__setattr__(plan, "ties_only", ties_only)
        found = places(draw(pool, plan, seed=3))
        assert found == sorted(set(found))
        assert np.array_equal(np.bincount(lengths[found] - 1, minlength=5), quotas)
        # Without some places, the others are drawn as before.
        object.__setattr__(plan, "without", np.flatnonzero(lengths == 2)[:7])
        plan.populations[1] -= 7
        plan.quotas[1] -= 7
        assert set(places(draw(pool, plan, seed=3))) == set(found) - set(plan.without.tolist())
