"""Features of pairs: attention maps against eager mode, APC against its formula, maps per pair."""

import numpy as np
import pytest
import torch

from frugalfm.encoders import create_encoder
from frugalfm.errors import InputError
from frugalfm.probing import pair_features
from frugalfm.probing.embed import Embedder
from frugalfm.probing.pair_features import PairReader, correct_map
from frugalfm.tokens.codec import Codec

LENGTHS = (40, 9, 23, 40, 3)


def make(attention="softmax"):
    model, tokenizer = create_encoder("rna-fm-nano", attention=attention, seed=1)
    with torch.no_grad():  # attention that attends: an untrained one is nearly uniform
        for name, weight in model.named_parameters():
            if "query.weight" in name or "key.weight" in name:
                weight.mul_(12)
    return Embedder(model, Codec.from_tokenizer(tokenizer), "token", batch_tokens=120)


@pytest.fixture(scope="module")
def embedder():
    return make()


@pytest.fixture(scope="module")
def sequences(embedder):
    random = np.random.default_rng(0)
    return [random.choice(embedder.codec.residue_ids, n).astype(np.uint8) for n in LENGTHS]


@pytest.fixture(scope="module")
def pairs():
    random = np.random.default_rng(1)
    found = []
    for length in LENGTHS:
        i, j = np.triu_indices(length, 1)
        keep = random.random(len(i)) < 0.3
        found.append((i[keep], j[keep]))
    return found


def correct_by_formula(w):
    s = w + w.T
    return s - np.outer(s.sum(1), s.sum(0)) / s.sum()


def reference(embedder, sequence):
    """Corrected maps of all layers and heads in fp64, from eager attention on one sequence."""
    model, codec = embedder.model, embedder.codec
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    ids, _ = codec.collate([sequence])
    with torch.no_grad():
        out = model(torch.from_numpy(ids), output_attentions=True, output_hidden_states=True)
    model.set_attn_implementation(implementation)
    maps = [w[0, h, 1:-1, 1:-1].double().numpy() for w in out.attentions for h in range(w.shape[1])]
    states = out.hidden_states[-1][0, 1:-1].double().numpy()
    return np.stack([correct_by_formula(w) for w in maps]), states


def test_correction_equals_the_formula():
    w = torch.rand(5, 12, 12, dtype=torch.float64)
    expected = np.stack([correct_by_formula(x) for x in w.numpy()])
    np.testing.assert_allclose(correct_map(w).numpy(), expected, atol=1e-12)
    assert (correct_map(torch.zeros(1, 4, 4)) == 0).all()


@pytest.mark.parametrize("pieces", [1 << 25, 1])
def test_features_equal_eager_attention_of_single_sequences(
    embedder, sequences, pairs, monkeypatch, pieces
):
    monkeypatch.setattr(pair_features, "_WEIGHTS", pieces)
    reader = PairReader(embedder, attention=True, products=True)
    told = []
    found = reader.gather(sequences, pairs, told.append)
    assert found.shape == (sum(len(i) for i, _ in pairs), reader.width)
    assert sum(told) == sum(LENGTHS)
    start = 0
    for sequence, (i, j) in zip(sequences, pairs, strict=True):
        maps, h = reference(embedder, sequence)
        bins = np.searchsorted(pair_features._EDGES, j - i, side="right")
        expected = np.concatenate(
            [maps[:, i, j].T, h[i] * h[j], np.abs(h[i] - h[j]), np.eye(24)[bins]], axis=1
        )
        np.testing.assert_allclose(found[start : start + len(i)], expected, atol=2e-5)
        start += len(i)
    assert np.abs(found[:, :6]).max() > 0.05


@pytest.mark.parametrize(("attention", "products"), [(True, False), (False, True), (True, True)])
def test_maps_are_linear_in_the_features(
    embedder, sequences, pairs, monkeypatch, attention, products
):
    monkeypatch.setattr(pair_features, "_DIFFERENCES", 64 * 40 * 7)  # in several parts
    reader = PairReader(embedder, attention, products)
    random = np.random.default_rng(2)
    weights, bias = random.normal(size=(3, reader.width)), random.normal(size=3)
    features = reader.gather(sequences, pairs)
    expected = np.split(features @ weights.T + bias, np.cumsum([len(i) for i, _ in pairs])[:-1])
    seen = []
    for row, maps in reader.combine(sequences, weights, bias):
        i, j = pairs[row]
        np.testing.assert_allclose(maps[:, i, j].T, expected[row], atol=1e-3)
        np.testing.assert_allclose(maps, maps.transpose(0, 2, 1), atol=1e-4)
        seen.append(row)
    assert sorted(seen) == list(range(len(LENGTHS)))


@pytest.mark.parametrize("name", ["softmax1", "clipped", "gated", "sink"])
def test_every_attention_can_be_looked_at(name, sequences):
    """And being looked at changes nothing that the model computes."""
    embedder = make(name)
    reader = PairReader(embedder, attention=True, products=False)
    plain = embedder.embed(sequences)
    i, j = np.triu_indices(9, 1)
    found = reader.gather([sequences[1]], [(i, j)])
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 0
    states = reader._forward([sequences[1]], lambda *_: None)
    np.testing.assert_allclose(states[0, 1:-1].numpy(), plain[40:49], atol=1e-5)
    assert not any("observer" in key for m in embedder.model.modules() for key in vars(m))


def test_a_model_of_transformers_own_is_switched_for_a_while(sequences, pairs):
    embedder = make()
    expected = PairReader(embedder, attention=True, products=False).gather(sequences, pairs)
    model = embedder.model
    model.config.attention = None
    model.set_attn_implementation("sdpa")
    found = PairReader(embedder, attention=True, products=False).gather(sequences, pairs)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_cannot_be_watched_is_refused(embedder, monkeypatch):
    monkeypatch.setattr(pair_features, "find_attentions", lambda model: [])
    with pytest.raises(InputError, match="--probe pairs"):
        PairReader(embedder, attention=True, products=False)
