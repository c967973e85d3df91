"""Outliers and quantized losses in one call, against the parts and against sampling."""

import numpy as np
import pytest

from frugalfm.encoders import create_encoder
from frugalfm.errors import InputError
from frugalfm.probing.activations import measure_outliers
from frugalfm.quantization import METHODS, compare, split_batches
from frugalfm.quantization.robustness import assess_robustness
from frugalfm.tokens.codec import Codec


@pytest.fixture(scope="module")
def setting():
    model, words = create_encoder("rna-fm-nano", seed=1)
    random = np.random.default_rng(0)
    rows = [random.integers(4, 8, random.integers(5, 30)).astype(np.uint8) for _ in range(40)]
    return model, Codec.from_tokenizer(words), rows


def test_equals_its_parts(setting):
    model, codec, rows = setting
    found = assess_robustness(model, codec, rows, bits=(6,), batch_tokens=200, seed=3)
    split = split_batches(rows, codec, calibration_batches=16, limit=40, batch_tokens=200, seed=3)
    report = measure_outliers(model, codec, [rows[i] for i in split.evaluation_rows])
    for name, value in report.summary.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
    scheme = METHODS["minmax"](
        model, split.calibration, weights=6, activations=6,
        weight_granularity="channel", activation_granularity="token",
    )  # fmt: skip
    assert set(found["increase"]) == {"W6A6 coarse", "W6A6 fine"}
    increase = compare(model, scheme, split.evaluation).increase
    assert found["increase"]["W6A6 fine"] == pytest.approx(increase, abs=1e-6)


def test_too_few_sequences_are_refused(setting):
    model, codec, rows = setting
    with pytest.raises(InputError, match="3 held-out sequences are too few"):
        assess_robustness(model, codec, rows[:3])
