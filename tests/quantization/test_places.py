"""Places beyond the linears: in every architecture and attention, with rounding off and on."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from frugalfm.attention import NAMES
from frugalfm.errors import InputError
from frugalfm.quantization import (
    METHODS,
    Settings,
    compare,
    extend_scheme,
    load_scheme,
    save_scheme,
    simulate,
    split_batches,
    survey_sites,
)
from frugalfm.quantization.ranges import cover_weights
from frugalfm.quantization.taps import see_sites, tap
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.vocabulary import make_protein_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
from architectures import DESCRIBED, make_mlm

CODEC = Codec.from_tokenizer(make_protein_tokenizer())
OPERANDS = ("query", "key", "probabilities", "value")


@pytest.fixture(scope="module")
def batches():
    random = np.random.default_rng(0)
    sequences = [random.integers(4, 24, random.integers(5, 40)).astype(np.uint8) for _ in range(24)]
    return split_batches(sequences, CODEC, calibration_batches=3, batch_tokens=200)


def run(model, batch):
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return logits[batch.attention_mask.bool()]


def snapshot(model):
    """All that taps and simulations change while they last."""
    config = model.config._attn_implementation
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return dict(model.named_modules()), config, hooks


@pytest.mark.parametrize("kind", DESCRIBED)
@pytest.mark.parametrize("attention", NAMES)
def test_rounding_off_leaves_the_function_unchanged(kind, attention, batches):
    """Attention is computed step by step here, and every site is passed."""
    model = make_mlm(kind, attention=attention)
    batch = batches.evaluation[0]
    expected, before = run(model, batch), snapshot(model)
    sites = [site for site in survey_sites(model, "all", tables=True).sites if site.kind != "table"]
    seen = {}

    def visit(site, values):
        seen[site.name] = values.shape
        return values

    with tap(model, sites, visit) as taps:
        found = run(model, batch)
        taps.enable(False)
        assert torch.equal(run(model, batch), expected)
    assert set(seen) == {site.name for site in sites}
    assert (found - expected).norm() < 1e-5 * expected.norm()
    after = snapshot(model)
    assert all(after[0][name] is module for name, module in before[0].items())
    assert after[1:] == before[1:]
    assert torch.equal(run(model, batch), expected)


@pytest.mark.parametrize("kind", DESCRIBED)
def test_every_place_rounds_and_leaves_no_trace(kind, batches):
    model = make_mlm(kind)
    batch = batches.evaluation[0]
    expected, before = run(model, batch), snapshot(model)
    linears = METHODS["minmax"](model, batches.calibration, weights=8, activations=8)
    scheme = extend_scheme(model, batches.calibration, linears, "all", tables=True)
    assert scheme.meaning == "weight-and-activation; sites: all"
    seen = {}
    with simulate(model, scheme) as simulation:
        simulation.watch(lambda name, values: seen.setdefault(name, values.shape))
        rounded = run(model, batch)
        simulation.watch(None)
        simulation.enable(False)
        assert torch.equal(run(model, batch), expected)
        simulation.enable()
        assert torch.equal(run(model, batch), rounded)
    names = {place.name for place in scheme.places if place.kind != "table"}
    assert set(seen) == names | set(scheme.sites)
    assert 1e-4 < (rounded - expected).norm() / expected.norm() < 0.3
    with simulate(model, linears):
        assert not torch.equal(run(model, batch), rounded)
    with pytest.raises(RuntimeError, match="on purpose"), simulate(model, scheme):
        raise RuntimeError("on purpose")
    after = snapshot(model)
    assert all(after[0][name] is module for name, module in before[0].items())
    assert after[1:] == before[1:]
    assert torch.equal(run(model, batch), expected)


@pytest.mark.parametrize("kind", ["dnabert2", "esmc", "modernbert", "rna-fm"])
@pytest.mark.parametrize("granularity", ["tensor", "token", "sequence"])
def test_padding_does_not_matter(kind, granularity, batches):
    model = make_mlm(kind)
    scheme = METHODS["minmax"](
        model, batches.calibration, weights=8, activations=8, activation_granularity=granularity
    )
    scheme = extend_scheme(model, batches.calibration, scheme, "all")
    batch = batches.evaluation[0]
    with simulate(model, scheme) as simulation:
        whole = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        counts = {}
        simulation.watch(lambda name, values: counts.update({name: values.numel()}))
        run(model, batch)
        together = dict(counts)
        alone = dict.fromkeys(together, 0)
        for row, mask in enumerate(batch.attention_mask.bool()):
            kept = batch.input_ids[row][mask][None]
            one = model(input_ids=kept, attention_mask=torch.ones_like(kept)).logits[0]
            gap = (whole[row][mask] - one).norm() / one.norm()
            assert gap < 0.02, row  # noise of fp32 can carry a value over an edge
            for name, count in counts.items():
                alone[name] += count
        assert alone == together


@pytest.mark.parametrize("attention", NAMES)
def test_operands_are_those_of_the_definition(attention, batches):
    """Softmax, softmax_1, sink, clipped and gated in numpy, from the operands that were seen."""
    model = make_mlm("bert", attention=attention)
    if attention == "sink":
        with torch.no_grad():
            for layer in model.bert.encoder.layer:
                layer.attention.self.sink_logit.copy_(torch.tensor([-1.0, 0, 1, 2]))
    name = "bert.encoder.layer.1.attention.self"
    batch = batches.evaluation[0]
    sites = [s for s in survey_sites(model, "attention").places if s.module == name]
    assert [site.role for site in sites] == list(OPERANDS)
    seen = {}

    def visit(site, values):
        seen[site.role] = values.double().numpy()
        return values

    handle = model.get_submodule(name).register_forward_hook(
        lambda m, i, out: seen.update(out=out[0].double().numpy())
    )
    with tap(model, sites, visit):
        run(model, batch)
    handle.remove()
    real = batch.attention_mask.bool().numpy()
    scores = seen["query"] @ seen["key"].swapaxes(-1, -2) / np.sqrt(8)
    powers = np.exp(scores) * real[:, None, None, :]
    sums = powers.sum(-1, keepdims=True)
    if attention == "softmax1":
        sums = sums + 1
    elif attention == "sink":
        sums = sums + np.exp([-1.0, 0, 1, 2])[:, None, None]
    weights = powers / sums
    if attention == "clipped":
        gamma = -4 / real.sum(-1)[:, None, None, None]
        weights = np.clip((1 - gamma) * weights + gamma, 0, 1)
    np.testing.assert_allclose(seen["probabilities"], weights, atol=1e-5)
    if attention != "gated":
        out = (weights @ seen["value"]).swapaxes(1, 2).reshape(*real.shape, -1)
        np.testing.assert_allclose(seen["out"], out, atol=1e-4)


def test_what_is_rounded_is_what_enters_the_products(batches):
    """Four bits of one operand alone change attention as rounding it by hand does."""
    model = make_mlm("dnabert2")
    batch = batches.evaluation[0]
    places = [s for s in survey_sites(model, "attention").places if s.layer == 1]
    scheme = METHODS["minmax"](model, batches.calibration, weights=16, activations=4)
    scheme = extend_scheme(model, batches.calibration, scheme, "attention")
    for place in places:
        grid = scheme.input_grids[place.name]

        def by_hand(site, values, grid=grid):
            scale, zero = float(grid.scale), int(grid.zero_point)
            steps = torch.round(values / scale) + zero
            return (steps.clamp(0, 15) - zero) * scale

        with tap(model, [place], by_hand):
            expected = run(model, batch)
        alone = replace(scheme, sites=(), places=(place,))
        with simulate(model, alone):
            torch.testing.assert_close(run(model, batch), expected)


def test_ranges_leave_out_pads(batches):
    """Probabilities, queries and LayerNorms of pads are never seen."""
    model = make_mlm("esm2")
    sites = survey_sites(model, "all").sites
    batch = batches.calibration[0]
    seen = {}
    see_sites(model, [batch], sites, lambda site, values: seen.update({site.name: values}))
    lengths = batch.attention_mask.sum(1)
    heads, width = 4, 32
    for site in sites:
        values = seen[site.name]
        if site.role == "probabilities":
            assert values.shape == (int(lengths.square().sum()), heads)
            assert values.sum() == pytest.approx(heads * int(lengths.sum()), rel=1e-4)
        elif site.kind == "attention":
            assert values.shape == (int(lengths.sum()), width)
        else:
            assert len(values) == int(lengths.sum())


def test_tables_are_rounded_for_look_up_and_decoder_alike(batches):
    model = make_mlm("bert")
    linears = METHODS["minmax"](model, (), weights=4, activations=16, weight_granularity="channel")
    scheme = extend_scheme(model, (), linears, "linears", tables=True)
    table = model.bert.embeddings.word_embeddings
    batch = batches.evaluation[0]
    with simulate(model, scheme):
        found = run(model, batch)
    weight = table.weight.detach().numpy().astype(np.float64)
    step = np.maximum(np.abs(weight).max(1, keepdims=True), 1e-30) / 7  # the pad's row is zero
    rounded = np.clip(np.round(weight / step), -7, 7) * step
    assert model.cls.predictions.decoder.weight is table.weight
    with simulate(model, linears), torch.no_grad():
        kept = table.weight.clone()
        table.weight.copy_(torch.from_numpy(rounded))
        expected = run(model, batch)
        table.weight.copy_(kept)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert scheme.sites[-1] == "cls.predictions.decoder"
    assert scheme.tables
    with torch.no_grad():
        table.weight[0] += 1
    with pytest.raises(InputError, match="other weights"):
        scheme.check(model)


def test_nothing_is_added_where_nothing_is_rounded(batches):
    model = make_mlm("bert")
    weight_only = METHODS["minmax"](model, (), weights=4, activations=16)
    assert extend_scheme(model, (), weight_only, "all") is weight_only
    activations = METHODS["minmax"](model, batches.calibration, weights=16, activations=8)
    assert extend_scheme(model, (), activations, "linears", tables=True) is activations
    with pytest.raises(InputError, match="give at least one"):
        extend_scheme(model, (), activations, "attention")


def test_a_tables_range_is_what_the_weights_observer_finds():
    """Not the activations' one."""
    model = make_mlm("bert")
    linears = METHODS["minmax"](model, (), weights=4, activations=16, weight_granularity="channel")
    table = "bert.embeddings.word_embeddings.(table)"
    weight = model.bert.embeddings.word_embeddings.weight.detach()
    for name in ("minmax", "mse"):
        settings = Settings(activation_observer="percentile", weight_observer=name)
        found = extend_scheme(model, (), linears, tables=True, settings=settings)
        expected = cover_weights({table: weight}, linears.weights, settings)[table]
        assert torch.equal(found.weight_grids[table].scale, expected.scale)


@pytest.mark.parametrize("kind", ["dnabert2", "esmc"])
@pytest.mark.parametrize("granularity", ["tensor", "sequence"])
def test_saved_places_give_identical_logits(kind, granularity, batches, tmp_path):
    model = make_mlm(kind)
    scheme = METHODS["minmax"](
        model,
        batches.calibration,
        weight_granularity="group",
        group_size=16,
        activation_granularity=granularity,
        symmetric_activations=True,
    )
    settings = Settings(activation_observer="percentile")
    scheme = extend_scheme(
        model, batches.calibration, scheme, "all", tables=True, settings=settings
    )
    save_scheme(scheme, tmp_path)
    again = load_scheme(tmp_path)
    assert (again.places, again.extent, again.weights) == (
        scheme.places, "all", scheme.weights,
    )  # fmt: skip
    assert again.weight_hashes == scheme.weight_hashes
    batch = batches.evaluation[0]
    with simulate(model, scheme):
        first = run(model, batch)
    with simulate(model, again):
        assert torch.equal(run(model, batch), first)


def test_saturation_and_infinities_name_the_place(batches):
    model = make_mlm("dnabert2")
    norm = model.bert.encoder.layer[1].mlp.layernorm
    with torch.no_grad():
        norm.weight /= 10
        norm.bias /= 10
    linears = METHODS["minmax"](model, batches.calibration)
    scheme = extend_scheme(model, batches.calibration, linears, "all")
    with torch.no_grad():
        norm.weight *= 10
        norm.bias *= 10
    found = compare(model, scheme, batches.evaluation)
    place = "bert.encoder.layer.1.mlp.layernorm.(output)"
    assert place in found.saturating
    assert found.saturation[place] == found.saturating[place] > 0.5
    sound = extend_scheme(
        model, batches.calibration, METHODS["minmax"](model, batches.calibration), "all"
    )
    assert not compare(model, sound, batches.evaluation).saturating
    with torch.no_grad():
        model.bert.encoder.layer[1].mlp.wo.bias[0] = torch.inf
    with pytest.raises(InputError, match=r"layer\.1\.mlp\.layernorm\.\(input\) is not finite"):
        extend_scheme(model, batches.calibration, linears, "all")


@pytest.mark.parametrize("kind", ["bert", "dnabert2", "nomic_bert"])
def test_one_rounding_serves_a_norms_readers_and_the_residual(kind, batches):
    """Post-LN: what the linears read is on their grid already."""
    model = make_mlm(kind)
    linears = METHODS["minmax"](model, batches.calibration, weights=16, activations=6)
    scheme = extend_scheme(model, batches.calibration, linears, "all")
    shared = {p.name: p.feeds for p in scheme.places if p.role == "norm" and p.feeds}
    readers = {name for feeds in shared.values() for name in feeds if name.count(".layer") == 1}
    seen = {}
    with simulate(model, scheme) as simulation:
        simulation.watch(lambda name, values: seen.update({name: values}))
        run(model, batches.evaluation[0])
    for name in readers:
        torch.testing.assert_close(scheme.input_grids[name].round(seen[name]), seen[name])
    assert len(readers) >= 6


def test_values_that_are_not_finite_under_quantization_name_the_site(batches):
    """Finite before: a grid that is too coarse for fp32 is what makes them infinite."""
    model = make_mlm("bert")
    scheme = METHODS["minmax"](model, batches.calibration, weights=16)
    name = scheme.sites[3]
    grid = scheme.input_grids[name]
    broken = replace(grid, scale=torch.tensor(torch.inf))
    scheme = replace(scheme, input_grids=scheme.input_grids | {name: broken})
    with pytest.raises(InputError, match="is not finite under quantization"):
        compare(model, scheme, batches.evaluation)
    assert isinstance(model.get_submodule(name), torch.nn.Linear)
