"""Every strategy against an oracle in plain Python, and against its promises on nasty scores."""

import hashlib
from collections import Counter
from fractions import Fraction
from math import floor

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalfm.coreset import choose_rows, write_selection
from frugalfm.coreset.choose import _choose
from frugalfm.coreset.pool import open_pool
from frugalfm.errors import InputError

STRATEGIES = ("random", "top-influence", "top-influence-by-length", "coverage")


# The oracle: lists and sorting, from the published descriptions.


def digest(row, seed, purpose=""):
    return hashlib.md5(f"{purpose}{seed}:s{row}".encode()).hexdigest()


def by_influence(rows, scores, seed):
    return sorted(rows, key=lambda row: (-scores[row], digest(row, seed)))


def oracle(strategy, scores, lengths, budget, seed, strata=50, drop=0.1):
    scores = [float(np.float32(score)) for score in scores]
    rows = range(len(scores))
    if strategy == "random":
        return sorted(sorted(rows, key=lambda row: digest(row, seed))[:budget])
    if strategy == "top-influence":
        return sorted(by_influence(rows, scores, seed)[:budget])
    if strategy == "top-influence-by-length":
        return oracle_by_length(scores, lengths, budget, seed)
    return oracle_coverage(scores, budget, seed, strata, drop)


def oracle_by_length(scores, lengths, budget, seed):
    bins = {}
    for row, length in enumerate(lengths):
        # sqrt(2)^bin <= length, so 2^bin <= length^2
        bins.setdefault((int(length) ** 2).bit_length() - 1, []).append(row)
    shares = {number: Fraction(budget * len(rows), len(scores)) for number, rows in bins.items()}
    quotas = {number: floor(share) for number, share in shares.items()}
    for number in sorted(bins, key=lambda b: (quotas[b] - shares[b], b)):
        if sum(quotas.values()) < budget:
            quotas[number] += 1
    return sorted(
        row for b, rows in bins.items() for row in by_influence(rows, scores, seed)[: quotas[b]]
    )


def oracle_coverage(scores, budget, seed, strata, drop):
    dropped = floor(Fraction(str(drop)) * len(scores))
    hardest = sorted(range(len(scores)), key=lambda row: (-scores[row], digest(row, seed, "drop:")))
    kept = hardest[dropped:]
    low, high = min(scores[row] for row in kept), max(scores[row] for row in kept)
    members = {}
    for row in kept:
        width = (high - low) / strata
        stratum = min(strata - 1, floor((scores[row] - low) / width)) if width else 0
        members.setdefault(stratum, []).append(row)
    chosen, remaining = [], budget
    smallest_first = [members[s] for s in sorted(members, key=lambda s: (len(members[s]), s))]
    for left, of_stratum in zip(range(len(members), 0, -1), smallest_first, strict=True):
        take = min(len(of_stratum), remaining // left)
        remaining -= take
        chosen += sorted(of_stratum, key=lambda row: digest(row, seed))[:take]
    assert remaining == 0
    return sorted(chosen)


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
    lengths = rng.integers(1, 300, 700)
    files = write_scores(scores, lengths, parts=3)
    for budget in (1, 60, 333, 630):
        found = choose_rows(files, strategy, budget, seed=11)
        assert rows_of(found) == oracle(strategy, scores, lengths, budget, 11)


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
    st.lists(st.sampled_from([1.0, 1.0000001, 2.0]), min_size=1, max_size=80),
    st.integers(1, 60).map(lambda n: [float(2.0 ** (4 * i - 120)) for i in range(n)]),
)


@settings(max_examples=60)
@given(scores=nasty, strategy=st.sampled_from(STRATEGIES), data=st.data())
def test_exactly_the_budget_without_repeats(write_scores, scores, strategy, data):
    drop = data.draw(st.sampled_from([0.0, 0.1, 0.5]))
    most = len(scores) - (floor(drop * len(scores)) if strategy == "coverage" else 0)
    budget = data.draw(st.integers(1, most))
    strata = data.draw(st.sampled_from([1, 3, 50]))
    lengths = data.draw(st.lists(st.integers(1, 99), min_size=len(scores), max_size=len(scores)))
    files = write_scores(scores, lengths, parts=min(2, len(scores)))
    rows = rows_of(choose_rows(files, strategy, budget, strata=strata, drop_hardest=drop))
    assert len(rows) == len(set(rows)) == budget
    assert rows == sorted(rows)
    assert set(rows) <= set(range(len(scores)))
    assert rows == oracle(strategy, scores, lengths, budget, 0, strata, drop)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_order_and_number_of_parts_do_not_matter(write_scores, strategy):
    rng = np.random.default_rng(5)
    scores, lengths = rng.lognormal(0, 2, 900).round(1), rng.integers(1, 400, 900)
    ids = [f"s{i}" for i in range(900)]
    first = choose_rows(write_scores(scores, lengths), strategy, "10%", seed=4)
    scattered = write_scores(scores, lengths, parts=7, order=rng.permutation(900))
    assert choose_rows(scattered[::-1], strategy, "10%", seed=4).equals(first)
    # Other row numbers (shards built in another order): the same ids all the same.
    renumbered = write_scores(scores, lengths, ids, rows=rng.permutation(900))
    found = choose_rows(renumbered, strategy, 90, seed=4)["id"].to_pylist()
    assert sorted(found) == sorted(first["id"].to_pylist())


def test_seeds_differ_where_there_is_a_draw(write_scores):
    files = write_scores(np.arange(500) // 100)
    for strategy in STRATEGIES:
        once, again, other = (
            rows_of(choose_rows(files, strategy, 50, seed=seed)) for seed in (1, 1, 2)
        )
        assert once == again != other


@pytest.mark.parametrize("strategy", ["random", "coverage"])
def test_draws_are_uniform(write_scores, strategy):
    # 150 draws of 40 from 120 rows (for coverage: 20 from each of two strata of 60).
    size, budget, draws = 120, 40, 150
    files = write_scores(np.repeat([1.0, 2.0], 60))
    counts = np.zeros(size)
    with open_pool(files) as pool:
        for seed in range(draws):
            _choose(pool, strategy, budget, seed, 2, 0.0)
            np.add.at(counts, [row for (row,) in pool.query("SELECT row FROM chosen")], 1)
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
    report = write_selection(files, tmp_path / "s.parquet", "coverage", "10%", seed=9)
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
