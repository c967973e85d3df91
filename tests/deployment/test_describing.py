"""What is said of a deployed model, and when it is warned of."""

import pytest

from frugalfm.deployment.describing import describe_deployed, find_losses

FOUND = {
    "execution": "static",
    "precision": "bf16",
    "bytes": 2_000_000,
    "bytes_fp32": 8_000_000,
    "smaller": 4.0,
    "kernels": {"u8": 12, "bf16": 2},
    "tables_at_8_bits": [],
    "error_to_scheme": 0.01,
    "error_to_fp32": 0.02,
    "scheme_error": 0.015,
    "agreement_with_scheme": 1.0,
    "agreement_with_fp32": 0.99,
}


def test_a_good_one_is_not_warned_of():
    (line,) = describe_deployed(FOUND)
    assert "2.0 MB, 4.00 times smaller than fp32" in line
    assert "same choice as fp32 99.0%" in line


def test_what_became_larger_is_said_to_be():
    (line,) = describe_deployed(FOUND | {"smaller": 0.48})
    assert "2.1 times larger than fp32" in line
    assert "smaller" not in line


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"error_to_fp32": 0.44, "scheme_error": 0.01}, "0.440, where its scheme makes 0.010"),
        ({"agreement_with_fp32": 0.9}, "decides as fp32 does in 90.0% of cases only"),
        ({"error_to_fp32": 0.59, "scheme_error": 0.0, "execution": "float"}, "--precision fp32"),
    ],
)
def test_losses_are_warned_of(changed, words):
    *_, warning = describe_deployed(FOUND | changed)
    assert warning.startswith("warning: ")
    assert words in warning
    assert "try --precision fp32" in warning


def test_the_remedy_fits():
    *_, warning = describe_deployed(FOUND | {"agreement_with_fp32": 0.5, "precision": "fp32"})
    assert "--precision" not in warning
    assert "--activation-granularity token" in warning
    assert not find_losses(FOUND | {"agreement_with_fp32": None})
    assert not find_losses({"kernels": {}})


def test_the_task_is_put_beside_floating_point_and_the_simulation():
    task = {"metric": "mcc", "value": 0.5, "fp32": 0.75, "simulated": None}
    line = describe_deployed(FOUND | {"task": task})[1]
    assert line == "test mcc of the deployed model 0.5000 (fp32 0.7500, simulated n/a)"
