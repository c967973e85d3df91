"""Every strategy against an oracle in plain Python, and against its promises on nasty scores."""

from collections import Counter
from math import floor

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_oracle import STRATEGIES, Oracle

from frugalfm.coreset import Choice, choose_rows, write_selection
from frugalfm.errors import InputError


def rows_of(table):
    return table["row"].to_pylist()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ["normal", "heavy", "ties", "constant", "negative"])
def test_agrees_with_the_oracle(write_scores, strategy, kind):
    rng = np.random.default_rng(3)
    scores = {
        "normal": rng.normal(5, 1, 700),
        "heavy": rng.lognormal(0, 2, 700),
        "ties": rng.integers(0, 6, 700),
        "constant": np.full(700, 2.5),
        "negative": -rng.lognormal(0, 1, 700),
    }[kind]
    lengths, losses = rng.integers(1, 300, 700), rng.integers(1, 40, 700) / 8
    files = write_scores(scores, lengths, parts=3, losses=losses)
    oracle = Oracle(scores, lengths, losses, seed=11)
    for budget in (1, 60, 333, 630):
        found = choose_rows(files, strategy, budget, seed=11)
        assert rows_of(found) == oracle.choose(strategy, budget)


def test_coverage_as_worked_by_hand(write_scores):
    # 60 and 50 are the hardest 10 %. 0 to 9 in three strata of width 3 hold 10, 5 and 3. From the
    # smallest: min(3, 12 // 3) = 3; min(5, 9 // 2) = 4; min(10, 5 // 1) = 5.
    scores = [0] * 10 + [4, 4, 4, 4, 5] + [7, 8, 9] + [50, 60]
    table = choose_rows(write_scores(scores), "coverage", 12, strata=3)
    assert Counter(table["stratum"].to_pylist()) == {0: 5, 1: 4, 2: 3}
    assert set(rows_of(table)) >= {15, 16, 17}
    assert not {18, 19} & set(rows_of(table))


def test_the_maximum_is_in_the_last_stratum(write_scores):
    # With these the quotient of the maximum and the width is 49.99999... or 50: both are last.
    for top in (0.1, 0.7, 1.1, 3.3, 1e-40, 3e38):
        table = choose_rows(write_scores([0, top * 0.51, top]), "coverage", 3, drop_hardest=0)
        assert table["stratum"].to_pylist() == [0, 25, 49]


def test_survivors_of_a_tied_cut_are_drawn_evenly(write_scores):
    # All tied: a tenth is dropped at random, and what is drawn is spread over all rows.
    files = write_scores(np.ones(2000))
    rows = np.array(rows_of(choose_rows(files, "coverage", 900)))
    assert 400 < (rows < 1000).sum() < 500
    everything = choose_rows(files, "coverage", 1800)
    assert len(everything) == 1800


nasty = st.one_of(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60),
    st.lists(st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-38, 1.0, 3.4e38, -3.4e38]), min_size=1),
    st.lists(st.sampled_from([-0.0, -1e-45, -1e-41, 0.0, 1e-41]), min_size=1, max_size=40),
    st.lists(st.sampled_from([1.0, 1.0000001, 2.0]), min_size=1, max_size=80),
    st.integers(1, 60).map(lambda n: [float(2.0 ** (4 * i - 120)) for i in range(n)]),
)


@settings(max_examples=60)
@given(scores=nasty, strategy=st.sampled_from(STRATEGIES), data=st.data())
def test_exactly_the_budget_without_repeats(write_scores, scores, strategy, data):
    drop = data.draw(st.sampled_from([0.0, 0.1, 0.5]))
    covers = strategy.startswith("coverage")
    most = len(scores) - (floor(drop * len(scores)) if covers else 0)
    budget = data.draw(st.integers(1, most))
    strata = data.draw(st.sampled_from([1, 3, 50]))
    lengths = data.draw(st.lists(st.integers(1, 99), min_size=len(scores), max_size=len(scores)))
    losses = data.draw(st.permutations(scores))
    files = write_scores(scores, lengths, parts=min(2, len(scores)), losses=losses)
    rows = rows_of(choose_rows(files, strategy, budget, strata=strata, drop_hardest=drop))
    assert len(rows) == len(set(rows)) == budget
    assert rows == sorted(rows)
    assert set(rows) <= set(range(len(scores)))
    oracle = Oracle(scores, lengths, losses, strata=strata, drop=drop)
    assert rows == oracle.choose(strategy, budget)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_order_and_number_of_parts_do_not_matter(write_scores, strategy, monkeypatch):
    rng = np.random.default_rng(5)
    scores, lengths = rng.lognormal(0, 2, 900).round(1), rng.integers(1, 400, 900)
    losses = rng.random(900).round(2)
    ids = [f"s{i}" for i in range(900)]
    first = choose_rows(write_scores(scores, lengths, losses=losses), strategy, "10%", seed=4)
    scattered = write_scores(scores, lengths, losses=losses, parts=7, order=rng.permutation(900))
    assert choose_rows(scattered[::-1], strategy, "10%", seed=4).equals(first)
    # Other row numbers (shards built in another order): the same ids all the same.
    renumbered = write_scores(scores, lengths, ids, losses=losses, rows=rng.permutation(900))
    found = choose_rows(renumbered, strategy, 90, seed=4)["id"].to_pylist()
    assert sorted(found) == sorted(first["id"].to_pylist())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_threads_blocks_and_memory_do_not_matter(write_scores, strategy, monkeypatch):
    rng = np.random.default_rng(6)
    scores = rng.lognormal(0, 2, 5000).round(1)
    files = write_scores(scores, rng.integers(1, 400, 5000), parts=9, losses=rng.random(5000))
    first = choose_rows(files, strategy, "10%")
    for threads, rows, memory in ((1, 1 << 15, "1GB"), (5, 100, "1GB"), (2, 999, "1KB")):
        monkeypatch.setattr("os.cpu_count", lambda threads=threads: threads)
        monkeypatch.setattr("frugalfm.coreset.pool.MOST_ROWS", rows)
        assert choose_rows(files, strategy, "10%", memory_limit=memory).equals(first)


def test_what_is_chosen_is_frozen(write_scores):
    """The same in every version, on every machine: these were chosen once and for all."""
    files = write_scores(np.arange(1000) // 100)
    assert rows_of(choose_rows(files, "random", 5, seed=1)) == FROZEN["random"]
    assert rows_of(choose_rows(files, "coverage", 5, seed=1, strata=5)) == FROZEN["coverage"]
    assert rows_of(choose_rows(files, "top-influence", 5, seed=1)) == FROZEN["top-influence"]


FROZEN = {
    "random": [20, 136, 246, 621, 873],
    "coverage": [20, 246, 432, 621, 873],
    "top-influence": [953, 983, 985, 996, 999],
}


def test_seeds_differ_where_there_is_a_draw(write_scores):
    files = write_scores(np.arange(500) // 100, losses=np.arange(500) // 100)
    for strategy in STRATEGIES:
        once, again, other = (
            rows_of(choose_rows(files, strategy, 50, seed=seed)) for seed in (1, 1, 2)
        )
        assert once == again != other


@pytest.mark.parametrize("strategy", ["random", "coverage"])
def test_draws_are_uniform(write_scores, strategy):
    # 60 draws of 40 from 120 rows (for coverage: 20 from each of two strata of 60).
    size, budget, draws = 120, 40, 60
    files = write_scores(np.repeat([1.0, 2.0], 60))
    counts = np.zeros(size)
    for seed in range(draws):
        found = choose_rows(files, strategy, budget, seed=seed, strata=2, drop_hardest=0.0)
        np.add.at(counts, rows_of(found), 1)
    share = budget / size
    statistic = ((counts - draws * share) ** 2).sum() / (draws * share * (1 - share))
    # Chi-square with 119 (118) degrees of freedom: mean 119, standard deviation 15.4.
    assert 119 - 4 * 15.4 < statistic < 119 + 4 * 15.4


def test_equal_ids_do_not_change_the_budget(write_scores):
    files = write_scores(np.ones(300), ids=["same"] * 300)
    for strategy in STRATEGIES:
        for budget in (7, 270):
            rows = rows_of(choose_rows(files, strategy, budget))
            assert len(set(rows)) == len(rows) == budget


def test_little_memory_is_enough(write_scores):
    files = write_scores(np.random.default_rng(0).lognormal(0, 2, 200_000), parts=4)
    table = choose_rows(files, "coverage", "50%", memory_limit="100MB")
    assert len(table) == 100_000


def test_written_and_returned_selections_are_the_same(write_scores, tmp_path):
    files = write_scores(np.random.default_rng(0).normal(0, 2, 400))
    choice = Choice("coverage", "10%", seed=9)
    report = write_selection(files, tmp_path / "s.parquet", choice)
    written = pq.read_table(tmp_path / "s.parquet")
    assert written.equals(choose_rows(files, "coverage", 40, seed=9).cast(written.schema))
    assert [str(field.type) for field in written.schema] == ["string", "int64", "float", "int32"]
    chosen = Counter(written["stratum"].to_pylist())
    assert {s["stratum"]: s["chosen"] for s in report["strata"] if s["chosen"]} == chosen
    assert sum(s["population"] for s in report["strata"]) == 360
    assert list(tmp_path.iterdir()) == [tmp_path / "s.parquet"]


def test_unknown_strategy_is_refused(write_scores):
    with pytest.raises(InputError, match="no such strategy"):
        choose_rows(write_scores([1.0]), "best", 1)


def test_log_strata_hold_heavy_tails(write_scores):
    """Where strata of equal width collapse, log-strata take as many from each."""
    scores = np.random.default_rng(0).lognormal(0, 2, 20_000)
    files = write_scores(scores)
    counts = {}
    for strategy in ("coverage", "coverage-log"):
        chosen = choose_rows(files, strategy, 1000, drop_hardest=0)
        counts[strategy] = Counter(chosen["stratum"].to_pylist())
    assert len(counts["coverage"]) < 25
    assert len(counts["coverage-log"]) >= 45
    # A sequence at random from the tail is likelier to be chosen than one from the middle.
    assert max(counts["coverage-log"].values()) < 40


def test_log_strata_of_scores_that_are_not_positive(write_scores):
    table = choose_rows(
        write_scores([-5, 0, 1e-9, 2, 20, 100]), "coverage-log", 6, strata=6, drop_hardest=0
    )
    assert table["stratum"].to_pylist() == [0, 0, 0, 4, 5, 5]
    table = choose_rows(write_scores([-5, -3, 0]), "coverage-log", 2, drop_hardest=0)
    assert table["stratum"].to_pylist() == [0, 0]


def test_loss_strategies_as_worked_by_hand(write_scores):
    files = write_scores(np.ones(9), losses=[5, 1, 4, 2, 3, 9, 8, 7, 6])
    assert rows_of(choose_rows(files, "top-loss", 3)) == [5, 6, 7]
    assert rows_of(choose_rows(files, "bottom-loss", 2)) == [1, 3]
    assert rows_of(choose_rows(files, "middle-loss", 3)) == [0, 2, 8]


def test_a_loss_that_is_not_finite(write_scores):
    files = write_scores(np.ones(9), losses=[1, 2, np.nan, 3, 4, 5, 6, 7, 8])
    with pytest.raises(InputError, match=r"row 2 .*loss nan"):
        choose_rows(files, "top-loss", 3)
    assert len(choose_rows(files, "random", 3)) == 3
