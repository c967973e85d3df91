"""NF4: its levels by their definition and by bitsandbytes, its error on normal weights."""

import numpy as np
import pytest
import torch
from planting import make_mlm, make_split, output_error
from scipy.stats import norm

from frugalfm.errors import InputError
from frugalfm.quantization import METHODS, load_scheme, save_scheme
from frugalfm.quantization.methods.nf4 import NF4_LEVELS
from frugalfm.quantization.quantizers import Format

FORM = Format(4, True, "group", 64, NF4_LEVELS)


def draw(rows=64, columns=256, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_levels_are_quantiles():
    above = norm.ppf(np.linspace(0.9677083, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(0.9677083, 0.5, 8)[:-1])
    expected = np.sort([*above, 0, *below]) / above.max()
    np.testing.assert_allclose(NF4_LEVELS, expected, atol=1e-6)
    assert NF4_LEVELS[7] == 0


def test_rounding_is_to_the_nearest_level():
    weight = draw()
    grid = FORM.cover(*FORM.find_range(weight))
    groups = weight.double().numpy().reshape(64, 4, 64)
    unit = np.abs(groups).max(-1, keepdims=True)
    levels = np.array(NF4_LEVELS)
    nearest = levels[np.abs(groups[..., None] / unit[..., None] - levels).argmin(-1)] * unit
    np.testing.assert_allclose(grid.round(weight).numpy(), nearest.reshape(64, 256), rtol=1e-6)


def test_against_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = draw()
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    expected = functional.dequantize_4bit(packed, state)
    found = FORM.cover(*FORM.find_range(weight)).round(weight)
    # A value in the middle of two levels may fall either way.
    assert torch.isclose(found, expected, rtol=1e-5, atol=1e-6).float().mean() > 0.999


def test_normal_weights_lose_less():
    """Squared error: measured 0.74 of a uniform grid's, same groups; 0.27 of one grid's in all."""
    weight = draw()
    errors = {}
    for name, form in {
        "nf4": FORM,
        "grouped": Format(4, True, "group", 64),
        "tensor": Format(4, True),
        "nf4 tensor": Format(4, True, "tensor", None, NF4_LEVELS),
    }.items():
        rounded = form.cover(*form.find_range(weight)).round(weight)
        errors[name] = float((rounded - weight).square().mean())
    assert errors["nf4"] < 0.85 * errors["grouped"]
    assert errors["nf4"] < 0.35 * errors["tensor"]
    assert errors["nf4 tensor"] < errors["tensor"]


def test_scheme_of_a_model(tmp_path):
    model = make_mlm("dnabert2")
    split = make_split()
    scheme = METHODS["nf4"](model, (), group_size=16)
    assert scheme.label == "W4A16"
    save_scheme(scheme, tmp_path)
    plain = METHODS["minmax"](model, (), weights=4, activations=16)
    errors = [
        output_error(model, s, split.evaluation) for s in (scheme, load_scheme(tmp_path), plain)
    ]
    assert errors[0] == errors[1]
    assert errors[0] < 0.7 * errors[2]  # measured 0.50
    both = METHODS["nf4"](
        model, split.calibration, activations=8, activation_granularity="tensor", group_size=16
    )
    assert both.label == "W4A8"
    assert set(both.input_grids) == set(both.sites)


def test_faults_are_named():
    model = make_mlm("bert")
    with pytest.raises(InputError, match="4 bits, not 8"):
        METHODS["nf4"](model, (), weights=8)
    with pytest.raises(InputError, match="query: 32 inputs do not divide into groups of 64"):
        METHODS["nf4"](model, (), group_size=64)
    with pytest.raises(InputError, match="at least one"):
        METHODS["nf4"](model, (), group_size=16, activations=8, activation_granularity="tensor")
