"""Schemes that the engine cannot run are refused with the reason and the remedy."""

from dataclasses import replace

import pytest

from frugalfm.deployment.support import choose_method, fit_options, plan_execution
from frugalfm.errors import InputError
from frugalfm.quantization import METHODS, Format, QuantizationPlan, Scheme

W8 = Format(8, symmetric=True, granularity="channel")
A8 = Format(8, symmetric=False)
GROUPED = Format(4, True, "group", 32)
LEVELS = Format(4, True, levels=(-1.0, 0.0, 1.0))
PLAIN = Scheme("minmax", W8, A8, (), {}, {}, {})


@pytest.mark.parametrize(
    ("changes", "execution"),
    [
        ({}, "static"),
        ({"activations": None}, "weight-only"),
        ({"activations": None, "weights": GROUPED}, "weight-only"),
        ({"activations": None, "weights": Format(3, False, "channel")}, "weight-only"),
        ({"weights": Format(4, True, "channel")}, "static"),
        ({"activations": Format(8, True)}, "static"),
        ({"activations": Format(8, False, "token")}, "dynamic"),
        ({"activations": Format(8, True, "token"), "weights": GROUPED}, "dynamic"),
        ({"activations": None, "weights": None}, "float"),
    ],
)  # fmt: skip
def test_what_runs(changes, execution):
    assert plan_execution(replace(PLAIN, **changes)) == execution


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": None}, r"W16A8 \(minmax\) .*--weights 8"),
        ({"weights": Format(12, True)}, r"W12A8 .*12 bits.*--weights 8 or 4"),
        ({"activations": Format(6, False)}, r"W8A6 .*inputs of 6.*--activations 8"),
        ({"activations": Format(8, False, "sequence")}, "sequence.*--activation-granularity"),
        ({"weights": Format(8, True, "group", 32)}, "--weight-granularity channel"),
        ({"weights": Format(8, False)}, "zero points"),
        ({"extent": "attention"}, "--sites linears"),
        ({"weights": LEVELS, "activations": None}, "--method rtn"),
    ],
)  # fmt: skip
def test_what_does_not(changes, message):
    with pytest.raises(InputError, match=message):
        plan_execution(replace(PLAIN, **changes))


def test_none_is_floating_point():
    assert plan_execution(None) == "float"


STATIC = {"activation_granularity": "tensor"}
EXACT = {"rounding": "gptq", "activation_observer": "minmax"}


@pytest.mark.parametrize(
    ("method", "given", "added"),
    [
        ("minmax", {}, STATIC | EXACT),
        ("smoothquant", {}, STATIC | EXACT | {"alpha": "search"}),
        ("smoothquant", {"alpha": 0.3, "rounding": "nearest"},
         STATIC | {"activation_observer": "minmax"}),
        ("smoothquant", {"activation_granularity": "token"},
         {"rounding": "gptq", "alpha": "search"}),
        ("smoothquant", {"activations": 16}, STATIC | {"rounding": "gptq"}),
        ("minmax", {"weights": 16, "activations": 16}, STATIC),
        ("outlier-suppression", {}, STATIC | {"rounding": "gptq"}),
        ("omniquant", {"alpha": None}, STATIC | {"rounding": "gptq"}),
        ("gptq", {}, STATIC),
        ("gptq", {"activations": 8}, STATIC | {"activation_observer": "minmax"}),
        ("rtn", {}, {}),
    ],
)  # fmt: skip
def test_what_is_left_open_is_filled_in(method, given, added):
    kept = {name: value for name, value in given.items() if value is not None}
    found = fit_options(method, given)
    assert found == kept | added
    QuantizationPlan(method, found)


def test_every_method_can_be_fitted():
    for method in METHODS:
        QuantizationPlan(method, fit_options(method, {}))


@pytest.mark.parametrize(
    ("given", "method"),
    [
        ({}, "smoothquant"),
        ({"weights": None, "activations": 8}, "smoothquant"),
        ({"weights": 7}, "smoothquant"),
        ({"activations": 16}, "minmax"),
        ({"weights": 16, "activations": 16}, "minmax"),
    ],
)
def test_the_method_that_is_left_open(given, method):
    assert choose_method(given) == method
