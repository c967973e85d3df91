"""OmniQuant: equivalent before rounding, better after it, learned from what layers really get."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planting import DESCRIBED, make_mlm, make_split, output_error, plant_outliers, run
from test_heads import CASES, make_model
from torch import nn

from frugalfm.encoders.anatomy import describe_encoder
from frugalfm.errors import InputError
from frugalfm.quantization import METHODS, Settings, simulate, survey_sites
from frugalfm.quantization.methods import learned
from frugalfm.quantization.methods.learned import LearnedClipping, LearnedLinear, LearnedTransform
from frugalfm.quantization.methods.learning import Learning
from frugalfm.quantization.methods.omniquant import fit_omniquant
from frugalfm.quantization.quantizers import Format
from frugalfm.training.data import Batch

COARSE = {"weight_granularity": "tensor", "activation_granularity": "tensor"}
FINE = {"weight_granularity": "channel", "activation_granularity": "token"}


def learn(model, batches, *, epochs=10, lwc_lr=1e-2, let_lr=5e-3, alpha=0.5, **shared):
    learning = Learning(epochs, lwc_lr, let_lr, alpha)
    return fit_omniquant(model, batches, Settings(**shared), learning)


@pytest.fixture(scope="module")
def split():
    return make_split(count=96, calibration_batches=6, batch_tokens=400)


@pytest.fixture(params=["esm2", "dnabert2"])
def planted(request):
    """Pre-LN and post-LN."""
    return plant_outliers(make_mlm(request.param))


def record(model, batches, names):
    """Outputs of modules on real tokens, all batches together, in fp64."""
    seen = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda m, i, out, name=name: seen[name].append(out if torch.is_tensor(out) else out[0])
        )
        for name in names
    ]
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    for handle in handles:
        handle.remove()
    masks = [batch.attention_mask.bool() for batch in batches]
    return {
        name: torch.cat([x[mask] for x, mask in zip(found, masks, strict=True)]).double()
        for name, found in seen.items()
    }


@pytest.mark.parametrize("kind", DESCRIBED)
def test_every_architecture(kind):
    """Transforms alone leave the function; the scheme's errors are those that were reported."""
    model = make_mlm(kind)
    before = copy.deepcopy(model.state_dict())
    split = make_split()
    scheme, fits = learn(model, split.calibration, weights=4, activations=4, epochs=1)
    batch = split.evaluation[0]
    expected = run(model, batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any("forward" in m.__dict__ for m in model.modules())

    assert scheme.transforms
    off = replace(scheme, weights=None, activations=None, weight_grids={}, input_grids={})
    with simulate(model, off):
        torch.testing.assert_close(run(model, batch), expected, rtol=1e-5, atol=2e-5)

    layers = [block.name for block in describe_encoder(model).blocks]
    assert [fit.name for fit in fits[: len(layers)]] == layers
    plain = record(model, split.calibration, layers)
    with simulate(model, scheme):
        rounded = record(model, split.calibration, layers)
    for fit in fits[: len(layers)]:
        error = float((rounded[fit.name] - plain[fit.name]).square().mean())
        assert error == pytest.approx(fit.error, rel=1e-2)  # A tie may fall either way.
    for fit in fits:
        assert set(fit.errors) == {"minmax", "smoothquant", "shifted"}
        assert fit.error <= min(fit.errors.values()) + 1e-12
        assert fit.learned == (fit.error < min(fit.errors.values()))


@pytest.mark.parametrize(("kind", "what"), [case for case in CASES if case[0] != "roberta"])
def test_models_with_a_head(kind, what, split):
    """Where the last layer feeds something other than a masked-language head."""
    model = make_model(kind, what)
    batches = [plain(batch) for batch in split.calibration[:2]]
    scheme, fits = learn(model, batches, weights=4, activations=6, epochs=1)
    survey = survey_sites(model)
    heads = [site.name for site in survey.linears if site.layer is None]
    assert [fit.name for fit in fits[3:]] == heads  # Whatever of the head is quantized.
    assert set(scheme.weight_grids) == set(scheme.sites)
    off = replace(scheme, weights=None, activations=None, weight_grids={}, input_grids={})
    inputs = {"input_ids": batches[0].input_ids, "attention_mask": batches[0].attention_mask}
    with torch.no_grad():
        expected = model(**inputs).logits
        with simulate(model, off):
            found = model(**inputs).logits
        with simulate(model, scheme):
            rounded = model(**inputs).logits
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert (rounded - expected).norm() < expected.norm()


def plain(batch):
    """Of even size, so that its rows make pairs."""
    rows = len(batch.input_ids) // 2 * 2
    return replace(
        batch, **{name: getattr(batch, name)[:rows] for name in ("input_ids", "attention_mask",
                                                                 "labels")}
    )  # fmt: skip


def test_linears_that_read_the_same_share_transform_and_grid():
    model = make_mlm("esmc")
    scheme = METHODS["omniquant"](model, make_split().calibration, epochs=1, **COARSE)
    for block in describe_encoder(model).blocks:
        for names in ((block.query, block.key, block.value), (block.ffn_gate, block.ffn_in)):
            first, *others = names
            for name in others:
                assert torch.equal(scheme.transforms[name].scale, scheme.transforms[first].scale)
                assert torch.equal(scheme.transforms[name].shift, scheme.transforms[first].shift)
                assert torch.equal(scheme.input_grids[name].scale, scheme.input_grids[first].scale)


@pytest.mark.parametrize(
    ("granularity", "bits"),
    [(COARSE, (8, 8)), (COARSE, (6, 6)), (FINE, (4, 8)), (FINE, (4, 4))],
    ids=["W8A8 coarse", "W6A6 coarse", "W4A8", "W4A4"],
)
def test_beats_minmax_on_planted_outliers(planted, split, granularity, bits):
    """To less than half of its error in a pre-LN model; in a post-LN one to less than 0.8."""
    share = 0.5 if describe_encoder(planted).pre_norm else 0.8
    settings = {"weights": bits[0], "activations": bits[1], **granularity}
    plain = METHODS["minmax"](planted, split.calibration, **settings)
    ours = METHODS["omniquant"](planted, split.calibration, **settings, epochs=3)
    errors = [output_error(planted, scheme, split.evaluation) for scheme in (ours, plain)]
    assert errors[0] < share * errors[1]


@pytest.mark.parametrize("bits", [6, 4])
def test_no_worse_than_smoothquant_on_the_calibration_objective(planted, split, bits):
    """The last layer's output, with all layers before it quantized too."""
    last = describe_encoder(planted).blocks[-1].name
    plain = record(planted, split.calibration, [last])[last]
    errors = []
    for method, more in ((METHODS["omniquant"], {"epochs": 3}), (METHODS["smoothquant"], {})):
        scheme = method(planted, split.calibration, weights=bits, activations=bits, **FINE, **more)
        with simulate(planted, scheme):
            found = record(planted, split.calibration, [last])[last]
        errors.append(float((found - plain).square().mean()))
    assert errors[0] < 0.9 * errors[1]


def test_starts_where_minmax_and_smoothquant_end(planted, split):
    """The first layer's errors before learning, against schemes of those methods."""
    first = describe_encoder(planted).blocks[0].name
    plain = record(planted, split.calibration, [first])[first]
    settings = {"weights": 5, "activations": 6, **COARSE}
    _, fits = learn(planted, split.calibration, epochs=0, **settings)
    for name, method in (("minmax", METHODS["minmax"]), ("smoothquant", METHODS["smoothquant"])):
        with simulate(planted, method(planted, split.calibration, **settings)):
            found = record(planted, split.calibration, [first])[first]
        error = float((found - plain).square().mean())
        assert fits[0].errors[name] == pytest.approx(error, rel=1e-3)
    assert not any(fit.learned for fit in fits)


def test_a_hopeless_rate_falls_back_to_the_start(split):
    model = make_mlm("bert")
    _, fits = learn(model, split.calibration, epochs=1, lwc_lr=50.0, let_lr=50.0)
    assert not any(fit.learned for fit in fits)
    assert all(fit.error == min(fit.errors.values()) for fit in fits)


@pytest.mark.parametrize("kind", ["bert", "esmc"])
def test_weight_only_learns_clipping_alone(kind, split):
    model = make_mlm(kind)
    scheme, fits = learn(model, split.calibration, weights=3, activations=16, epochs=8)
    assert scheme.label == "W3A16"
    assert not scheme.transforms
    assert not scheme.input_grids
    assert any(fit.learned for fit in fits)
    plain = METHODS["minmax"](model, (), weights=3, activations=16, weight_granularity="channel")
    for fit in fits:
        for name in (site for site in scheme.sites if site.startswith(fit.name)):
            clipped = scheme.weight_grids[name].scale < plain.weight_grids[name].scale
            assert bool(clipped.all()) == bool(clipped.any()) == fit.learned
    errors = [output_error(model, s, split.evaluation) for s in (scheme, plain)]
    assert errors[0] < errors[1]


def test_activation_only_and_nothing(split):
    model = make_mlm("bert")
    scheme = METHODS["omniquant"](model, split.calibration[:2], weights=16, activations=6, epochs=1)
    assert not scheme.weight_grids
    assert scheme.transforms
    nothing = METHODS["omniquant"](model, (), weights=16, activations=16)
    assert not nothing.quantizes
    batch = split.evaluation[0]
    with simulate(model, nothing):
        found = run(model, batch)
    assert torch.equal(found, run(model, batch))


SEQUENCE = {"activation_granularity": "sequence"}


@pytest.mark.parametrize("granularity", [COARSE, SEQUENCE], ids=["static", "sequence"])
def test_pads_do_not_matter(split, granularity):
    """More pads, with rubbish in them."""
    model = make_mlm("dnabert2")
    batches = split.calibration[:3]
    wider = [
        Batch(
            nn.functional.pad(b.input_ids, (0, 7), value=1),
            nn.functional.pad(b.attention_mask, (0, 7)),
            nn.functional.pad(b.labels, (0, 7), value=-100),
            b.residues,
        )
        for b in batches
    ]
    fits = [learn(model, b, epochs=0, weights=6, **granularity)[1] for b in (batches, wider)]
    for one, other in zip(*fits, strict=True):
        assert one.errors == pytest.approx(other.errors, rel=2e-3)


def test_groups_of_inputs_and_grids_with_zero_points(split):
    model = make_mlm("bert")
    settings = {"weights": 3, "activations": 8, "group_size": 8, "weight_granularity": "group"}
    errors = {}
    for symmetric in (True, False):
        scheme, fits = learn(
            model, split.calibration, epochs=2, symmetric_weights=symmetric, **settings
        )
        plain = METHODS["minmax"](model, split.calibration, symmetric_weights=symmetric, **settings)
        site = scheme.sites[0]
        assert scheme.weight_grids[site].scale.shape == plain.weight_grids[site].scale.shape
        assert any(fit.learned for fit in fits)
        errors[symmetric] = output_error(model, scheme, split.evaluation)
        assert errors[symmetric] < output_error(model, plain, split.evaluation)
    assert errors[False] < errors[True]  # Seven values of three bits, or all eight.


def test_deterministic(split):
    model = make_mlm("bert")
    first, again = (
        METHODS["omniquant"](model, split.calibration[:2], weights=4, epochs=2) for _ in range(2)
    )
    for site in first.sites:
        assert torch.equal(first.weight_grids[site].scale, again.weight_grids[site].scale)
        assert torch.equal(first.transforms[site].scale, again.transforms[site].scale)


def test_faults_are_named(split):
    model = make_mlm("bert")
    with pytest.raises(InputError, match="at least one"):
        METHODS["omniquant"](model, ())
    with pytest.raises(InputError, match="not per token"):
        METHODS["omniquant"](model, split.calibration, weight_granularity="token")
    with pytest.raises(InputError, match="bits are not supported"):
        METHODS["omniquant"](model, split.calibration, weights=1)
    name = "bert.encoder.layer.1.output.dense"
    linear = model.get_submodule(name)
    with torch.no_grad():
        linear.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=f"weight of {name} is not finite"):
        METHODS["omniquant"](model, split.calibration[:1], epochs=1)
    with torch.no_grad():
        linear.weight[0, 0] = 0.0
        linear.bias[0] = torch.inf
    with pytest.raises(InputError, match=r"output of bert\.encoder\.layer\.1 is not finite"):
        METHODS["omniquant"](model, split.calibration[:1], epochs=1)


FORMATS = [
    Format(bits, symmetric, granularity)
    for bits in (2, 4, 8)
    for symmetric in (True, False)
    for granularity in ("tensor", "channel")
] + [Format(3, True, "group", 4), Format(5, False, "group", 2)]


@pytest.mark.parametrize("form", FORMATS, ids=str)
@given(seed=st.integers(0, 10_000), shift=st.floats(-3, 3))
def test_straight_rounding_is_rounding(form, seed, shift):
    values = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed)) + shift
    low, high = form.find_range(values)
    expected = form.cover(low, high).round(values)
    torch.testing.assert_close(
        learned.round_straight(values, form, low, high), expected, rtol=0, atol=1e-5
    )


def round_frozen(values, form, low, high, frozen, key):
    """Round as at the first call: the same rounding errors, the same values clipped."""
    low, high = low.clamp_max(0), high.clamp_min(0)
    if form.symmetric:
        step, zero = torch.maximum(-low, high) / form.highest, torch.zeros_like(low)
    else:
        step = (high - low) / (form.highest - form.lowest)
        exact = -low / step
        zero = exact + frozen.setdefault(f"{key} zero", exact.round() - exact)
    scaled = values / step
    error = frozen.setdefault(f"{key} error", scaled.round() - scaled)
    below = frozen.setdefault(f"{key} below", (scaled.round() + zero).round() < form.lowest)
    above = frozen.setdefault(f"{key} above", (scaled.round() + zero).round() > form.highest)
    integers = scaled + error + zero
    integers = torch.where(below, float(form.lowest), integers)
    integers = torch.where(above, float(form.highest), integers)
    return (integers - zero) * step


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_gradients_are_those_of_the_function_with_frozen_rounding(symmetric, granularity):
    """In fp64, against finite differences of the formulas written down once more."""
    torch.manual_seed(0)
    linear = nn.Linear(6, 4, dtype=torch.float64)
    x = torch.randn(9, 6, dtype=torch.float64) + 0.3
    target = torch.randn(9, 4, dtype=torch.float64)
    transform = LearnedTransform(*(end[None] for end in x.aminmax(dim=0)), momentum=0.9)
    start = torch.randn(6, dtype=torch.float64) / 5
    transform.begin(1 + torch.rand(6, dtype=torch.float64), start)
    weights, inputs = Format(3, symmetric, granularity), Format(4, False, "tensor")
    clipping = LearnedClipping(weights, linear.weight)
    clipping.begin(1.5)
    with torch.no_grad():
        clipping.logits += 0.1 * torch.randn_like(clipping.logits)
    learned = [clipping.logits, transform.log_scale, transform.offset]
    layer = LearnedLinear(linear, transform, clipping, inputs)
    error = (layer(x) - target).square().sum()
    found = torch.autograd.grad(error, learned)

    half = (x.amax(0) - x.amin(0)) / 2
    frozen = {}

    @torch.no_grad()
    def find_error():
        share = clipping.logits.sigmoid()
        scale, shift = transform.log_scale.exp(), start + transform.offset * half
        weight = linear.weight * scale
        low, high = weight.min(), weight.max()
        if granularity == "channel":
            low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        if symmetric:
            high = torch.maximum(-low, high) * share[0]
            low = -high
        else:
            low, high = low * share[1], high * share[0]
        moved = (x - shift) / scale
        out = round_frozen(moved, inputs, moved.min(), moved.max(), frozen, "input")
        out = out @ round_frozen(weight, weights, low, high, frozen, "weight").T
        return float((out + linear.bias + linear.weight @ shift - target).square().sum())

    assert find_error() == pytest.approx(float(error.detach()), rel=1e-12)
    for tensor, gradient in zip(learned, found, strict=True):
        flat = tensor.detach().view(-1)
        for index in range(flat.numel()):
            values = []
            for step in (1e-6, -1e-6):
                flat[index] += step
                values.append(find_error())
                flat[index] -= step
            slope = (values[0] - values[1]) / 2e-6
            assert slope == pytest.approx(float(gradient.view(-1)[index]), rel=1e-5, abs=1e-6)
    assert all(gradient.abs().max() > 1e-3 for gradient in found)
