"""Scores against the published formula, evaluated in fp64 by torch.func without our code."""

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad

from frugalfm.encoders import create_encoder
from frugalfm.influence import (
    HeadGradients,
    MaskScheme,
    ScoreRecipe,
    estimate_fisher,
    score_sequences,
)
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.masking import hash_sequences, mask_groups

REDUCTIONS = {"sqrt": lambda n: n**-0.5, "mean": lambda n: 1 / n, "sum": lambda n: 1.0}


@pytest.fixture(scope="module")
def setting():
    model, tokenizer = create_encoder("rna-fm-tiny", attention="softmax1", seed=2)
    codec = Codec.from_tokenizer(tokenizer)
    # Random weights give near-uniform losses; sharper ones make gradients differ.
    with torch.no_grad():
        for parameter in model.lm_head.parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1
            )
    random = np.random.default_rng(0)
    sequences = [random.integers(4, 8, n).astype(np.uint8) for n in (30, 3, 57, 22, 110, 9)]
    return model, codec, sequences


def gradient_by_definition(model, codec, sequence, groups, passes):
    """Gradient of the summed loss of one unpadded sequence w.r.t. lm_head.dense.weight, fp64."""
    model = model.double()
    ids, lengths = codec.collate([sequence])
    group = torch.from_numpy(
        mask_groups(ids.shape[1], lengths, hash_sequences([sequence]), groups)
    )[0]
    ids = torch.from_numpy(ids)[0]
    name = "lm_head.dense.weight"

    def loss(weight):
        total = 0.0
        for number in range(passes):
            masked = torch.where(group == number, codec.mask_id, ids)
            out = functional_call(
                model,
                {name: weight},
                (),
                {"input_ids": masked[None], "attention_mask": (ids >= 0)[None].long()},
            )
            logs = torch.log_softmax(out.logits[0], -1)
            total = total - logs[torch.arange(len(ids)), ids][group == number].sum()
        return total

    weight = model.get_parameter(name).detach()
    n = int(((group >= 0) & (group < passes)).sum())
    result = grad(loss)(weight), loss(weight).item(), n
    model.float()
    return result


@pytest.mark.parametrize("reduction", ["sqrt", "mean", "sum"])
@pytest.mark.parametrize(("groups", "passes"), [(7, 7), (7, 2), (4, 4)])
def test_scores_equal_the_formula(setting, reduction, groups, passes):
    model, codec, sequences = setting
    sequences = [s for s in sequences if len(s) >= groups]
    recipe = ScoreRecipe(reduction=reduction, damping=1e-6, batch_tokens=200)
    gradients = HeadGradients(model, codec, masks=MaskScheme(groups=groups, passes=passes))
    fisher = estimate_fisher(gradients, sequences[:3], recipe)
    scores = score_sequences(gradients, fisher, sequences, recipe)

    exact = [gradient_by_definition(model, codec, s, groups, passes) for s in sequences]
    reduced = [g * REDUCTIONS[reduction](n) for g, _, n in exact]
    diagonal = torch.stack(reduced[:3]).square().mean(0)
    found = fisher.tensors["lm_head.dense"].double()
    torch.testing.assert_close(found, diagonal, rtol=1e-4, atol=1e-9)
    expected = [float((g.square() / (diagonal + 1e-6)).sum()) for g in reduced]
    np.testing.assert_allclose(scores.influence, expected, rtol=1e-4)
    np.testing.assert_allclose(scores.loss, [loss / n for _, loss, n in exact], rtol=1e-5)
    assert scores.n_tokens.tolist() == [n for _, _, n in exact]


def test_batches_and_order_do_not_matter(setting):
    """Invariant 2: 1e-5 relative in fp32."""
    model, codec, sequences = setting
    gradients = HeadGradients(model, codec)
    fisher = estimate_fisher(gradients, sequences, ScoreRecipe())
    base = score_sequences(gradients, fisher, sequences, ScoreRecipe(batch_tokens=100_000))
    for tokens in (1, 64, 300):
        other = score_sequences(gradients, fisher, sequences, ScoreRecipe(batch_tokens=tokens))
        np.testing.assert_allclose(other.influence, base.influence, rtol=1e-5)
        np.testing.assert_allclose(other.loss, base.loss, rtol=1e-5)
    order = [3, 1, 5, 0, 4, 2]
    shuffled = score_sequences(gradients, fisher, [sequences[i] for i in order], ScoreRecipe())
    np.testing.assert_allclose(shuffled.influence, base.influence[order], rtol=1e-5)
    again = score_sequences(gradients, fisher, sequences, ScoreRecipe(batch_tokens=100_000))
    assert np.array_equal(again.influence, base.influence)


def test_memory_chunks_do_not_matter(setting, monkeypatch):
    model, codec, sequences = setting
    gradients = HeadGradients(model, codec)
    fisher = estimate_fisher(gradients, sequences, ScoreRecipe())
    base = score_sequences(gradients, fisher, sequences, ScoreRecipe())
    monkeypatch.setattr("frugalfm.influence.fisher._CHUNK", 1)
    np.testing.assert_allclose(
        score_sequences(gradients, fisher, sequences, ScoreRecipe()).influence,
        base.influence,
        rtol=1e-5,
    )
    again = estimate_fisher(gradients, sequences, ScoreRecipe())
    np.testing.assert_allclose(
        again.tensors["lm_head.dense"], fisher.tensors["lm_head.dense"], rtol=1e-5
    )


def test_the_trunk_gets_no_gradient_and_the_model_stays_as_it_was(setting):
    model, codec, sequences = setting
    before = {name: p.clone() for name, p in model.named_parameters()}
    gradients = HeadGradients(model, codec)
    estimate_fisher(gradients, sequences, ScoreRecipe())
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])
    assert not model.lm_head.dense._forward_hooks


def test_sum_favours_long_and_mean_favours_short(setting):
    """Why the default reduction is 1/sqrt(n): same kind of sequence, different lengths."""
    model, codec, _ = setting
    random = np.random.default_rng(5)
    sequences = [random.integers(4, 8, n).astype(np.uint8) for n in [25] * 20 + [200] * 20]
    gradients = HeadGradients(model, codec)
    ratios = {}
    for reduction in REDUCTIONS:
        recipe = ScoreRecipe(reduction=reduction)
        fisher = estimate_fisher(gradients, sequences, recipe)
        found = score_sequences(gradients, fisher, sequences, recipe).influence
        ratios[reduction] = found[:20].mean() / found[20:].mean()
    assert ratios["mean"] > ratios["sqrt"] > ratios["sum"]


def test_another_layer_of_the_head_can_be_named(setting):
    model, codec, sequences = setting
    assert HeadGradients(model, codec).layers == ["lm_head.dense"]
    gradients = HeadGradients(model, codec, head="lm_head.decoder")
    assert gradients.layers == ["lm_head.decoder"]
    found = []
    gradients(sequences, "sum", lambda _, inputs, deltas: found.append(deltas.mT @ inputs))
    # The decoder's outputs are the logits; their gradients are what the loss gives them.
    assert found[0].shape == (len(sequences), model.config.vocab_size, model.config.hidden_size)
    assert float(found[0].sum(1).abs().max()) < 1e-3
