"""The same statistics and schemes on every architecture that the catalogue knows."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from frugalfm.probing.activations import measure_outliers
from frugalfm.quantization import METHODS, simulate, split_batches
from frugalfm.quantization.quantizers import fake_quantize
from frugalfm.quantization.sites import survey_sites
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.vocabulary import make_protein_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
from architectures import DESCRIBED, make_mlm

CODEC = Codec.from_tokenizer(make_protein_tokenizer())
SITES = {"dnabert2": 4, "modernbert": 4, "esmc": 7, "nomic_bert": 7}


def make_sequences(count=24, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(4, 24, random.integers(5, 40)).astype(np.uint8) for _ in range(count)]


@pytest.mark.parametrize("kind", DESCRIBED)
def test_quantizers_off_leave_the_function_unchanged(kind):
    model = make_mlm(kind)
    split = split_batches(make_sequences(), CODEC, calibration_batches=3, batch_tokens=200)
    batch = split.evaluation[0]

    def run():
        with torch.no_grad():
            return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits

    expected = run()
    scheme = METHODS["minmax"](model, split.calibration, weights=4, activations=4)
    with simulate(model, scheme) as simulation:
        simulation.enable(False)
        assert torch.equal(run(), expected)
        simulation.enable()
        assert (run() - expected).norm() > 0.01 * expected.norm()
    assert torch.equal(run(), expected)
    survey = survey_sites(model)
    inside = [site for site in survey.sites if site.layer is not None]
    assert len(inside) == 3 * SITES.get(kind, 6)
    listed = {site.name for site in survey.sites} | {place.name for place in survey.left_out}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm | torch.nn.Embedding):
            assert name in listed, name


@pytest.mark.parametrize("kind", DESCRIBED)
def test_one_site_alone(kind):
    """Rounding one weight by hand is what a scheme of that site does."""
    model = make_mlm(kind)
    split = split_batches(make_sequences(), CODEC, calibration_batches=2, batch_tokens=200)
    batch = split.evaluation[0]
    scheme = METHODS["minmax"](model, split.calibration, weights=4, activations=16)
    with torch.no_grad(), simulate(model, scheme):
        found = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    with torch.no_grad():
        for name in scheme.sites:
            weight = model.get_submodule(name).weight
            weight.copy_(fake_quantize(weight.clone(), scheme.weight_grids[name]))
        expected = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", DESCRIBED)
def test_outliers_do_not_depend_on_padding(kind):
    model = make_mlm(kind)
    sequences = make_sequences(8)
    together = measure_outliers(model, CODEC, sequences)
    alone = measure_outliers(model, CODEC, sequences, batch_tokens=1)
    assert len(together.sites) == 6
    assert together.tokens == alone.tokens == sum(len(s) + 2 for s in sequences)
    for name, value in alone.summary.items():
        assert together.summary[name] == pytest.approx(value, rel=1e-4), name
