"""The size of groups that is left open: as published where that fits, else one that does."""

import pytest
from transformers import EsmConfig, EsmForMaskedLM

from frugalfm.errors import InputError
from frugalfm.quantization import METHODS
from frugalfm.quantization.plan import QuantizationPlan


def make(hidden, intermediate):
    config = EsmConfig(
        vocab_size=33, hidden_size=hidden, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=intermediate, pad_token_id=1, mask_token_id=32,
        position_embedding_type="rotary",
    )  # fmt: skip
    return EsmForMaskedLM(config).eval()


@pytest.mark.parametrize(
    ("method", "hidden", "intermediate", "size"),
    [
        ("rtn", 128, 512, 128),
        ("rtn", 960, 2560, 64),  # ESM-C 300M
        ("rtn", 480, 1920, 32),  # ESM-2 35M
        ("rtn", 320, 1280, 64),  # ESM-2 8M
        ("nf4", 480, 1920, 32),
        ("nf4", 128, 512, 64),
        ("rtn", 128, 160, 32),  # the narrowest decides
        ("nf4", 40, 80, None),
        ("rtn", 40, 80, None),
    ],
)
def test_the_default_fits_every_linear(method, hidden, intermediate, size):
    scheme = QuantizationPlan(method).find_scheme(make(hidden, intermediate), [])
    assert scheme.weights.group_size == size
    assert scheme.weights.granularity == ("channel" if size is None else "group")


def test_a_given_size_that_does_not_fit_names_the_options():
    with pytest.raises(InputError, match=r"--group-size, or --weight-granularity channel"):
        METHODS["rtn"](make(40, 80), [], group_size=32)
