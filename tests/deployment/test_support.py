"""Schemes that the engine cannot run are refused with the reason and the remedy."""

from dataclasses import replace

import pytest

from frugalfm.deployment.support import plan_execution
from frugalfm.errors import InputError
from frugalfm.quantization import Format, Scheme

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
