import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalfm.coreset.choose import _choose
from frugalfm.coreset.draw import Cell, draw
from frugalfm.coreset.order import order_statistics
from frugalfm.coreset.pool import open_pool
from frugalfm.coreset.report import as_text, occupancy


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 3),
            st.one_of(
                st.floats(width=32, allow_nan=False, allow_infinity=False),
                # neighbours in float32, some of which share a bucket
                st.integers(0, 4000).map(lambda i: float(np.float32(1) + i * np.float32(2**-23))),
                st.sampled_from([0.0, -0.0]),
            ),
        ),
        min_size=1,
        max_size=80,
    )
)
def test_ranks_are_exact(write_scores, content):
    groups, scores = (list(column) for column in zip(*content, strict=True))
    sorted_scores = {g: sorted(s for h, s in content if h == g) for g in set(groups)}
    ranks = {g: list(range(1, len(of) + 1)) for g, of in sorted_scores.items()}
    with open_pool(write_scores(scores, groups)) as pool:
        found = order_statistics(pool, "SELECT length AS grp, influence FROM scores", ranks)
    for (group, rank), statistic in found.items():
        of = sorted_scores[group]
        assert statistic.value == of[rank - 1]
        assert statistic.below == sum(score < statistic.value for score in of)
        assert statistic.equal == of.count(statistic.value)


def test_a_draw_that_misses_its_bounds_is_exact_still(write_scores):
    # All hashes are the same: either none or all are below any bound.
    with open_pool(write_scores(np.ones(5000), ids=["same"] * 5000)) as pool:
        for quota in (1, 2500, 4999):
            relation = "SELECT *, 0 AS cell FROM scores"
            draw(pool, relation, [Cell(0, 5000, quota)], seed=1, into="t")
            assert pool.query("SELECT count(*), max(row) FROM t") == [(quota, quota - 1)]


def test_other_purpose_other_draw(write_scores):
    with open_pool(write_scores(np.ones(1000))) as pool:
        for into, purpose in (("a", ""), ("b", "drop:")):
            relation = "SELECT *, 0 AS cell FROM scores"
            draw(pool, relation, [Cell(0, 1000, 500)], seed=1, into=into, purpose=purpose)
        [(shared,)] = pool.query("SELECT count(*) FROM a JOIN b USING (row)")
    assert 200 < shared < 300


@pytest.fixture
def report_of(write_scores):
    def make(scores, strategy, budget, lengths=None, drop=0.1):
        with open_pool(write_scores(scores, lengths)) as pool:
            plan, deciles = _choose(pool, strategy, budget, 0, 50, drop)
            report = occupancy(pool, plan, deciles)
        return {"strategy": strategy, "budget": budget} | report

    return make


def test_report_counts_everything(report_of):
    rng = np.random.default_rng(1)
    scores, lengths = rng.normal(size=1000), rng.integers(1, 100, 1000)
    for strategy in ("random", "top-influence", "top-influence-by-length", "coverage"):
        report = report_of(scores, strategy, 100, lengths)
        assert sum(s["chosen"] for s in report["strata"]) == 100
        dropped = 100 if strategy == "coverage" else 0
        assert report["dropped"] == dropped
        assert sum(s["population"] for s in report["strata"]) == 1000 - dropped
        assert all(s["chosen"] <= s["population"] for s in report["strata"])
        assert sum(report["score_deciles"]) == 100
        assert report["pool"]["mean_loss"] == pytest.approx(1.5, abs=1e-5)
        assert report["pool"]["length_quantiles"]["50%"] == np.quantile(
            lengths, 0.5, method="inverted_cdf"
        )
        assert len(as_text(report).splitlines()) <= 15


def test_deciles_of_top_influence_and_of_few_scores(report_of):
    assert report_of(np.arange(100), "top-influence", 15)["score_deciles"] == [0] * 8 + [5, 10]
    assert sum(report_of([3, 1, 2], "random", 2)["score_deciles"]) == 2
    assert report_of(np.ones(30), "random", 20)["score_deciles"] == [20] + [0] * 9


def test_collapsed_strata_are_reported(report_of):
    scores = np.random.default_rng(0).lognormal(0, 2, 2000)
    report = report_of(scores, "coverage", 100, drop=0)
    assert report["filled"] == sum(s["population"] > 0 for s in report["strata"])
    assert report["filled"] < 25
    assert f"warning: only {report['filled']} of 50 strata filled" in as_text(report)
    even = report_of(np.arange(2000), "coverage", 100)
    assert even["filled"] == 50
    assert "filled" not in as_text(even)
