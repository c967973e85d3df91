"""Simulation rounds what it should, leaves no trace, and a saved scheme does the same."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from frugalfm.errors import InputError
from frugalfm.quantization import (
    METHODS,
    ChannelTransform,
    Format,
    compare,
    extend_scheme,
    load_scheme,
    save_scheme,
    simulate,
)
from frugalfm.quantization.simulate import SimulatedLinear


def round_by_hand(x, scale, zero, low, high):
    return (np.clip(np.round(x / scale) + zero, low, high) - zero) * scale


def test_one_site_computes_the_product_of_rounded_operands(model, split, run):
    scheme = METHODS["minmax"](model, split.calibration, weights=5, activations=6)
    name = "esm.encoder.layer.0.attention.self.query"
    linear = model.get_submodule(name)
    seen = {}
    with simulate(model, scheme) as simulation:
        simulation.sites[name].register_forward_hook(
            lambda m, i, out: seen.update(x=i[0].double().numpy(), y=out.double().numpy())
        )
        run(model, split.evaluation[0])
    weight, entry = scheme.weight_grids[name], scheme.input_grids[name]
    w = round_by_hand(linear.weight.detach().double().numpy(), float(weight.scale), 0, -15, 15)
    x = round_by_hand(seen["x"], float(entry.scale), int(entry.zero_point), 0, 63)
    expected = x @ w.T + linear.bias.detach().double().numpy()
    # A value at a tie in fp64 may fall either way in fp32.
    close = np.isclose(seen["y"], expected, rtol=1e-4, atol=1e-4)
    assert close.mean() > 0.999


def test_model_is_restored_bit_by_bit(model, split, run):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = dict(model.named_modules())
    logits = run(model, split.evaluation[0])
    scheme = METHODS["minmax"](model, split.calibration, weights=3, activations=3)
    with simulate(model, scheme):
        assert isinstance(model.get_submodule(scheme.sites[0]), SimulatedLinear)
        assert not torch.equal(run(model, split.evaluation[0]), logits)
    with pytest.raises(RuntimeError, match="on purpose"), simulate(model, scheme):
        raise RuntimeError("on purpose")
    after = dict(model.named_modules())
    assert list(after) == list(modules)
    assert all(after[name] is module for name, module in modules.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(run(model, split.evaluation[0]), logits)


def test_quantizers_off_leave_the_function_unchanged(model, split, run):
    scheme = METHODS["minmax"](model, split.calibration, weights=2, activations=2)
    expected = run(model, split.evaluation[0])
    with simulate(model, scheme) as simulation:
        simulation.enable(False)
        off = run(model, split.evaluation[0])
        simulation.enable()
        on = run(model, split.evaluation[0])
    assert torch.equal(off, expected)
    assert (on - expected).norm() > 0.01 * expected.norm()


@pytest.mark.parametrize("granularity", ["tensor", "token"])
def test_padding_and_batching_do_not_matter(model, split, run, granularity):
    scheme = METHODS["minmax"](model, split.calibration, activation_granularity=granularity)
    batch = split.evaluation[0]
    with simulate(model, scheme):
        whole = run(model, batch)
        for row in (0, len(batch.input_ids) - 1):
            kept = batch.input_ids[row][batch.attention_mask[row].bool()][None]
            with torch.no_grad():
                alone = model(input_ids=kept, attention_mask=torch.ones_like(kept)).logits[0]
            # Rounding noise of fp32 can carry a value over an edge; never far.
            gap = (whole[row, : len(alone)] - alone).norm() / alone.norm()
            assert gap < 5e-3


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weights": 4, "activations": 16},
        {"weights": 16, "activations": 5},
        {"weight_granularity": "channel", "activation_granularity": "token", "weights": 3},
    ],
)
def test_saved_scheme_gives_identical_logits(model, split, run, tmp_path, settings):
    scheme = METHODS["minmax"](model, split.calibration, **settings)
    save_scheme(scheme, tmp_path)
    again = load_scheme(tmp_path)
    assert (again.label, again.sites, again.method) == (scheme.label, scheme.sites, "minmax")
    batch = split.evaluation[0]
    with simulate(model, scheme):
        first = run(model, batch)
    with simulate(model, again):
        assert torch.equal(run(model, batch), first)


def test_a_scheme_without_a_version_is_still_read(model, split, run, tmp_path):
    """As schemes were written before there were places: no version, no lists of grids."""
    scheme = METHODS["minmax"](model, split.calibration[:2], weights=5)
    save_scheme(scheme, tmp_path)
    path = tmp_path / "scheme.json"
    content = json.loads(path.read_text())
    assert content["version"] == 2
    for name in ("version", "extent", "places", "weight_grids", "input_grids"):
        del content[name]
    for name in ("weights", "activations"):
        content[name] = {k: content[name][k] for k in ("bits", "symmetric", "granularity")}
    path.write_text(json.dumps(content))
    again = load_scheme(tmp_path)
    with simulate(model, scheme):
        first = run(model, split.evaluation[0])
    with simulate(model, again):
        assert torch.equal(run(model, split.evaluation[0]), first)
    path.write_text(json.dumps(content | {"version": 3}))
    with pytest.raises(InputError, match=r"scheme\.json: is of version 3.* reads up to 2"):
        load_scheme(tmp_path)


def test_transforms_integers_and_levels_are_saved(model, split, run, tmp_path):
    """A shared transform and shared grids too, which safetensors does not take as they are."""
    scheme = METHODS["minmax"](model, split.calibration[:2], weight_granularity="channel")
    name, other = scheme.sites[:2]
    linear = model.get_submodule(name)
    transform = ChannelTransform(torch.rand(128) + 0.5, torch.randn(128))
    weight = transform.on_weight(linear.weight.detach())
    form = Format(3, True, "group", 32, levels=(-1.0, -0.3, 0.0, 0.4, 1.0))
    grid = form.cover(*form.find_range(weight))
    scheme = replace(
        scheme,
        weights=form,
        weight_grids=dict.fromkeys(scheme.sites, grid)
        | {
            site: form.cover(*form.find_range(model.get_submodule(site).weight.detach()))
            for site in scheme.sites[2:]
        },
        input_grids=dict.fromkeys(scheme.sites, scheme.input_grids[name]),
        transforms={name: transform, other: transform},
        integers={name: torch.randint(0, 5, weight.shape, dtype=torch.int16)},
    )
    save_scheme(scheme, tmp_path)
    again = load_scheme(tmp_path)
    assert again.weights == form
    assert torch.equal(again.transforms[other].shift, transform.shift)
    with simulate(model, scheme):
        first = run(model, split.evaluation[0])
    with simulate(model, again):
        assert torch.equal(run(model, split.evaluation[0]), first)


def test_saturation_counts_transformed_values(model, split):
    """A shift moves all values into the grid, or out of it."""
    scheme = METHODS["minmax"](model, split.calibration)
    name = "esm.encoder.layer.1.intermediate.dense"
    far = ChannelTransform(torch.ones(128), torch.full((128,), -1000.0))
    assert not compare(model, scheme, split.evaluation).saturating
    moved = replace(scheme, transforms={name: far})
    worst = next(iter(compare(model, moved, split.evaluation).saturating.items()))
    assert worst == (name, 1.0)


def test_a_norms_output_is_transformed_as_its_readers(model, split, run):
    """One transform for all readers is the output's, too; two different ones are nobody's."""
    norm = "esm.encoder.emb_layer_norm_after.(output)"
    linears = METHODS["minmax"](model, split.calibration)
    transform = ChannelTransform(torch.linspace(0.1, 8, 128), torch.randn(128))
    with_head = replace(linears, transforms={"lm_head.dense": transform})
    scheme = extend_scheme(model, split.calibration, with_head, "all")
    assert torch.equal(scheme.transforms[norm].scale, transform.scale)
    assert norm not in extend_scheme(model, split.calibration, linears, "all").transforms
    seen = []
    with simulate(model, scheme) as simulation:
        simulation.watch(lambda name, values: seen.append(values) if name == norm else None)
        rounded = run(model, split.evaluation[0])
        simulation.enable(False)
        plain = run(model, split.evaluation[0])
    assert (rounded - plain).norm() < 0.2 * plain.norm()
    grid = scheme.input_grids[norm]
    assert not grid.clips(torch.cat(seen)).float().mean() > 0.01


def test_scheme_of_other_weights_is_refused(model, split):
    scheme = METHODS["minmax"](model, split.calibration[:1])
    with torch.no_grad():
        model.get_submodule(scheme.sites[3]).weight[0, 0] += 1e-3
    with (
        pytest.raises(InputError, match=r"attention\.output\.dense differs"),
        simulate(model, scheme),
    ):
        pass
    with pytest.raises(InputError, match="lacks"):
        scheme.check(model.esm)
    afresh = METHODS["minmax"](model, split.calibration[:1])
    with simulate(model, afresh), pytest.raises(InputError, match="no plain linear"):
        afresh.check(model)


def test_damaged_scheme_is_refused(model, split, tmp_path):
    with pytest.raises(InputError, match=r"no scheme\.json"):
        load_scheme(tmp_path)
    save_scheme(METHODS["minmax"](model, split.calibration[:1]), tmp_path)
    tensors = load_file(tmp_path / "scheme.safetensors")
    del tensors["lm_head.dense.input.scale"]
    save_file(tensors, tmp_path / "scheme.safetensors")
    with pytest.raises(InputError, match=r"damaged.*lm_head\.dense\.input\.scale"):
        load_scheme(tmp_path)
    (tmp_path / "scheme.json").write_text(json.dumps({"label": "W8A8"}))
    with pytest.raises(InputError, match="damaged"):
        load_scheme(tmp_path)
