"""The traditional method: its grids from independently captured ranges, its cost by width."""

import numpy as np
import pytest
import torch

from frugalfm.errors import InputError
from frugalfm.quantization import METHODS, compare, split_batches, survey_sites
from frugalfm.quantization.data import Split
from frugalfm.tokens.masking import IGNORED


def test_ranges_are_those_of_real_tokens_alone(model, codec, split, run):
    """Batch by batch, sequence by sequence without pads, averaged by hand."""
    scheme = METHODS["minmax"](model, split.calibration)
    name = "esm.encoder.layer.2.output.dense"
    ends = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda m, inputs: ends.append((float(inputs[0].min()), float(inputs[0].max())))
    )
    low = high = None
    for batch in split.calibration:
        ends.clear()
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
            kept = ids[mask.bool()][None]
            with torch.no_grad():
                model(input_ids=kept, attention_mask=torch.ones_like(kept))
        new_low, new_high = min(e[0] for e in ends), max(e[1] for e in ends)
        low = new_low if low is None else 0.9 * low + 0.1 * new_low
        high = new_high if high is None else 0.9 * high + 0.1 * new_high
    handle.remove()
    grid = scheme.input_grids[name]
    assert float(grid.scale) == pytest.approx((max(high, 0) - min(low, 0)) / 255, rel=1e-4)
    assert int(grid.zero_point) == pytest.approx(-low / float(grid.scale), abs=0.51)
    weight = model.get_submodule(name).weight
    step = float(weight.detach().abs().max()) / 127
    assert float(scheme.weight_grids[name].scale) == pytest.approx(step, rel=1e-6)


def test_cost_grows_as_bits_shrink(model, split):
    costs = {}
    for bits in (8, 6, 4, 2):
        scheme = METHODS["minmax"](model, split.calibration, weights=bits, activations=bits)
        costs[bits] = compare(model, scheme, split.evaluation)
    assert costs[8].label == "W8A8"
    assert abs(costs[8].increase) < 0.01 < 0.2 < costs[2].increase
    errors = [costs[bits].output_error for bits in (8, 6, 4, 2)]
    agreements = [costs[bits].agreement for bits in (8, 6, 4, 2)]
    assert errors == sorted(errors)
    assert agreements == sorted(agreements, reverse=True)
    assert costs[4].increase < costs[2].increase


def test_finer_granularity_is_closer(model, split):
    coarse = METHODS["minmax"](model, split.calibration, weights=4, activations=4)
    fine = METHODS["minmax"](
        model,
        (),
        weights=4,
        activations=4,
        weight_granularity="channel",
        activation_granularity="token",
    )
    a, b = (compare(model, scheme, split.evaluation) for scheme in (coarse, fine))
    assert b.output_error < a.output_error
    assert not b.saturation
    assert set(a.saturation) == set(coarse.sites)


def test_comparison_is_what_a_plain_loop_finds(model, split, run):
    from frugalfm.quantization import simulate

    scheme = METHODS["minmax"](model, split.calibration, weights=4, activations=4)
    found = compare(model, scheme, split.evaluation)
    losses, same, errors, right = [[], []], [], [], []
    for batch in split.evaluation:
        plain = run(model, batch)
        with simulate(model, scheme):
            rounded = run(model, batch)
        for row, position in (batch.labels != IGNORED).nonzero().tolist():
            x, y = (z[row, position].double().numpy() for z in (plain, rounded))
            truth = int(batch.labels[row, position])
            for which, logits in enumerate((x, y)):
                losses[which].append(np.log(np.exp(logits).sum()) - logits[truth])
            same.append(x.argmax() == y.argmax())
            right.append(x.argmax() == truth)
            errors.append(np.linalg.norm(y - x) / np.linalg.norm(x))
    assert found.targets == len(same)
    assert found.loss == pytest.approx(np.mean(losses[0]), rel=1e-5)
    assert found.quantized_loss == pytest.approx(np.mean(losses[1]), rel=1e-5)
    increase = np.mean(losses[1]) - np.mean(losses[0])
    assert found.increase == pytest.approx(increase, abs=1e-5)
    assert found.increase_percent == pytest.approx(100 * increase / np.mean(losses[0]), abs=1e-3)
    assert found.agreement == pytest.approx(np.mean(same))
    assert found.accuracy == pytest.approx(np.mean(right))
    assert found.output_error == pytest.approx(np.mean(errors), rel=1e-4)
    assert found.increase_standard_error > 0


def test_sixteen_is_floating_point_and_labels_never_collide(model, split):
    labels = {}
    for weights, activations in ((8, 8), (8, 16), (16, 8), (16, 16)):
        scheme = METHODS["minmax"](
            model, split.calibration[:2], weights=weights, activations=activations
        )
        labels[scheme.label] = scheme.meaning
        found = compare(model, scheme, split.evaluation[:1])
        assert (found.label, found.meaning) == (scheme.label, scheme.meaning)
    assert list(labels) == ["W8A8", "W8A16", "W16A8", "W16A16"]
    assert labels["W8A8"] == "weight-and-activation"
    assert labels["W8A16"].startswith("weight-only")
    assert len(set(labels.values())) == 4
    assert found.increase == 0
    assert found.output_error == 0


def test_saturating_sites_are_named(model, codec, split):
    """Calibrated on activations that one changed LayerNorm makes much smaller."""
    norm = model.esm.encoder.layer[1].LayerNorm
    with torch.no_grad():
        norm.weight /= 10
        norm.bias /= 10
    scheme = METHODS["minmax"](model, split.calibration)
    with torch.no_grad():
        norm.weight *= 10
        norm.bias *= 10
    found = compare(model, scheme, split.evaluation)
    assert next(iter(found.saturating)) == "esm.encoder.layer.1.intermediate.dense"
    sound = compare(model, METHODS["minmax"](model, split.calibration), split.evaluation)
    assert not sound.saturating


def test_faults_name_the_site(model, split):
    with pytest.raises(InputError, match="give at least one"):
        METHODS["minmax"](model, [])
    with pytest.raises(InputError, match="2 to 16"):
        METHODS["minmax"](model, split.calibration, weights=1)
    with pytest.raises(InputError, match="not per token"):
        METHODS["minmax"](model, split.calibration, weight_granularity="token")
    with pytest.raises(InputError, match="not per channel"):
        METHODS["minmax"](model, split.calibration, activation_granularity="channel")
    scheme = METHODS["minmax"](model, split.calibration[:1])
    with pytest.raises(InputError, match="no masked position"):
        compare(model, scheme, [])
    with torch.no_grad():
        model.esm.encoder.layer[1].intermediate.dense.bias[3] = torch.inf
    with pytest.raises(InputError, match=r"input of esm\.encoder\.layer\.1\.output\.dense is not"):
        METHODS["minmax"](model, split.calibration)
    with pytest.raises(InputError, match="output is not finite"):
        compare(model, scheme, split.evaluation)
    with torch.no_grad():
        model.esm.encoder.layer[0].output.dense.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"weight of esm\.encoder\.layer\.0\.output\.dense is not"):
        METHODS["minmax"](model, split.calibration)


def test_split_is_disjoint_exact_and_reproducible(codec):
    random = np.random.default_rng(0)
    sequences = [random.integers(4, 8, size=n).astype(np.uint8) for n in range(10, 81)]
    split = split_batches(sequences, codec, calibration_batches=5, limit=30, batch_tokens=300)
    assert isinstance(split, Split)
    assert len(split.calibration) == 5
    assert len({len(batch.input_ids) for batch in split.calibration}) == 1
    assert all(batch.input_ids.numel() <= 300 for batch in split.calibration + split.evaluation)
    assert not set(split.calibration_rows) & set(split.evaluation_rows)
    assert len(set(split.evaluation_rows)) == len(split.evaluation_rows) == 30
    again = split_batches(sequences, codec, calibration_batches=5, limit=30, batch_tokens=300)
    for one, other in zip(split.evaluation, again.evaluation, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.labels, other.labels)
    with pytest.raises(InputError, match="need 80"):
        split_batches(sequences, codec, calibration_batches=40)


def test_scheme_covers_the_survey(model, split):
    scheme = METHODS["minmax"](model, split.calibration[:1])
    names = [site.name for site in survey_sites(model).sites]
    assert list(scheme.sites) == names == list(scheme.weight_grids) == list(scheme.input_grids)
