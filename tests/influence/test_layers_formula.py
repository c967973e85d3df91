"""Scores of all linear layers against torch.func on their formulas, in fp64, without our hooks."""

import copy

import numpy as np
import pytest
import torch
from torch.func import functional_call, jacrev

from frugalfm.encoders import create_encoder
from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
from frugalfm.encoders.dnabert2.modeling import DnaBert2ForMaskedLM
from frugalfm.errors import InputError
from frugalfm.influence import (
    HeadGradients,
    LayerGradients,
    MaskScheme,
    ScoreRecipe,
    estimate_fisher,
    score_sequences,
)
from frugalfm.influence.fisher import draw_projection

FACTORS = {"sqrt": lambda n: n**-0.5, "mean": lambda n: 1 / n, "sum": lambda n: 1.0}
SCHEMES = {
    "groups": MaskScheme(groups=3),
    "random": MaskScheme("random", passes=2, seed=4),
    "none": MaskScheme("none"),
    "paper": MaskScheme("none", pad_to=60),
}


@pytest.fixture(scope="module")
def dnabert2(tiny, sharpen):
    """DNABERT-2 at toy size, with its fused projections and a tied decoder, over RNA's tokens."""
    torch.manual_seed(0)
    config = DnaBert2Config(
        vocab_size=len(create_encoder("rna-fm-nano")[1]),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        pad_token_id=1,
    )
    return sharpen(DnaBert2ForMaskedLM(config).eval()).double(), *tiny[1:]


def gradients_by_definition(model, codec, scheme, sequences, names, reduction):
    """One sequence at a time, unpadded: the Jacobian of the reduced loss, layer by layer."""
    weights = {name: model.get_parameter(name + ".weight").detach() for name in names}
    rest = {k: v.detach() for k, v in model.named_parameters()}
    found = {name: [] for name in names}
    for sequence in sequences:
        views = scheme.view(codec, [sequence], torch.device("cpu"))
        n = int(views.targets.sum())

        def loss(weights, views=views, n=n):
            parameters = rest | {name + ".weight": w for name, w in weights.items()}
            if "bert.embeddings.word_embeddings.weight" in rest:
                parameters["cls.predictions.decoder.weight"] = rest[
                    "bert.embeddings.word_embeddings.weight"
                ]
            total = 0.0
            for masked, target in zip(views.masked, views.targets, strict=True):
                logits = functional_call(
                    model, parameters, (masked,), {"attention_mask": views.attention}
                ).logits
                logs = torch.log_softmax(logits, -1).gather(2, views.tokens[..., None])[..., 0]
                total = total - (logs * target).sum()
            return total * FACTORS[reduction](n)

        for name, value in jacrev(loss)(weights).items():
            found[name].append(value)
    return {name: torch.stack(values) for name, values in found.items()}


def score_by_definition(gradients, kind, damping, subset, projections=None):
    total = 0.0
    for name, g in gradients.items():
        squares = g[:subset].square().mean(0)
        if kind == "diagonal":
            fisher = squares + damping
        else:
            damped = squares + damping
            fisher = torch.outer(damped.sum(1), damped.sum(0)) / damped.sum()
        whitened = g / fisher.sqrt()
        if projections is not None:
            left, right = projections[name]
            whitened = left.T @ whitened @ right
        total = total + whitened.square().sum((1, 2))
    return total.numpy()


def reaching(model):
    """Names of linear layers that the loss depends on, by reading the model."""
    return [
        name
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and "decoder" not in name and "contact" not in name
    ]


def ours(model, codec, scheme, sequences, subset, **options):
    recipe = ScoreRecipe(**{"damping": 1e-6, "batch_tokens": 200} | options)
    gradients = LayerGradients(model, codec, masks=scheme)
    fisher = estimate_fisher(gradients, sequences[:subset], recipe)
    return score_sequences(gradients, fisher, sequences, recipe), fisher


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("which", ["tiny", "dnabert2"])
def test_scores_equal_the_formulas(request, which, scheme):
    model, codec, sequences = request.getfixturevalue(which)
    reduction = {"groups": "sqrt", "random": "sum"}.get(scheme, "mean")
    scheme = SCHEMES[scheme]
    names = reaching(model)
    exact = gradients_by_definition(model, codec, scheme, sequences, names, reduction)
    for kind in ("diagonal", "rank-1"):
        scores, fisher = ours(model, codec, scheme, sequences, 3, reduction=reduction, fisher=kind)
        expected = score_by_definition(exact, kind, 1e-6, 3)
        np.testing.assert_allclose(scores.influence, expected, rtol=1e-6)
        assert {name.removesuffix(".rows").removesuffix(".columns") for name in fisher.tensors} == {
            *names
        }
    k = 8
    projections = {
        name: (
            draw_projection(exact[name].shape[1], k, 5, f"{name}.rows").double(),
            draw_projection(exact[name].shape[2], k, 5, f"{name}.columns").double(),
        )
        for name in names
    }
    scores, _ = ours(
        model, codec, scheme, sequences, 3,
        reduction=reduction, fisher="projection", projection=k, seed=5,
    )  # fmt: skip
    expected = score_by_definition(exact, "rank-1", 1e-6, 3, projections)
    np.testing.assert_allclose(scores.influence, expected, rtol=1e-6)


def test_all_layers_contain_the_head(tiny):
    model, codec, sequences = tiny
    parts = {}
    for kind in (HeadGradients, LayerGradients):
        kind(model, codec)(
            sequences, "sqrt", lambda n, x, d, k=kind: parts.update({(k, n): x.mT @ d})
        )
    torch.testing.assert_close(
        parts[HeadGradients, "lm_head.dense"], parts[LayerGradients, "lm_head.dense"]
    )


def test_more_dimensions_estimate_better_and_all_are_exact(tiny):
    model, codec, sequences = tiny
    scheme = MaskScheme(groups=3)
    exact = ours(model, codec, scheme, sequences, 3, fisher="rank-1")[0].influence
    errors = {}
    for k in (2, 8, 32):
        estimates = np.stack(
            [
                ours(model, codec, scheme, sequences, 3, fisher="projection", projection=k, seed=s)[
                    0
                ].influence
                for s in range(8)
            ]
        )
        errors[k] = np.sqrt(((estimates / exact - 1) ** 2).mean())
        # Unbiased: the mean of the draws is nearer than a draw.
        assert np.abs(estimates.mean(0) / exact - 1).mean() < errors[k]
    assert errors[2] > 1.5 * errors[8] > 2.25 * errors[32]
    whole = ours(model, codec, scheme, sequences, 3, fisher="projection", projection=256)[0]
    np.testing.assert_allclose(whole.influence, exact, rtol=1e-6)


def test_projections_are_orthogonal_seeded_and_unbiased():
    drawn = draw_projection(60, 7, 0, "a.rows").double()
    torch.testing.assert_close(drawn.T @ drawn, torch.eye(7).double() * 60 / 7, atol=1e-5, rtol=0)
    assert torch.equal(drawn, draw_projection(60, 7, 0, "a.rows").double())
    for other in [(60, 7, 1, "a.rows"), (60, 7, 0, "b.rows"), (60, 7, 0, "a.columns")]:
        assert not torch.allclose(drawn, draw_projection(*other).double())
    vector = torch.randn(60, generator=torch.Generator().manual_seed(0))
    norms = [(vector @ draw_projection(60, 7, seed, "x")).square().sum() for seed in range(400)]
    assert float(torch.stack(norms).mean()) == pytest.approx(float(vector.square().sum()), rel=0.1)


@pytest.mark.parametrize("fisher", ["diagonal", "rank-1", "projection"])
def test_batches_do_not_matter_and_the_model_stays_as_it_was(tiny, fisher, monkeypatch):
    model, codec, sequences = tiny
    before = {name: p.clone() for name, p in model.named_parameters()}
    base, _ = ours(model, codec, MaskScheme(), sequences, 5, fisher=fisher)
    for tokens in (1, 500, 100_000):
        other, _ = ours(
            model, codec, MaskScheme(), sequences, 5, fisher=fisher, batch_tokens=tokens
        )
        np.testing.assert_allclose(other.influence, base.influence, rtol=1e-6)
        np.testing.assert_allclose(other.loss, base.loss, rtol=1e-6)
    monkeypatch.setattr("frugalfm.influence.fisher._CHUNK", 1)
    other, _ = ours(model, codec, MaskScheme(), sequences, 5, fisher=fisher)
    np.testing.assert_allclose(other.influence, base.influence, rtol=1e-6)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])
    assert not any(part._forward_hooks for part in model.modules())


class Shared(torch.nn.Module):
    """A trunk that uses one layer twice, ties another's weight to it, and flattens tokens."""

    base_model_prefix = "trunk"

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(25, 6)
        self.first = torch.nn.Linear(6, 6)
        self.second = torch.nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.idle = torch.nn.Linear(6, 6)
        self.decoder = torch.nn.Linear(6, 25)
        self.decoder.weight = self.embed.weight
        self.pool = False

    def forward(self, input_ids, attention_mask):
        hidden = self.embed(input_ids)
        hidden = hidden + self.first(self.first(hidden).tanh())
        self.idle(hidden)
        if self.pool:
            return self.first(hidden.flatten()[:6])
        flat = hidden.flatten(0, 1)
        hidden = (flat + self.second(flat).tanh()).view(hidden.shape)
        return type("Out", (), {"logits": self.decoder(hidden)})


def test_shared_tied_and_idle_weights(tiny):
    _, codec, sequences = tiny
    torch.manual_seed(0)
    model = Shared().double()
    scheme = MaskScheme(groups=3)
    gradients = LayerGradients(model, codec, masks=scheme)
    assert gradients.layers == ["first", "second", "idle"]
    found = {}
    gradients(sequences, "sum", lambda name, x, d: found.update({name: d.mT @ x}))
    assert found.keys() == {"first"}
    views = scheme.view(codec, sequences, torch.device("cpu"))
    for row in range(len(sequences)):
        model.zero_grad()
        for masked, target in zip(views.masked[:, row], views.targets[:, row], strict=True):
            logits = model(masked[None], None).logits[0]
            torch.nn.functional.cross_entropy(
                logits[target], views.tokens[row][target], reduction="sum"
            ).backward()
        torch.testing.assert_close(found["first"][row], model.first.weight.grad)
    model.pool = True
    with pytest.raises(InputError, match=r"first gets an input of shape \(6,\).*--layers head"):
        gradients(sequences, "sum", lambda *_: None)


@pytest.mark.parametrize("fisher", ["diagonal", "rank-1", "projection"])
def test_bf16_is_near_fp32(tiny, fisher):
    model, codec, sequences = copy.deepcopy(tiny[0]).float(), *tiny[1:]
    recipe = ScoreRecipe(fisher=fisher, projection=16)
    found = {}
    for precision in ("fp32", "bf16"):
        gradients = LayerGradients(model, codec, precision=precision)
        fitted = estimate_fisher(gradients, sequences, recipe)
        found[precision] = score_sequences(gradients, fitted, sequences, recipe).influence
    np.testing.assert_allclose(found["bf16"], found["fp32"], rtol=0.1)
    exact, _ = ours(
        *tiny[:2], MaskScheme(), sequences, 5, fisher=fisher, projection=16, damping=1e-8
    )
    np.testing.assert_allclose(found["fp32"], exact.influence, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", [HeadGradients, LayerGradients])
@pytest.mark.parametrize("fisher", ["diagonal", "rank-1", "projection"])
def test_cuda_scores_like_the_cpu(tiny, kind, fisher):
    model, codec, sequences = copy.deepcopy(tiny[0]).float(), *tiny[1:]
    recipe = ScoreRecipe(fisher=fisher, projection=16)
    found = []
    for device in ("cpu", "cuda"):
        gradients = kind(model.to(device), codec)
        fitted = estimate_fisher(gradients, sequences, recipe)
        found.append(score_sequences(gradients, fitted, sequences, recipe).influence)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-2)
