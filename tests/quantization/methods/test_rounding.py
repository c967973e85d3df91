"""GPTQ rounds the weights of any scheme: its grids stay, its transforms and inputs count."""

import numpy as np
import pytest
import torch
from planting import make_mlm, make_split, output_error, plant_outliers, run

from frugalfm.errors import InputError
from frugalfm.quantization import METHODS, QuantizationPlan, load_scheme, save_scheme, simulate
from frugalfm.quantization.methods.rounding import round_columns, round_weights

STATIC = {"weight_granularity": "channel", "activation_granularity": "tensor"}
TRIED = ("minmax", "smoothquant", "outlier-suppression", "omniquant", "nf4")


def read_inputs(model, site, batches):
    """Real tokens that a linear reads, every sequence run by itself, without pads."""
    seen = []
    handle = model.get_submodule(site).register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0][0])
    )
    for batch in batches:
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
            kept = ids[mask.bool()][None]
            with torch.no_grad():
                model(input_ids=kept, attention_mask=torch.ones_like(kept))
    handle.remove()
    return torch.cat(seen).double().numpy()


@pytest.mark.parametrize("kind", ["rna-fm", "dnabert2"])
def test_what_the_linear_multiplies_decides(kind):
    """Integers are those of the Hessian of transformed, rounded inputs; the rest is unchanged."""
    model = plant_outliers(make_mlm(kind))
    batches = make_split().calibration
    options = {"weights": 4, "activations": 6, "activation_observer": "minmax"} | STATIC
    nearest = METHODS["smoothquant"](model, batches, **options)
    found = METHODS["smoothquant"](model, batches, rounding="gptq", **options)
    assert not nearest.integers
    assert set(found.integers) == set(found.sites)
    for site in (found.sites[0], found.sites[-2]):
        transform, grid = found.transforms[site], found.input_grids[site]
        assert torch.equal(transform.scale, nearest.transforms[site].scale)
        assert torch.equal(found.weight_grids[site].scale, nearest.weight_grids[site].scale)
        x = read_inputs(model, site, batches) / transform.scale.double().numpy()
        step, zero = float(grid.scale), int(grid.zero_point)
        x = (np.clip(np.round(x / step) + zero, 0, 63) - zero) * step
        hessian = torch.from_numpy(x.T @ x)
        weight = model.get_submodule(site).weight.detach() * transform.scale
        expected = round_columns(weight, found.weight_grids[site], hessian)
        # Sums in another order turn a few numbers that lie half way.
        assert (found.integers[site] != expected).double().mean() < 0.02


@pytest.mark.parametrize("name", TRIED)
def test_every_method_gains(name, tmp_path):
    """With weights of 4 bits; and nothing changes where nothing is rounded."""
    model = plant_outliers(make_mlm("bert"))
    split = make_split(120, 8)
    options = {"weights": 4, "activations": 16, "weight_granularity": "channel"}
    if name == "omniquant":
        options["epochs"] = 1
    schemes = [
        METHODS[name](model, split.calibration, rounding=rounding, **options)
        for rounding in ("gptq", "nearest")
    ]
    errors = [output_error(model, scheme, split.evaluation) for scheme in schemes]
    assert errors[0] < 0.9 * errors[1]
    save_scheme(schemes[0], tmp_path)
    assert output_error(model, load_scheme(tmp_path), split.evaluation) == errors[0]
    off = METHODS[name](model, split.calibration, rounding="gptq", **options | {"weights": 16})
    assert not off.integers
    batch = split.evaluation[0]
    expected = run(model, batch)
    with simulate(model, off):
        assert (run(model, batch) - expected).norm() < 1e-5 * expected.norm()


def test_options():
    model, batches = make_mlm("bert"), make_split().calibration
    with pytest.raises(InputError, match="rounding 'up' is not known; use nearest, gptq"):
        METHODS["minmax"](model, batches, rounding="up")
    with pytest.raises(InputError, match="--rounding up: use nearest or gptq"):
        QuantizationPlan("minmax", {"rounding": "up"})
    with pytest.raises(InputError, match="--rounding gptq does nothing here: weights stay"):
        QuantizationPlan("minmax", {"rounding": "gptq", "weights": 16})
    for name in ("gptq", "rtn"):
        with pytest.raises(InputError, match=f"--rounding does nothing with --method {name}"):
            QuantizationPlan(name, {"rounding": "gptq"})
    with pytest.raises(InputError, match="no calibration batch"):
        round_weights(model, (), METHODS["minmax"](model, (), activations=16))


def test_what_was_made_before_is_the_same_call():
    assert "rounding" not in QuantizationPlan("smoothquant").identity()
    assert "rounding" not in QuantizationPlan("minmax", {"rounding": "nearest"}).identity()
    assert QuantizationPlan("minmax", {"rounding": "gptq"}).identity()["rounding"] == "gptq"
