"""Outlier statistics against plain numpy in fp64, on activations captured independently."""

import numpy as np
import pytest
import torch

from frugalfm.encoders import create_encoder
from frugalfm.errors import InputError
from frugalfm.probing.activations import (
    gaussian_inf_norm,
    gaussian_kurtosis,
    measure_outliers,
    watch,
)
from frugalfm.tokens.codec import Codec


@pytest.fixture
def encoder():
    model, tokenizer = create_encoder("rna-fm-tiny", seed=2)
    with torch.no_grad():  # Random weights give tiny activations; let the floor not dominate.
        for layer in model.esm.encoder.layer:
            layer.output.dense.weight *= 20
    return model, Codec.from_tokenizer(tokenizer)


def make_sequences(lengths, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(4, 8, size=n).astype(np.uint8) for n in lengths]


def capture(model, codec, sequences):
    """Run one sequence at a time, without pads; activations of every site as (tokens, width)."""
    layers = model.esm.encoder.layer
    modules = {}
    for i, layer in enumerate(layers):
        modules[f"ffn{i}"] = layer.output.dense
        last = i + 1 == len(layers)
        modules[f"norm{i}"] = (
            model.esm.encoder.emb_layer_norm_after if last else layers[i + 1].attention.LayerNorm
        )
    found = {key: [] for key in modules}
    handles = [
        module.register_forward_hook(lambda m, i, out, key=key: found[key].append(out[0].numpy()))
        for key, module in modules.items()
    ]
    with torch.no_grad():
        for sequence in sequences:
            ids = torch.tensor([[codec.cls_id, *sequence.tolist(), codec.eos_id]])
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    for handle in handles:
        handle.remove()
    return {key: np.concatenate(parts).astype(np.float64) for key, parts in found.items()}


def kurtosis(x, floor=1e-6):
    centred = x - x.mean(-1, keepdims=True)
    return (centred**4).mean(-1) / (x.std(-1, ddof=1) ** 4 + floor)


def test_statistics_equal_numpys_with_padding(encoder):
    model, codec = encoder
    sequences = make_sequences([5, 40, 12, 1, 33])
    report = measure_outliers(model, codec, sequences, batch_tokens=200)
    truth = capture(model, codec, sequences)
    tokens = sum(len(s) + 2 for s in sequences)
    assert (report.sequences, report.tokens) == (5, tokens)
    for place, key in (("ffn_output", "ffn"), ("layer_norm", "norm")):
        for site in report.at(place):
            x = truth[f"{key}{site.layer}"]
            assert (site.tokens, site.width) == x.shape
            assert site.kurtosis == pytest.approx(kurtosis(x).mean(), rel=1e-4)
            assert site.kurtosis_unfloored == pytest.approx(kurtosis(x, 0).mean(), rel=1e-4)
            assert site.std == pytest.approx(x.std(-1, ddof=1).mean(), rel=1e-4)
            assert site.inf_norm == pytest.approx(np.abs(x).max(-1).mean(), rel=1e-4)
            assert site.max_abs == pytest.approx(np.abs(x).max(), rel=1e-4)
    every = [kurtosis(x).mean() for x in truth.values()]
    norms = [np.abs(truth[f"ffn{i}"]).max(-1).mean() for i in range(4)]
    assert len(every) == 8
    assert report.summary["avg_kurtosis"] == pytest.approx(np.mean(every), rel=1e-4)
    assert report.summary["max_inf_norm"] == pytest.approx(max(norms), rel=1e-4)
    excess = np.mean([kurtosis(x, 0).mean() for x in truth.values()])
    excess -= report.summary["avg_kurtosis_gaussian"]
    assert report.summary["avg_kurtosis_excess"] == pytest.approx(excess, rel=1e-4)
    for key, place in (("", "ffn"), ("_layer_norm", "norm")):
        own = [truth[f"{place}{i}"] for i in range(4)]
        above = [
            np.abs(x).max(-1).mean() - gaussian_inf_norm(x.shape[1]) * x.std(-1, ddof=1).mean()
            for x in own
        ]
        found = report.summary[f"max_inf_norm{key}_excess"]
        assert found == pytest.approx(max(above), rel=1e-3, abs=1e-5)


def test_batching_does_not_matter(encoder):
    model, codec = encoder
    sequences = make_sequences([30, 7, 19, 22, 3])
    single = measure_outliers(model, codec, sequences, batch_tokens=1)
    batched = measure_outliers(model, codec, sequences, batch_tokens=10_000)
    for one, other in zip(single.sites, batched.sites, strict=True):
        assert (one.site, one.tokens) == (other.site, other.tokens)
        for field in ("kurtosis", "kurtosis_unfloored", "std", "inf_norm", "max_abs"):
            assert getattr(one, field) == pytest.approx(getattr(other, field), rel=1e-5)


def test_planted_outlier_is_seen_where_it_is(encoder):
    model, codec = encoder
    sequences = make_sequences([20, 20])
    before = measure_outliers(model, codec, sequences)
    with torch.no_grad():
        model.esm.encoder.layer[2].output.dense.bias[17] = 50.0
    after = measure_outliers(model, codec, sequences)
    for old, new in zip(before.sites, after.sites, strict=True):
        if new.layer < 2:
            assert new == old
    planted = after.at("ffn_output")[2]
    assert planted.kurtosis > 10 * before.at("ffn_output")[2].kurtosis
    assert planted.inf_norm == pytest.approx(50, rel=0.05)
    assert after.at("layer_norm")[2].kurtosis > 2 * before.at("layer_norm")[2].kurtosis
    assert after.summary["max_inf_norm"] == planted.inf_norm
    assert after.summary["max_inf_norm_excess"] == planted.inf_norm_excess > 20


def test_an_outlier_in_a_quiet_layer_is_not_hidden_by_a_loud_one(encoder):
    """The largest norm is the first layer's, the largest excess the third's."""
    model, codec = encoder
    with torch.no_grad():
        # Within what Gaussian values may have: alternating signs.
        model.esm.encoder.layer[0].output.dense.bias.copy_(torch.tensor([40.0, -40.0]).repeat(64))
        model.esm.encoder.layer[2].output.dense.bias[17] = 20.0
    report = measure_outliers(model, codec, make_sequences([20, 20]))
    loud, _, planted, _ = report.at("ffn_output")
    assert report.summary["max_inf_norm"] == loud.inf_norm > 1.5 * planted.inf_norm
    assert loud.inf_norm_excess < 0
    assert report.summary["max_inf_norm_excess"] == planted.inf_norm_excess > 10


def test_shrinking_activations_does_not_remove_their_excess(encoder):
    model, codec = encoder
    with torch.no_grad():
        model.esm.encoder.layer[3].output.dense.bias[17] = 50.0
    before = measure_outliers(model, codec, make_sequences([20])).at("ffn_output")[3]
    with torch.no_grad():
        model.esm.encoder.layer[3].output.dense.weight.mul_(1e-4)
        model.esm.encoder.layer[3].output.dense.bias.mul_(1e-4)
    after = measure_outliers(model, codec, make_sequences([20])).at("ffn_output")[3]
    assert after.excess_kurtosis == pytest.approx(before.excess_kurtosis, rel=1e-3)
    assert after.kurtosis < before.kurtosis / 2  # GERM's own, with its floor


@pytest.mark.parametrize("width", [8, 128, 768])
def test_gaussian_value_is_what_gaussian_values_have(width):
    x = np.random.default_rng(0).standard_normal((4_000_000 // width, width))
    found = kurtosis(x, 0)
    assert abs(found.mean() - gaussian_kurtosis(width)) < 5 * found.std() / len(found) ** 0.5


def test_gaussian_inf_norm_against_sampling():
    random = np.random.default_rng(0)
    for width in (1, 2, 64, 512):
        drawn = np.abs(random.standard_normal((40_000, width))).max(1)
        assert gaussian_inf_norm(width) == pytest.approx(drawn.mean(), abs=5 * drawn.std() / 200)
    assert gaussian_inf_norm(1) == pytest.approx(np.sqrt(2 / np.pi), rel=1e-6)


def test_constant_tokens_have_no_kurtosis(encoder):
    model, codec = encoder
    with torch.no_grad():
        model.esm.encoder.layer[0].output.dense.weight.zero_()
        model.esm.encoder.layer[0].output.dense.bias.fill_(0.5)
    site = measure_outliers(model, codec, make_sequences([6])).at("ffn_output")[0]
    assert (site.kurtosis, site.kurtosis_unfloored, site.inf_norm) == (0, 0, 0.5)


def test_faults(encoder):
    model, codec = encoder
    with pytest.raises(InputError, match="no sequences"):
        measure_outliers(model, codec, [])
    ids = torch.tensor([[0, 4, 2]])
    with watch(model, [], print, "input"), pytest.raises(InputError, match="attention_mask"):
        model(input_ids=ids)
    model(input_ids=ids)  # Nothing of the watch is left.
    with torch.no_grad():
        model.esm.encoder.layer[1].output.dense.bias[0] = torch.nan
    with pytest.raises(InputError, match=r"layer\.1\.output\.dense are not finite"):
        measure_outliers(model, codec, make_sequences([6]))
