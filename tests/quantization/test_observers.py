"""Ranges: of everything, averaged, and clipped, against numpy and brute force."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frugalfm.errors import InputError
from frugalfm.quantization.observers import (
    Histogram,
    LeastError,
    MinMax,
    Percentile,
    RunningMinMax,
    find_weight_range,
    make_observer,
)
from frugalfm.quantization.quantizers import Format


def make_batches(count=5):
    random = np.random.default_rng(0)
    return [random.normal(size=(7, 4)).astype(np.float32) * (i + 1) for i in range(count)]


def test_min_max_sees_everything():
    batches = make_batches()
    observer = MinMax()
    assert observer.range() is None
    for batch in batches:
        observer.observe(torch.from_numpy(batch))
    whole = np.concatenate(batches)
    assert [float(x) for x in observer.range()] == [whole.min(), whole.max()]


def test_running_min_max_is_the_average_with_momentum():
    batches = make_batches()
    observer = RunningMinMax(0.9)
    assert observer.range() is None
    low, high = None, None
    for batch in batches:
        observer.observe(torch.from_numpy(batch))
        low = batch.min() if low is None else 0.9 * low + 0.1 * float(batch.min())
        high = batch.max() if high is None else 0.9 * high + 0.1 * float(batch.max())
    found = [float(x) for x in observer.range()]
    assert np.allclose(found, [low, high], rtol=1e-6)


def make_heavy(count=20_000, seed=0):
    random = np.random.default_rng(seed)
    return random.standard_t(3, size=count).astype(np.float32)


@given(st.lists(st.integers(1, 4000), max_size=4), st.floats(1e-6, 1e6))
def test_histogram_does_not_depend_on_batches(cuts, size):
    values = torch.from_numpy(make_heavy(4000)) * size
    whole, parts = Histogram(), Histogram()
    whole.add(values)
    ends = [0, *sorted(cuts), len(values)]
    for a, b in pairwise(ends):
        parts.add(values[a:b])
    assert torch.equal(whole.counts, parts.counts)
    assert int(whole.counts.sum()) == len(values)
    assert whole.end <= 2 * float(values.abs().max())
    assert whole.range == (values.min(), values.max()) == parts.range


@pytest.mark.parametrize("percentile", [90, 99, 99.9, 100])
def test_percentile_against_numpy(percentile):
    values = make_heavy()
    observer = Percentile(percentile)
    assert observer.range() is None
    for batch in np.array_split(values, 7):
        observer.observe(torch.from_numpy(batch))
    low, high = (float(x) for x in observer.range())
    beyond = round((100 - percentile) / 200 * len(values))
    width = float(np.abs(values).max()) / 2048
    ordered = np.sort(values)
    assert low == pytest.approx(float(ordered[beyond]), abs=width)
    assert high == pytest.approx(float(ordered[-1 - beyond]), abs=width)
    assert ((values >= low) & (values <= high)).sum() >= len(values) - 2 * beyond
    with pytest.raises(InputError, match="keeps too little"):
        Percentile(50)


def lose(values, form, low, high):
    """Squared error in fp64, written from the definition of a grid."""
    x = values.astype(np.float64)
    low, high = min(low, 0.0), max(high, 0.0)
    if form.symmetric:
        step, zero = max(-low, high) / form.highest, 0
    else:
        step = (high - low) / form.highest
        zero = np.round(-low / step)
    integers = np.clip(np.round(x / step) + zero, form.lowest, form.highest)
    return np.square((integers - zero) * step - x).mean()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_least_error_of_a_symmetric_grid_is_that_of_brute_force(bits):
    values, form = make_heavy(4000), Format(bits, symmetric=True)
    observer = LeastError(form)
    for batch in np.array_split(values, 3):
        observer.observe(torch.from_numpy(batch))
    low, high = values.min(), values.max()
    tried = [lose(values, form, low * f, high * f) for f in np.linspace(0.01, 1, 100)]
    found = lose(values, form, *(float(x) for x in observer.range()))
    assert found == pytest.approx(min(tried), rel=0.02)
    # The weight's own search sees the values themselves.
    exact = find_weight_range(torch.from_numpy(values)[None], Format(bits, True, "channel"), "mse")
    assert lose(values, form, *(float(x) for x in exact)) == pytest.approx(min(tried), rel=1e-4)


@pytest.mark.parametrize("bits", [3, 4])
def test_least_error_of_two_ends_is_near_that_of_brute_force(bits):
    values = np.abs(make_heavy(2000)) - 0.3  # as after GELU: hardly anything below 0
    form = Format(bits, symmetric=False)
    observer = LeastError(form)
    observer.observe(torch.from_numpy(values))
    low, high = values.min(), values.max()
    fractions = np.linspace(0.02, 1, 50)
    tried = [lose(values, form, low * a, high * b) for a in fractions for b in fractions]
    assert lose(values, form, *(float(x) for x in observer.range())) < 1.05 * min(tried)
    assert lose(values, form, low, high) > 1.2 * min(tried)


def test_rows_and_groups_of_a_weight_are_searched_by_themselves():
    weight = torch.from_numpy(make_heavy(6 * 64)).reshape(6, 64) * torch.arange(1, 7)[:, None]
    for name in ("minmax", "percentile", "mse"):
        form = Format(4, symmetric=False, granularity="channel")
        low, high = find_weight_range(weight, form, name, percentile=90)
        assert low.shape == high.shape == (6, 1)
        for row in range(6):
            alone = find_weight_range(weight[row : row + 1], form, name, percentile=90)
            torch.testing.assert_close((low[row], high[row]), (alone[0][0], alone[1][0]))
        grouped = Format(4, symmetric=False, granularity="group", group_size=16)
        low, high = find_weight_range(weight, grouped, name, percentile=90)
        assert low.shape == (6, 4)
        apart = find_weight_range(weight.reshape(24, 16), form, name, percentile=90)
        torch.testing.assert_close(low.reshape(24, 1), apart[0])
        torch.testing.assert_close(high.reshape(24, 1), apart[1])


def test_percentile_of_a_row_leaves_out_so_many():
    weight = torch.arange(-50.0, 50.0)[None]
    low, high = find_weight_range(weight, Format(8, True, "channel"), "percentile", percentile=90)
    assert (float(low), float(high)) == (-45, 44)


def test_observers_by_name():
    form = Format(8, symmetric=False)
    for name in ("minmax", "running", "percentile", "mse"):
        observer = make_observer(name, form)
        assert observer.range() is None
        observer.observe(torch.tensor([-1.0, 3.0]))
        low, high = observer.range()
        assert float(low) == pytest.approx(-1, rel=0.02)
        assert float(high) == pytest.approx(3, rel=0.02)
    with pytest.raises(InputError, match="'magic' is not known; use one of minmax"):
        make_observer("magic", form)


@pytest.mark.parametrize("name", ["minmax", "running", "percentile", "mse"])
@pytest.mark.parametrize("values", [[0.0, 0.0], [5.0, 5.0], [-2.0], [1e-42]])
def test_degenerate_values(name, values):
    observer = make_observer(name, Format(4, symmetric=False))
    observer.observe(torch.tensor(values))
    low, high = observer.range()
    grid = Format(4, symmetric=False).cover(low, high)
    rounded = grid.round(torch.tensor(values))
    assert rounded.isfinite().all()
    torch.testing.assert_close(rounded, torch.tensor(values), rtol=1e-3, atol=1e-37)


@pytest.mark.parametrize("name", ["minmax", "running", "percentile", "mse"])
def test_what_is_not_finite_shows(name):
    for bad in (torch.inf, -torch.inf, torch.nan):
        observer = make_observer(name, Format(4, symmetric=False))
        observer.observe(torch.tensor([1.0, bad]))
        assert not torch.stack(observer.range()).isfinite().all()
