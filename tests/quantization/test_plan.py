"""Options are checked before long work, and mean what the method's own function says."""

import inspect
import json

import pytest
import torch

from frugalfm.errors import InputError
from frugalfm.quantization import (
    METHODS,
    QuantizationPlan,
    compare,
)
from frugalfm.quantization.methods import Method
from frugalfm.quantization.plan import _OPTIONS
from frugalfm.verbs.quantize import quantize

STATIC = {"weight_granularity": "channel", "activation_granularity": "tensor"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_the_shared_options(name):
    method = METHODS[name]
    defaults = method.defaults
    assert {"weights", "weight_granularity"} <= defaults.keys()
    assert not {"model", "batches"} & defaults.keys()
    assert inspect.Parameter.empty not in defaults.values()
    plan = QuantizationPlan(name, {"weights": 4})
    assert plan.settings == defaults | {"weights": 4}
    json.dumps(plan.identity())


def test_defaults_are_those_of_the_papers():
    """Table 3 of GERM for the first; the others as published."""
    settings = {name: QuantizationPlan(name).settings for name in METHODS}
    found = {
        name: (s["weights"], s.get("activations", 16), s["weight_granularity"],
               s.get("activation_granularity"))
        for name, s in settings.items()
    }  # fmt: skip
    assert found["minmax"] == (8, 8, "tensor", "tensor")
    assert found["smoothquant"] == (8, 8, "channel", "token")
    assert found["outlier-suppression"][3] == "tensor"
    assert found["omniquant"] == (8, 8, "channel", "token")
    assert settings["minmax"]["momentum"] == 0.9
    assert settings["smoothquant"]["alpha"] == 0.5
    assert settings["omniquant"]["epochs"] == 10
    assert all(found[name][:2] == (4, 16) for name in ("rtn", "gptq", "nf4"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "magic"}, "--method magic is not known; there are: minmax, smoothquant"),
        ({"sites": "everything"}, "--sites everything: use linears, attention, all"),
        ({"calibration_batches": 0}, "--calibration-batches must be positive"),
        ({"options": {"alpha": 0.3}}, "--alpha does nothing with --method minmax; it takes --weig"),
        ({"method": "rtn", "options": {"activations": 8}}, "--activations does nothing with"),
        # Of what it takes, only what the command line has.
        (
            {"method": "rtn", "options": {"epochs": 3}},
            "it takes --weights, --weight-granularity, --group-size, --weight-observer, "
            "--percentile$",
        ),
        ({"options": {"weights": 17}}, "--weights 17: use 2 to 15 bits, or 16"),
        ({"options": {"activations": 1}}, "--activations 1"),
        ({"options": {"weight_granularity": "token"}}, "use tensor, channel or group"),
        ({"options": {"activation_granularity": "group"}}, "use tensor, token or sequence"),
        ({"options": {"group_size": 0}}, "--group-size must be positive"),
        (
            {"options": {"group_size": 32, "weight_granularity": "channel"}},
            "--group-size belongs to --weight-granularity group",
        ),
        ({"options": {"weight_observer": "magic"}}, "observer 'magic' is not known"),
        (
            {"options": {"percentile": 10, "weight_observer": "percentile"}},
            "keeps too little",
        ),
        (
            {"options": {"percentile": 99}},
            "no observer is percentile; give --weight-observer percentile or --activation-observer",
        ),
        (
            {"method": "rtn", "options": {"percentile": 99, "weight_observer": "mse"}},
            "give --weight-observer percentile with it",
        ),
        (
            {"options": {"activation_observer": "mse", "activation_granularity": "sequence"}},
            "minmax finds the scale of each sequence as it passes; leave it out, or give "
            "--activation-granularity tensor",
        ),
        (
            {"method": "smoothquant", "options": {"activation_observer": "percentile"}},
            "--activation-observer does nothing here: smoothquant finds the scale of each token",
        ),
        (
            {"method": "nf4", "options": {"activation_observer": "mse"}},
            "--activation-observer does nothing here.*nf4 activations stay.*--activations 8",
        ),
        (
            {"options": {"weights": 16, "weight_observer": "mse"}},
            "--weight-observer does nothing here.*weights stay in floating point",
        ),
        *[
            (
                {"method": name, "sites": sites, "options": options},
                f"--sites {sites} does nothing here.*{name} they stay in floating point; {remedy}",
            )
            for sites in ("attention", "all")
            for name, options, remedy in (
                ("minmax", {"activations": 16}, "leave it out, or give --activations 8"),
                ("gptq", {}, "leave it out, or give --activations 8"),
                ("rtn", {}, "leave it out, or use another method, such as minmax"),
            )
        ],
        (
            {"tables": True, "options": {"weights": 16}},
            "--tables does nothing with --weights 16",
        ),
        (
            {"method": "omniquant", "options": {"alpha": "search"}},
            "--alpha search: --method omniquant starts from one value.*use 0 to 1",
        ),
        (
            {"method": "omniquant", "options": {"alpha": 0.5, "activations": 16}},
            "--alpha does nothing here",
        ),
        ({"method": "omniquant", "options": {"alpha": 1.5}}, r"--alpha 1\.5: use 0 to 1$"),
        (
            {"method": "smoothquant", "options": {"alpha": -0.1}},
            r"--alpha -0\.1: use 0 to 1, or search",
        ),
        (
            {"method": "smoothquant", "options": {"alpha": float("nan")}},
            "--alpha nan: use 0 to 1, or search",
        ),
        ({"method": "omniquant", "options": {"epochs": -3}}, "--epochs -3: use 0"),
    ],
)
def test_bad_options_are_refused(given, words):
    with pytest.raises(InputError, match=words):
        QuantizationPlan(**given)


def test_what_has_an_effect_is_taken():
    for name, options in (
        ("smoothquant", {"alpha": "search"}),
        ("omniquant", {"alpha": 0, "epochs": 0}),
        ("gptq", {"activations": 8}),
    ):
        assert QuantizationPlan(name, options, sites="all", tables=True).options == options
    QuantizationPlan("rtn", tables=True)


def test_the_command_line_has_the_options_that_messages_name():
    parameters = inspect.signature(quantize).parameters
    assert set(_OPTIONS) <= parameters.keys()
    for method in METHODS.values():
        assert parameters.keys() & method.defaults.keys() <= set(_OPTIONS)


def test_what_was_made_before_methods_took_a_percentile_is_the_same_call():
    assert QuantizationPlan().identity()["percentile"] == 99.99
    assert "percentile" not in QuantizationPlan("smoothquant").identity()
    cut = QuantizationPlan("smoothquant", {"weight_observer": "percentile"})
    assert cut.identity()["percentile"] == 99.99


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gptq", {}),
        ("nf4", {}),
        ("smoothquant", {"alpha": 0.5}),
        ("outlier-suppression", {"migrate": "never"}),
    ],
)
def test_every_method_that_takes_observers_hands_them_the_percentile(name, options, model, split):
    """Ranges are those that min-max finds of the same weights and inputs."""
    widths = {"weights": 4, "activations": 8} | STATIC
    observers = {
        option: "percentile"
        for option in ("weight_observer", "activation_observer")
        if option in METHODS[name].defaults
    }
    expected = {
        percentile: METHODS["minmax"](
            model,
            split.calibration[:2],
            **widths,
            weight_observer="percentile",
            activation_observer="percentile",
            percentile=percentile,
        )
        for percentile in (80, 99.99)
    }
    given = widths | options | observers | {"percentile": 80}
    found = QuantizationPlan(name, given).find_scheme(model, split.calibration[:2])
    other = QuantizationPlan(name, given | {"percentile": 99.99}).find_scheme(
        model, split.calibration[:2]
    )
    for site in found.sites:
        for option, grids in (("weight_observer", "weight_grids"),
                              ("activation_observer", "input_grids")):  # fmt: skip
            if option not in observers:
                continue
            one, two = (getattr(scheme, grids)[site].scale for scheme in (found, other))
            assert not torch.equal(one, two)
            if name != "smoothquant":
                for percentile, scale in ((80, one), (99.99, two)):
                    assert torch.equal(getattr(expected[percentile], grids)[site].scale, scale)


def test_none_is_not_given_and_a_group_size_implies_groups():
    plan = QuantizationPlan(options={"weights": None, "group_size": 32})
    assert plan.options == {"group_size": 32, "weight_granularity": "group"}
    assert QuantizationPlan("rtn", {"activations": 16}).options == {}


def test_a_plan_finds_what_the_function_does(model, split):
    options = {"weights": 5, "activations": 7, "activation_observer": "mse"}
    found = QuantizationPlan(options=options).find_scheme(model, split.calibration[:2])
    expected = METHODS["minmax"](model, split.calibration[:2], **options)
    assert (found.label, found.sites, found.method) == ("W5A7", expected.sites, "minmax")
    for name, grid in expected.input_grids.items():
        assert torch.equal(found.input_grids[name].scale, grid.scale)
    wide = QuantizationPlan(options=options, sites="attention")
    assert wide.find_scheme(model, split.calibration[:2]).extent == "attention"


def test_rounding_to_nearest_needs_no_data(model):
    found = QuantizationPlan("rtn", {"group_size": 64}).find_scheme(model, ())
    assert (found.label, found.method) == ("W4A16", "rtn")
    assert found.weights.group_size == 64
    expected = METHODS["rtn"](model, group_size=64)
    name = found.sites[0]
    assert torch.equal(found.weight_grids[name].scale, expected.weight_grids[name].scale)
    with pytest.raises(InputError, match=r"query: 128 inputs do not divide into groups of 48"):
        METHODS["rtn"](model, group_size=48)


def test_a_method_that_is_not_there_is_an_error_one_can_read():
    with pytest.raises(InputError, match="cannot be used here"):
        Method("nowhere", "quantize_nowhere", "").defaults  # noqa: B018


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_extended_to_all_places(name, model, split):
    """Whatever finds the linears' grids, the rest of the model is rounded beside them."""
    options = {"epochs": 1} if name == "omniquant" else {}
    options |= {} if name == "rtn" else {"activations": 8}
    sites = "linears" if name == "rtn" else "all"
    plan = QuantizationPlan(name, options, sites=sites, tables=True)
    scheme = plan.find_scheme(model, split.calibration[:2])
    assert scheme.method == name
    assert scheme.tables
    assert scheme.extent == sites
    found = compare(model, scheme, split.evaluation[:2])
    assert abs(found.increase) < 0.3
    assert found.output_error < 0.3
