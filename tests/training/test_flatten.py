"""The penalty on kurtosis: its gradient against autograd, and what it leaves alone."""

import numpy as np
import pytest
import torch

from frugalfm.encoders import create_encoder
from frugalfm.encoders.anatomy import describe_encoder
from frugalfm.errors import InputError
from frugalfm.probing.activations import measure_outliers
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.store import TokenList
from frugalfm.training import Recipe, TrainingData, train
from frugalfm.training.flatten import excess_gradient, penalise_kurtosis


def penalty(values, real):
    """The definition, for autograd: mean over real tokens of the excess, where there is one."""
    centred = values - values.mean(-1, keepdim=True)
    kurtosis = centred.pow(4).mean(-1) / centred.square().mean(-1).square()
    width = values.shape[-1]
    excess = torch.relu(kurtosis - 3 * (width - 1) / (width + 1))
    return (excess * real).sum() / real.sum()


def test_gradient_is_autograds():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 5, 16, generator=generator, dtype=torch.float64)
    values[0] = values[0].pow(3)  # The others are on either side of a Gaussian's.
    values.requires_grad_()
    real = torch.ones(3, 5, dtype=torch.bool)
    real[1, 2:] = False
    (expected,) = torch.autograd.grad(penalty(values, real), values)
    found = excess_gradient(values.detach(), real)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    assert (found[1, 2:] == 0).all()
    assert 0 < (found.abs().sum(-1) > 0).sum() < real.sum()
    assert (excess_gradient(torch.zeros(1, 1, 8), real[:1, :1]) == 0).all()


def test_model_gets_the_penaltys_gradient_and_keeps_its_function():
    model, words = create_encoder("rna-fm-nano", seed=1)
    model.train()
    codec = Codec.from_tokenizer(words)
    ids, _ = codec.collate([np.array([4, 5, 6, 7, 4]), np.array([6, 6])])
    ids = torch.from_numpy(ids)
    inputs = {"input_ids": ids, "attention_mask": (ids != codec.pad_id).long()}

    def differentiate(objective):
        model.zero_grad()
        objective().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    blocks = describe_encoder(model).blocks
    sites = [name for block in blocks for name in (block.ffn_out, block.output_norm)]

    def whole():
        seen = []
        hooks = [
            model.get_submodule(name).register_forward_hook(lambda m, i, o: seen.append(o))
            for name in sites
        ]
        out = model(**inputs).logits.square().mean()
        for hook in hooks:
            hook.remove()
        terms = [penalty(values, inputs["attention_mask"]) for values in seen]
        return out + 0.7 * sum(terms) / len(terms)

    expected = differentiate(whole)
    plain = model(**inputs).logits.detach()
    with penalise_kurtosis(model, 0.7):
        assert torch.equal(model(**inputs).logits, plain)
        found = differentiate(lambda: model(**inputs).logits.square().mean())
    for name, reference in expected.items():
        torch.testing.assert_close(found[name], reference, rtol=1e-3, atol=1e-6)
    again = differentiate(lambda: model(**inputs).logits.square().mean())
    name = f"{sites[0]}.weight"
    assert not torch.allclose(again[name], expected[name], rtol=1e-3, atol=1e-6)


def test_training_against_outliers_removes_them(tmp_path):
    random = np.random.default_rng(0)
    rows = [random.integers(4, 8, random.integers(5, 30)).astype(np.uint8) for _ in range(60)]
    found = {}
    for weight in (0.0, 0.3):
        model, words = create_encoder("rna-fm-nano", seed=1)
        with torch.no_grad():  # One coordinate that stands out everywhere, as in trained models.
            for block in describe_encoder(model).blocks:
                model.get_submodule(block.ffn_out).bias[3] = 4.0
        codec = Codec.from_tokenizer(words)
        data = TrainingData.split(TokenList(rows), codec, 0.2)
        recipe = Recipe(steps=40, batch_tokens=400, learning_rate=1e-2)
        with penalise_kurtosis(model, weight):
            place = tmp_path / str(weight)
            place.mkdir()
            train(model, data, recipe, place, state=place, device=torch.device("cpu"))
        found[weight] = measure_outliers(model, codec, rows).summary["avg_kurtosis_excess"]
    assert found[0.0] > 1
    assert found[0.3] < 0.3 * found[0.0]


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_impossible_weight_is_refused(weight):
    model, _ = create_encoder("rna-fm-nano")
    with pytest.raises(InputError, match="--flatten"), penalise_kurtosis(model, weight):
        pass
