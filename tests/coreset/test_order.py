import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalfm.coreset.opening import open_pool, parse_memory
from frugalfm.coreset.order import Groups, Ranking, bucket_starts, count_upper, in_order
from frugalfm.errors import InputError


def by_length(count):
    return Groups(count, ("length",), lambda block: block["length"] - 1)


@pytest.mark.parametrize("groups", [3, 80])  # of few groups, two digits; of many, four
@settings(max_examples=40)
@given(
    content=st.lists(
        st.tuples(
            st.integers(1, 3),
            st.one_of(
                st.floats(width=32, allow_nan=False, allow_infinity=False),
                # neighbours in float32, some of which share their upper bits
                st.integers(0, 4000).map(lambda i: float(np.float32(1) + i * np.float32(2**-23))),
                st.sampled_from([0.0, -0.0]),
            ),
        ),
        min_size=1,
        max_size=80,
    )
)
def test_ranks_are_exact(write_scores, groups, content):
    lengths, scores = (list(column) for column in zip(*content, strict=True))
    sorted_scores = {g: sorted(s for h, s in content if h == g) for g in set(lengths)}
    ranks = {g - 1: list(range(1, len(of) + 1)) for g, of in sorted_scores.items()}
    with open_pool(write_scores(scores, lengths)) as (pool, rankings):
        found = Ranking(pool, "influence", by_length(groups)).at(ranks)
        everything = rankings["influence"].at({0: range(1, len(scores) + 1)})
    for (group, rank), statistic in found.items():
        of = sorted_scores[group + 1]
        assert statistic.value == of[rank - 1]
        assert statistic.below == sum(score < statistic.value for score in of)
        assert statistic.equal == of.count(statistic.value)
    assert [s.value for s in everything.values()] == sorted(scores)


def test_only_what_is_eligible_is_ranked(write_scores):
    with open_pool(write_scores(np.arange(100))) as (pool, _):
        pool.eligible = np.arange(100) % 2 == 0
        ranking = Ranking(pool, "influence")
        assert ranking.sizes.tolist() == [50]
        assert ranking.at({0: [1, 50]})[0, 50].value == 98


def test_what_was_found_is_remembered(write_scores, monkeypatch):
    with open_pool(write_scores(np.arange(100))) as (pool, rankings):
        first = rankings["influence"].at({0: [3, 50]})
        monkeypatch.setattr(pool, "map", None)
        assert rankings["influence"].at({0: [50]})[0, 50] == first[0, 50]


def test_ranks_are_found_by_watching(write_scores, monkeypatch):
    scores = np.random.default_rng(0).normal(1, 0.01, 3000).round(4).astype(np.float32)
    scores[:900] = -0.0
    ranks = [1, 500, 901, 1777, 3000]
    with open_pool(write_scores(scores)) as (pool, rankings):
        ranking = rankings["influence"]
        expected = Ranking(pool, "influence").at({0: ranks})
        ranking.expect(ranks)
        watch = ranking.watch()
        for part in np.array_split(scores, 7):
            watch.add(part)
        monkeypatch.setattr(pool, "map", None)
        assert ranking.at({0: ranks}) == expected


def test_buckets_are_in_order():
    values = np.float32([-np.inf, -7, -1e-30, 0, 1e-44, 2, 2.5, 3e38, np.inf])
    counts = np.zeros(1 << 16, np.int64)
    count_upper(counts, values)
    found = np.flatnonzero(in_order(counts))
    starts = bucket_starts()
    assert np.all(np.diff(starts[~np.isinf(starts)]) > 0)
    assert in_order(counts)[found].tolist() == [1, 1, 1, 2, 1, 1, 1, 1]
    low, high = starts[found], starts[np.minimum(found + 1, len(starts) - 1)]
    inside = np.sort(values)[[0, 1, 2, 3, 5, 6, 7, 8]]
    assert np.all((low <= inside) & (inside <= high))


def test_memory_limits():
    assert parse_memory("1GB") == 10**9
    assert parse_memory("1.5 MiB") == 3 << 19
    for text in ("much", "1 XB", "-1GB"):
        with pytest.raises(InputError, match="memory limit"):
            parse_memory(text)
