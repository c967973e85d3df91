"""Grids against numpy in fp64: half a step, zero, idempotence, degenerate ranges."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frugalfm.errors import InputError
from frugalfm.quantization.quantizers import (
    Format,
    Grid,
    fake_quantize,
    make_input_format,
    make_weight_format,
)

BITS = st.integers(2, 16)
VALUES = st.lists(
    st.floats(-1e6, 1e6, width=32, allow_subnormal=False), min_size=1, max_size=40
).map(lambda x: torch.tensor(x, dtype=torch.float32))


def oracle(values, bits, symmetric):
    """Nearest point of the grid that spans all values, written in fp64 from the definition."""
    x = values.numpy().astype(np.float64)
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        step = max(-low, high) / top
        points = np.arange(-top, top + 1)
    else:
        step = (high - low) / (2**bits - 1)
        points = np.arange(2**bits) - (np.round(-low / step) if step else 0)
    return x, step, points * step


@given(VALUES, BITS, st.booleans())
def test_error_is_at_most_half_a_step(values, bits, symmetric):
    form = Format(bits, symmetric)
    grid = form.cover(*values.aminmax())
    rounded = grid.round(values)
    x, step, _ = oracle(values, bits, symmetric)
    size = np.abs(x).max()
    assert float(grid.scale) == pytest.approx(step, rel=1e-6, abs=1e-37)
    error = np.abs(rounded.numpy().astype(np.float64) - x)
    assert error.max() <= step / 2 + 1e-6 * size + 1e-37
    assert not grid.clips(torch.zeros(1)).any()


@given(VALUES, st.integers(2, 8), st.booleans())
def test_values_land_on_the_oracles_grid(values, bits, symmetric):
    rounded = fake_quantize(values, Format(bits, symmetric).cover(*values.aminmax()))
    _, step, points = oracle(values, bits, symmetric)
    distance = np.abs(rounded.numpy().astype(np.float64)[:, None] - points[None, :]).min(1)
    # A zero point at a tie may be rounded either way: a whole step then, on the same lattice.
    assert distance.max() <= step * 1.001 + 1e-37
    lattice = rounded.numpy().astype(np.float64) / step if step else np.zeros(1)
    assert np.abs(lattice - np.round(lattice)).max() < 1e-3
    assert len(np.unique(rounded)) <= 2**bits


@given(VALUES, BITS, st.booleans())
def test_rounding_twice_changes_nothing_and_zero_stays(values, bits, symmetric):
    grid = Format(bits, symmetric).cover(*values.aminmax())
    once = grid.round(values)
    assert torch.equal(grid.round(once), once)
    assert torch.equal(grid.round(torch.zeros(3)), torch.zeros(3))
    if symmetric:
        assert int(grid.zero_point) == 0
        assert torch.equal(grid.round(-values), -once)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("constant", [0.0, 3.0, -2.5, 1e-30, -1e-44, 3e38])
def test_degenerate_ranges_give_no_nan(constant, symmetric):
    values = torch.full((4,), constant)
    for bits in (2, 8, 16):
        grid = Format(bits, symmetric).cover(*values.aminmax())
        rounded = grid.round(values)
        assert rounded.isfinite().all()
        assert torch.allclose(rounded, values, rtol=1e-5, atol=1e-37)


def test_extreme_range_does_not_overflow():
    values = torch.tensor([-3e38, 0.0, 3e38])
    grid = Format(8, symmetric=False).cover(*values.aminmax())
    assert grid.scale.isfinite()
    assert torch.allclose(grid.round(values), values, rtol=0.01)


def test_outside_values_go_to_the_ends_and_are_counted():
    grid = Format(4, symmetric=True).cover(torch.tensor(-7.0), torch.tensor(7.0))
    values = torch.tensor([-100.0, -7.4, -7.0, 0.2, 7.4, 7.6])
    assert grid.round(values).tolist() == [-7, -7, -7, 0, 7, 7]
    assert grid.clips(values).tolist() == [True, False, False, False, False, True]


def test_each_channel_and_each_token_has_its_own_grid():
    values = torch.tensor([[1.0, -0.5, 0.3], [1000.0, -300.0, 10.0], [0.0, 0.0, 0.0]])
    for granularity, symmetric in (("channel", True), ("token", False)):
        form = Format(8, symmetric, granularity)
        whole = fake_quantize(values, form)
        rows = [fake_quantize(row, Format(8, symmetric).cover(*row.aminmax())) for row in values]
        assert torch.equal(whole, torch.stack(rows))
    assert Format(8, symmetric=False, granularity="token").dynamic
    assert fake_quantize(values, None) is values


def test_dynamic_rounding_of_one_token_ignores_the_others():
    form = Format(4, symmetric=False, granularity="token")
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    whole = fake_quantize(x, form)
    x[1] *= 1000
    assert torch.equal(fake_quantize(x, form)[0], whole[0])


def test_integers_are_within_the_format():
    values = torch.linspace(-3, 5, 999)
    for bits in (2, 3, 8, 16):
        form = Format(bits, symmetric=False)
        integers = form.cover(*values.aminmax()).to_integers(values)
        assert form.lowest <= integers.min() <= integers.max() <= form.highest + 1
        assert (form.lowest, form.highest) == (0, 2**bits - 1)
        assert Format(bits, symmetric=True).lowest == -Format(bits, symmetric=True).highest


def test_bad_formats_are_refused():
    for bits in (1, 17):
        with pytest.raises(InputError, match="2 to 16"):
            Format(bits, symmetric=True)
    with pytest.raises(InputError, match="use one of tensor, channel, group, token"):
        Format(8, symmetric=True, granularity="row")


def test_grid_moves():
    grid = Format(8, symmetric=True).cover(torch.tensor(-1.0), torch.tensor(1.0))
    moved = grid.to(torch.device("cpu"))
    assert isinstance(moved, Grid)
    assert moved.format == grid.format


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 9), st.integers(2, 8), st.booleans())
def test_groups_are_the_rows_of_the_reshaped_weight(rows, groups, size, bits, symmetric):
    weight = torch.randn(rows, groups * size, generator=torch.Generator().manual_seed(rows))
    form = Format(bits, symmetric, "group", size)
    grid = form.cover(*form.find_range(weight))
    assert grid.scale.shape == grid.zero_point.shape == (rows, groups)
    apart = weight.reshape(-1, size)
    channel = Format(bits, symmetric, "channel")
    other = channel.cover(*channel.find_range(apart))
    assert torch.equal(grid.scale.reshape(-1, 1), other.scale)
    assert torch.equal(grid.round(weight).reshape(-1, size), other.round(apart))
    assert torch.equal(grid.to_integers(weight).reshape(-1, size), other.to_integers(apart))
    assert torch.equal(grid.clips(weight * 2).reshape(-1, size), other.clips(apart * 2))
    step = grid.scale.repeat_interleave(size, -1)
    assert ((grid.round(weight) - weight).abs() <= step / 2 * 1.0001).all()
    assert torch.equal(grid.round(grid.round(weight)), grid.round(weight))


def test_a_group_that_is_not_full_is_refused():
    form = Format(4, True, "group", 32)
    with pytest.raises(InputError, match="48 inputs do not divide into groups of 32"):
        form.find_range(torch.zeros(2, 48))
    for size, granularity in ((None, "group"), (32, "channel"), (0, "group")):
        with pytest.raises(InputError, match=r"group"):
            Format(4, True, granularity, size)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_torch_rounds_alike(bits, symmetric):
    """Against torch's own fake quantization, but where both sides of a tie are right."""
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(16, 24, generator=generator) * torch.linspace(0.1, 9, 16)[:, None]
    form = Format(bits, symmetric, "channel")
    grid = form.cover(*form.find_range(weight))
    expected = torch.fake_quantize_per_channel_affine(
        weight, grid.scale[:, 0], grid.zero_point[:, 0], 0, form.lowest, form.highest
    )
    assert (torch.isclose(grid.round(weight), expected, atol=1e-6)).float().mean() > 0.99
    whole = Format(bits, symmetric)
    one = whole.cover(*whole.find_range(weight))
    expected = torch.fake_quantize_per_tensor_affine(
        weight, float(one.scale), int(one.zero_point), form.lowest, form.highest
    )
    assert (torch.isclose(one.round(weight), expected, atol=1e-6)).float().mean() > 0.99
    if symmetric and bits == 8:
        real = torch.quantize_per_channel(
            weight, grid.scale[:, 0].double(), grid.zero_point[:, 0], 0, torch.qint8
        )
        same = real.int_repr() == grid.to_integers(weight).int()
        assert same.float().mean() > 0.99


@given(st.integers(1, 4), st.integers(1, 6), st.integers(2, 8), st.booleans())
def test_a_sequence_has_one_grid_whatever_its_pads(batch, width, bits, symmetric):
    x = torch.randn(batch, width, 5, generator=torch.Generator().manual_seed(width))
    form = Format(bits, symmetric, "sequence")
    padded = torch.cat([x, 1000 * torch.ones(batch, 2, 5)], 1)
    pads = torch.arange(width + 2)[None, :, None] >= width
    found = fake_quantize(padded, form, pads)[:, :width]
    whole = Format(bits, symmetric)
    for row, values in zip(found, x, strict=True):
        assert torch.equal(row, whole.cover(*values.aminmax()).round(values))
    assert form.dynamic


def test_levels_are_the_nearest_of_a_table():
    levels = (-1.0, -0.4, 0.0, 0.1, 1.0)
    form = Format(3, True, "channel", levels=levels)
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    grid = form.cover(*form.find_range(weight))
    scale = weight.abs().amax(-1, keepdim=True)
    torch.testing.assert_close(grid.scale, scale)
    points = (torch.tensor(levels) * scale[..., None]).double().expand(6, 40, 5)
    nearest = (weight[..., None].double() - points).abs().argmin(-1)
    assert torch.equal(grid.to_integers(weight).long(), nearest)
    torch.testing.assert_close(
        grid.round(weight), points.gather(-1, nearest[..., None])[..., 0].float()
    )
    assert torch.equal(grid.to_values(nearest), grid.round(weight))
    assert not grid.clips(weight).any()
    assert grid.clips(weight * 1.01).any()
    for wrong in ((0.0,), (-1.0, 0.5, 1.0), (0.0, -1.0), (-0.5, 0.0, 0.5), tuple(range(9))):
        with pytest.raises(InputError, match="levels"):
            Format(3, True, levels=wrong)


def test_formats_of_weights_and_activations():
    assert make_weight_format(16) is None
    assert make_input_format(16) is None
    assert make_weight_format(4, "group") == Format(4, True, "group", 128)
    assert make_weight_format(4, "group", group_size=32).group_size == 32
    assert make_weight_format(8, symmetric=False) == Format(8, False, "channel")
    assert make_input_format(8, "sequence", symmetric=True) == Format(8, True, "sequence")
    with pytest.raises(InputError, match="not per token"):
        make_weight_format(8, "token")
    with pytest.raises(InputError, match="not per channel"):
        make_input_format(8, "channel")
