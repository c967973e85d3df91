"""Models with a head, of every architecture: pooled states have no pads, and all places round."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from frugalfm.quantization import METHODS, Settings, extend_scheme, simulate, survey_sites
from frugalfm.quantization.data import plain_batches
from frugalfm.quantization.taps import tap
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.vocabulary import make_protein_tokenizer
from frugalfm.training.pairs import make_pair_model

sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
from architectures import DESCRIBED, MLM, make_mlm

CODEC = Codec.from_tokenizer(make_protein_tokenizer())
HEADS = {
    "sequences": AutoModelForSequenceClassification,
    "residues": AutoModelForTokenClassification,
}
CASES = [
    (kind, what) for kind in DESCRIBED for what in HEADS if (kind, what) != ("dnabert2", "residues")
] + [(kind, what) for kind in ("rna-fm", "dnabert2") for what in ("pairs", "maps")]


@pytest.fixture(scope="module")
def batches():
    random = np.random.default_rng(0)
    drawn = [random.integers(4, 24, random.integers(5, 30)).astype(np.uint8) for _ in range(18)]
    return plain_batches([CODEC.collate(drawn[i : i + 6])[0] for i in (0, 6, 12)], CODEC)


def make_model(kind, what):
    torch.manual_seed(0)
    if what in HEADS:
        config = MLM[kind]()
        config.num_labels = 3
        model = HEADS[what].from_config(config)
    else:
        model = make_pair_model(
            make_mlm(kind), {"pairs": "sequences", "maps": "positions"}[what], 2
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and not name.startswith("encoder."):
                parameter.mul_(4)
    return model.eval()


@pytest.mark.parametrize(("kind", "what"), CASES)
def test_all_places_of_a_model_with_a_head(kind, what, batches):
    model = make_model(kind, what)
    batch = batches[0]

    def run():
        with torch.no_grad():
            return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits

    expected = run()
    survey = survey_sites(model, "all", tables=True)
    assert sum(site.layer is None for site in survey.linears) >= 1
    places = [site for site in survey.sites if site.kind != "table"]
    seen = set()

    def visit(site, values):
        seen.add(site.name)
        return values

    with tap(model, places, visit):
        found = run()
    assert seen == {site.name for site in places}
    assert (found - expected).norm() < 1e-5 * expected.norm()
    scheme = extend_scheme(model, batches, METHODS["minmax"](model, batches), "all", tables=True)
    assert {site.name for site in survey.linears} <= set(scheme.weight_grids)
    with simulate(model, scheme):
        rounded = run()
    assert 1e-4 < (rounded - expected).norm() / expected.norm() < 0.2
    assert torch.equal(run(), expected)


@pytest.mark.gpu
def test_on_a_gpu(batches):
    """The same scheme of the same model, up to noise that carries values over an edge."""
    found = {}
    for device in ("cpu", "cuda"):
        model = make_model("dnabert2", "sequences").to(device)
        batch = batches[0].to(torch.device(device))
        for granularity in ("tensor", "sequence"):
            scheme = METHODS["minmax"](
                model,
                batches,
                activation_granularity=granularity,
                weight_granularity="group",
                group_size=16,
                weight_observer="mse",
                activation_observer="mse",
            )
            settings = Settings(activation_observer="percentile")
            scheme = extend_scheme(model, batches, scheme, "all", tables=True, settings=settings)
            with torch.no_grad(), simulate(model, scheme):
                out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            found[device, granularity] = out.logits.cpu()
    for granularity in ("tensor", "sequence"):
        one, other = found["cpu", granularity], found["cuda", granularity]
        assert (one - other).norm() < 0.05 * one.norm()
