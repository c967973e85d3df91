import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalfm.coreset.budgets import (
    allocate,
    apportion,
    length_bin,
    length_bin_start,
    parse_budget,
)
from frugalfm.errors import InputError

sizes = st.dictionaries(st.integers(0, 60), st.integers(1, 10_000), min_size=1)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("200", 200),
        (" 7 ", 7),
        (7, 7),
        ("1%", 10),
        ("0.5%", 5),
        ("0.25%", 3),  # 2.5, rounded up
        (".04 %", 1),
        ("0.001%", 1),
        ("100%", 1000),
    ],
)
def test_budget(text, count):
    assert parse_budget(text, 1000) == count


@pytest.mark.parametrize("text", ["", "x", "-3", "1.5", "1e3", "%", "-1%", "nan%", "1%%", "1 2"])
def test_budget_that_is_none(text):
    with pytest.raises(InputError, match="a percentage of the pool"):
        parse_budget(text, 1000)


@pytest.mark.parametrize(
    ("text", "words"),
    [("0", "more than 0"), ("0%", "more than 0"), ("1001", "at most 1000"), ("101%", "at most")],
)
def test_budget_out_of_range(text, words):
    with pytest.raises(InputError, match=words):
        parse_budget(text, 1000)


@given(sizes, st.data())
def test_both_shares_are_exact_and_possible(sizes, data):
    budget = data.draw(st.integers(0, sum(sizes.values())))
    for share in (allocate, apportion):
        quotas = share(budget, sizes)
        assert sum(quotas.values()) == budget
        assert all(0 <= quotas[stratum] <= sizes[stratum] for stratum in sizes)


@given(sizes, st.data())
def test_proportional_to_within_one(sizes, data):
    total = sum(sizes.values())
    budget = data.draw(st.integers(0, total))
    for group, quota in apportion(budget, sizes).items():
        assert abs(quota - budget * sizes[group] / total) < 1


def test_allocation_levels_the_strata():
    assert allocate(12, {0: 10, 1: 5, 2: 3}) == {0: 5, 1: 4, 2: 3}
    assert allocate(4, {0: 2, 1: 2, 2: 2}) == {0: 1, 1: 1, 2: 2}


def test_length_bins():
    starts = [length_bin_start(number) for number in range(13)]
    assert starts == [1, 2, 2, 3, 4, 6, 8, 12, 16, 23, 32, 46, 64]
    for length in [*range(1, 3000), 2**20 - 1, 2**20, 2**31 - 1]:
        number = length_bin(length)
        assert length_bin_start(number) <= length < length_bin_start(number + 1)
        assert 2**number <= length**2 < 2 ** (number + 1)
