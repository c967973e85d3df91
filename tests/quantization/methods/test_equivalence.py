"""Before anything is rounded, every method leaves every architecture's function as it was."""

import pytest
import torch
from planting import DESCRIBED, list_readers, make_mlm, make_split, plant_outliers, run

from frugalfm.quantization import METHODS, Settings, extend_scheme, simulate
from frugalfm.quantization.methods.capture import capture_inputs
from frugalfm.quantization.methods.groups import find_feeding_norms, input_groups
from frugalfm.quantization.sites import survey_sites

HEADS = ("lm_head", "cls", "head")
TRIED = {name: METHODS[name] for name in METHODS if name not in {"omniquant", "rtn"}} | {
    "smoothquant-search": lambda *a, **k: METHODS["smoothquant"](*a, alpha="search", **k),
}


@pytest.mark.parametrize("planted", [False, True], ids=["plain", "planted"])
@pytest.mark.parametrize("kind", DESCRIBED)
def test_without_rounding_nothing_changes(kind, planted):
    model = make_mlm(kind)
    if planted:
        plant_outliers(model)
    split = make_split()
    batch = split.evaluation[0]
    expected = run(model, batch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for name, method in TRIED.items():
        scheme = method(model, split.calibration, weights=16, activations=16)
        with simulate(model, scheme):
            gap = (run(model, batch) - expected).norm() / expected.norm()
        assert gap < 1e-5, name
        transformed = name in {"smoothquant", "outlier-suppression"}
        assert bool(scheme.transforms) == transformed or name == "smoothquant-search"
        if name == "smoothquant":
            assert set(scheme.transforms) == set(scheme.sites)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(run(model, batch), expected)


@pytest.mark.parametrize("kind", DESCRIBED)
def test_groups_are_what_the_model_reads(kind):
    """Linears of a group read one tensor, those of two groups never do."""
    model = make_mlm(kind)
    batch = make_split().evaluation[0]
    survey = survey_sites(model)
    groups = input_groups(survey)
    assert [s for g in groups for s in g.sites] == [site.name for site in survey.linears]
    seen = {}
    handles = [
        model.get_submodule(site.name).register_forward_pre_hook(
            lambda _, inputs, name=site.name: seen.update({name: inputs[0]})
        )
        for site in survey.linears
    ]
    run(model, batch)
    for handle in handles:
        handle.remove()
    for group in groups:
        assert all(seen[site] is seen[group.first] for site in group.sites)
    assert len({id(tensor) for tensor in seen.values()}) == len(groups)


@pytest.mark.parametrize("kind", DESCRIBED)
def test_norms_that_feed_linears(kind):
    """Found by running the model; the catalogue says the same of the layers."""
    model = make_mlm(kind)
    groups = input_groups(survey_sites(model))
    found = find_feeding_norms(model, make_split().evaluation[0], groups)
    by_norm = {}
    for group, norm in found.items():
        by_norm.setdefault(norm, set()).update(group.sites)
    for norm, readers in list_readers(model):
        assert by_norm[norm] == readers, norm
    for group in groups:
        roles = {site.role for site in survey_sites(model).linears if site.name in group.sites}
        if roles & {"attention_out", "ffn_out"}:
            assert group not in found
        elif group.layer is not None:
            # In a post-LN model the first layer reads the LayerNorm of the embeddings.
            assert group in found
        else:  # The stack's last LayerNorm, or the head's own.
            assert group in found
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_capture_leaves_out_pads():
    """Extremes and samples against sequences run one by one, without pads."""
    model = make_mlm("bert")
    split = make_split()
    groups = input_groups(survey_sites(model))
    captured = capture_inputs(model, split.calibration, groups, tokens=10_000)
    group = groups[2]
    rows = []
    module = model.get_submodule(group.first)
    handle = module.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0][0]))
    for batch in split.calibration:
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
            kept = ids[mask.bool()][None]
            with torch.no_grad():
                model(input_ids=kept, attention_mask=torch.ones_like(kept))
    handle.remove()
    expected = torch.cat(rows)
    seen = captured[group]
    assert len(seen.sample) == len(expected)
    torch.testing.assert_close(seen.largest, expected.abs().amax(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen.sample.norm(), expected.norm(), rtol=1e-4, atol=1e-4)
    few = capture_inputs(model, split.calibration, groups, tokens=30)[group]
    assert len(few.sample) == 30
    again = capture_inputs(model, split.calibration, groups, tokens=30)[group]
    assert torch.equal(few.sample, again.sample)


@pytest.mark.parametrize("kind", DESCRIBED)
@pytest.mark.parametrize("method", ["smoothquant", "outlier-suppression"])
def test_residual_branches_read_what_the_linears_read(kind, method):
    """With all places rounded: a LayerNorm's output is rounded once, scaled, for all branches."""
    model = plant_outliers(make_mlm(kind))
    split = make_split()
    options = {"weights": 16, "activations": 15, "activation_granularity": "tensor"}
    if method == "smoothquant":
        options["activation_observer"] = "minmax"
    scheme = METHODS[method](model, split.calibration, **options)
    scheme = extend_scheme(
        model, split.calibration, scheme, "all", settings=Settings(activation_observer="minmax")
    )
    shared = 0
    for place in scheme.places:
        inner = [s for s in scheme.sites if s in place.feeds and not s.startswith(HEADS)]
        if not place.feeds or len(inner) < len(place.feeds):
            continue
        shared += 1
        for site in place.feeds:
            assert scheme.input_grids[place.name].scale == scheme.input_grids[site].scale
            if site in scheme.transforms:
                one, other = scheme.transforms[place.name], scheme.transforms[site]
                assert torch.equal(one.scale, other.scale)
    assert shared or kind in {"rna-fm", "esm2", "esmc", "modernbert"}  # pre-LN: linears alone
    batch = split.calibration[0]  # nothing of it is clipped
    expected = run(model, batch)
    with simulate(model, scheme):
        seen = {}
        handles = [
            model.get_submodule(site).register_forward_pre_hook(
                lambda _, inputs, site=site: seen.update({site: inputs[0]})
            )
            for place in scheme.places
            for site in place.feeds
        ]
        found = run(model, batch)
        for handle in handles:
            handle.remove()
    # Nothing but rounding to 15 bits: had a branch kept its scale, this would be far off.
    assert (found - expected).norm() < 0.01 * expected.norm()
    for place in scheme.places:
        for site in place.feeds:
            if site.startswith(HEADS):
                continue
            x, grid = seen[site], scheme.input_grids[site]
            transform = scheme.transforms.get(site)
            moved = x if transform is None else transform.on_input(x)
            torch.testing.assert_close(grid.round(moved), moved, rtol=1e-4, atol=1e-6)
