"""Caps and complexity: exact, before any strategy, however little memory there is."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_oracle import STRATEGIES, Oracle

from frugalfm.coreset import Choice, choose_rows, write_selection
from frugalfm.coreset.strategies import PREFERENCES
from frugalfm.errors import InputError

SIZE = 600


def capped(oracle, strategy, clusters, most, rows):
    """The best rows of each cluster for the strategy, or a draw."""
    members = defaultdict(list)
    for row in rows:
        members[clusters[row]].append(row)
    prefer = PREFERENCES.get(strategy)
    values = {"influence": oracle.scores, "loss": oracle.losses}.get(prefer and prefer.column)
    kept = []
    for own in members.values():
        key = lambda row: (-prefer.sign * values[row] if prefer else 0, oracle.hash(row, "cap"))  # noqa: E731
        kept += sorted(own, key=key)[:most]
    return sorted(kept)


@pytest.fixture(scope="module")
def pool(write_scores, write_clusters):
    rng = np.random.default_rng(8)
    scores = rng.lognormal(0, 1, SIZE).round(1)
    lengths, losses = rng.integers(1, 300, SIZE), rng.integers(1, 40, SIZE) / 8
    clusters = np.minimum(rng.geometric(0.02, SIZE), 90) * 10**12 - 7
    complexity = rng.random(SIZE).astype(np.float32)
    files = write_scores(scores, lengths, losses=losses, parts=3, order=rng.permutation(SIZE))
    beside = write_clusters(clusters, complexity, parts=2)
    return Oracle(scores, lengths, losses), clusters, complexity, files, beside


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("memory", ["1GB", "5KB"])
def test_agrees_with_the_oracle(pool, strategy, memory, monkeypatch):
    oracle, clusters, complexity, files, beside = pool
    monkeypatch.setattr("frugalfm.coreset.eligible._LEAST_PIECE", 50)
    rows = np.flatnonzero(complexity >= np.float32(0.3)).tolist()
    for most in (1, 3):
        kept = capped(oracle, strategy, clusters, most, rows)
        found = choose_rows(
            files, strategy, 50, clusters=beside, max_per_cluster=most, min_complexity=0.3,
            memory_limit=memory,
        )["row"].to_pylist()  # fmt: skip
        assert found == oracle.choose(strategy, 50, kept)
        assert max(Counter(clusters[found]).values()) <= most
        assert complexity[found].min() >= 0.3


@settings(max_examples=30)
@given(data=st.data())
def test_caps_are_exact_up_to_the_last(write_scores, write_clusters, data):
    size = data.draw(st.integers(1, 60))
    clusters = data.draw(st.lists(st.integers(-3, 9), min_size=size, max_size=size))
    most = data.draw(st.integers(1, 5))
    strategy = data.draw(st.sampled_from(STRATEGIES))
    reachable = sum(min(most, n) for n in Counter(clusters).values())
    files, beside = write_scores(np.arange(size) % 7), write_clusters(clusters)
    options = {"clusters": beside, "max_per_cluster": most, "drop_hardest": 0.0}
    found = choose_rows(files, strategy, reachable, **options)["row"].to_pylist()
    assert len(set(found)) == reachable
    assert max(Counter(np.array(clusters)[found]).values()) <= most
    if reachable < size:
        with pytest.raises(InputError, match=f"choose at most {reachable}"):
            choose_rows(files, strategy, reachable + 1, **options)


def test_the_report_counts_what_was_left_out(pool, tmp_path):
    _, clusters, complexity, files, beside = pool
    choice = Choice("top-influence", 40, max_per_cluster=2, min_complexity=0.5)
    report = write_selection(files, tmp_path / "s.parquet", choice, clusters=beside)
    simple = int((complexity < 0.5).sum())
    left = Counter(clusters[complexity >= 0.5])
    assert report["not_eligible"] == {
        "below complexity 0.5": simple,
        "beyond 2 of a cluster": sum(max(0, n - 2) for n in left.values()),
    }
    sizes = Counter(clusters)
    assert report["clusters"]["pool"] == {"clusters": len(sizes), "largest": max(sizes.values())}
    assert report["clusters"]["chosen"]["largest"] <= 2
    assert report["clusters"]["chosen"]["clusters"] >= 20


def test_top_influence_takes_the_best_of_each_cluster(write_scores, write_clusters):
    files = write_scores([9, 8, 7, 6, 5, 4])
    beside = write_clusters([1, 1, 1, 2, 2, 3])
    found = choose_rows(files, "top-influence", 3, clusters=beside, max_per_cluster=1)
    assert found["row"].to_pylist() == [0, 3, 5]


def test_clusters_of_other_sequences_are_refused(write_scores, write_clusters, tmp_path):
    files = write_scores(np.ones(20))
    with pytest.raises(InputError, match="needs --clusters"):
        choose_rows(files, "random", 1, max_per_cluster=1)
    with pytest.raises(InputError, match="--max-per-cluster"):
        choose_rows(files, "random", 1, max_per_cluster=0, clusters=write_clusters(np.ones(20)))
    with pytest.raises(InputError, match="holds 19 rows of 'cluster'"):
        choose_rows(files, "random", 1, max_per_cluster=1, clusters=write_clusters(np.ones(19)))
    parts = write_clusters(np.ones(20), parts=2)[::-1]
    with pytest.raises(InputError, match="not those of the pool in order"):
        choose_rows(files, "random", 1, max_per_cluster=1, clusters=parts)
    with pytest.raises(InputError, match="has no column 'cluster'"):
        choose_rows(files, "random", 1, max_per_cluster=1, clusters=files)
    with pytest.raises(InputError, match="only 0 of 20 are eligible"):
        choose_rows(files, "random", 1, min_complexity=1.5, clusters=write_clusters(np.ones(20)))
