"""Heads for pairs: their losses by hand, one sequence at a time; no pad matters; they reload."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tuning_tasks import make_maps, make_pairs

from frugalfm.encoders import create_encoder
from frugalfm.tasks import read_task
from frugalfm.tasks.maps import CAP
from frugalfm.tokens.codec import Codec
from frugalfm.training.labelled import TuningData
from frugalfm.training.map_outputs import measure_maps, positions_head
from frugalfm.training.outputs import accumulate, forward
from frugalfm.training.pairs import (
    PositionsHead,
    load_pair_model,
    make_pair_model,
    save_pair_model,
)
from frugalfm.training.tuned import evaluate_tuned, make_tunable
from frugalfm.training.tuning import TuningRecipe, predict, tune

MAPS = ["contact", "distance", "base-pair"]
FAST = TuningRecipe(epochs=6, learning_rate=3e-3, head_learning_rate=2e-2, warmup_steps=2)


@pytest.fixture(scope="module")
def encoder():
    return create_encoder("rna-fm-nano", seed=0)


def read(tmp_path, encoder, kind):
    make = make_maps if kind in MAPS else make_pairs
    task = read_task(make(tmp_path / "t", kind), "rna", kind=kind)
    codec = Codec.from_tokenizer(encoder[1])
    return task, codec, TuningData.encode(task.train, kind, codec, None)


def states_of(model, data, row):
    """Last hidden states of one sequence alone."""
    ids = torch.from_numpy(data.codec.collate([row])[0])
    trunk = getattr(model.encoder, model.encoder.base_model_prefix)
    return trunk(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0, 1:-1]


def shake(model, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def map_by_hand(head, h):
    """The head's formula, pair by pair."""
    h = torch.nn.functional.layer_norm(h, h.shape[-1:], head.norm.weight, head.norm.bias)
    rows = []
    for i in range(len(h)):
        row = []
        for j in range(len(h)):
            form = (head.form * (head.project.weight @ h[i]) * (head.project.weight @ h[j])).sum()
            single = head.single.weight[0] @ (h[i] + h[j])
            bin_ = sum(abs(i - j) >= int(edge) for edge in head.edges)
            row.append(form + single + head.apart[bin_])
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", MAPS)
def test_loss_and_gradient_of_maps_by_hand(tmp_path, encoder, kind):
    task, _, data = read(tmp_path, encoder, kind)
    ours = shake(make_pair_model(encoder[0], "positions"))
    theirs = copy.deepcopy(ours)
    rows, standard = np.arange(4), (8.0, 3.0)
    total = accumulate(ours, data, rows, 60, "fp32", standard)  # several padded batches
    losses = []
    for row in rows:
        outputs = map_by_hand(theirs.head, states_of(theirs, data, data.sequences[row]))
        values, valid = task.train.maps.matrix(int(row))
        terms = []
        for i, j in zip(*np.nonzero(np.triu(valid)), strict=True):
            z, y = outputs[i, j], float(values[i, j])
            if kind == "distance":
                assert y <= CAP
                terms.append((z - (y - 8.0) / 3.0) ** 2)
            else:
                terms.append(torch.log1p(torch.exp(-z if y else z)))
        losses.append(torch.stack(terms).mean())
    expected = torch.stack(losses).mean()
    expected.backward()
    assert float(total) == pytest.approx(expected.item(), rel=1e-5)
    compared = 0
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6, msg=name)
            compared += 1
    assert compared > 20


@pytest.mark.parametrize("kind", ["interaction", "affinity"])
@pytest.mark.parametrize("order", ["symmetric", "ordered"])
def test_loss_of_pairs_of_sequences_by_hand(tmp_path, encoder, kind, order):
    task, _, data = read(tmp_path, encoder, kind)
    outputs = len(task.classes) or 1
    ours = shake(make_pair_model(encoder[0], "sequences", outputs, order=order))
    theirs = copy.deepcopy(ours)
    rows, standard = np.arange(6), (7.5, 0.5)
    total = accumulate(ours, data, rows, 100, "fp32", standard)
    losses = []
    for row in rows:
        a, b = (
            states_of(theirs, data, found[row]).mean(0) for found in (data.sequences, data.partners)
        )
        parts = [a, b, a * b] if order == "ordered" else [a + b, a * b, (a - b).abs()]
        z = theirs.head.linear.weight @ torch.cat(parts) + theirs.head.linear.bias
        y = task.train.targets[row]
        if kind == "affinity":
            losses.append((z[0] - (y - 7.5) / 0.5) ** 2)
        else:
            losses.append(torch.logsumexp(z, 0) - z[y])
    expected = torch.stack(losses).mean()
    expected.backward()
    assert float(total) == pytest.approx(expected.item(), rel=1e-5)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad.float(), rtol=1e-3, atol=1e-6, msg=name)


def test_order_of_a_pair_matters_only_if_asked(tmp_path, encoder):
    _, _, data = read(tmp_path, encoder, "interaction")
    turned = replace(data, sequences=data.partners, partners=data.sequences)
    for order, same in (("symmetric", True), ("ordered", False)):
        model = shake(make_pair_model(encoder[0], "sequences", 2, order=order))
        found = [predict(model, part, FAST) for part in (data, turned)]
        assert np.allclose(*found, atol=1e-5) == same


@pytest.mark.parametrize("kind", [*MAPS, "interaction"])
def test_padding_changes_nothing(tmp_path, encoder, kind):
    _, _, data = read(tmp_path, encoder, kind)
    what = "positions" if kind in MAPS else "sequences"
    model = shake(make_pair_model(encoder[0], what, 2 if what == "sequences" else 1))
    rows = np.arange(5)
    with torch.no_grad():
        together = forward(model, data, rows, "fp32")
        for row in rows:
            alone = forward(model, data, rows[row : row + 1], "fp32")[0]
            found = together[row]
            if kind in MAPS:
                end = len(data.sequences[row]) + 1
                alone, found = alone[1:end, 1:end], found[1:end, 1:end]
                assert torch.equal(found, found.T)
            torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)


def test_what_stands_in_a_pad_does_not_matter():
    head = PositionsHead(8)
    states, mask = torch.randn(1, 6, 8), torch.tensor([[1, 1, 1, 1, 0, 0]])
    dirty = states.clone()
    dirty[:, 4:] = torch.nan
    assert torch.equal(head(states, mask)[:, :4, :4], head(dirty, mask)[:, :4, :4])


@pytest.mark.parametrize(
    ("kind", "chosen_by", "metric", "floor"),
    [
        ("contact", "top_L", "top_L/5", 0.5),  # of 0.58 at best: some have too few contacts
        ("distance", "spearman", "spearman", 0.7),
        ("base-pair", "f1", "f1", 0.7),
        ("interaction", "mcc", "mcc", 0.6),
        ("affinity", "spearman", "spearman", 0.6),
    ],
)
def test_learns_what_is_easy(tmp_path, encoder, kind, chosen_by, metric, floor):
    task, codec, _ = read(tmp_path, encoder, kind)
    if kind in MAPS:
        epochs = {"contact": 8, "distance": 12, "base-pair": 40}[kind]
        recipe = replace(FAST, epochs=epochs, head_learning_rate=None, patience=40)
    else:
        recipe = FAST
    model = make_tunable(encoder[0], task, "full", recipe)
    tuned = tune(model, task, recipe, codec)
    result = evaluate_tuned(model, task, recipe, codec, max_tokens=None, how={}, resamples=20)
    assert tuned.metric == chosen_by
    assert result.metrics["dev"][chosen_by]["value"] == pytest.approx(tuned.best, abs=1e-5)
    assert result.metrics["test"][metric]["value"] > floor
    if kind == "distance":  # in angstrom
        assert result.metrics["test"]["mae"]["value"] < 4
    if kind in MAPS:
        assert tuned.history[0]["step"] == 0


def test_distances_start_at_the_mean_of_their_separation(tmp_path, encoder):
    task, codec, data = read(tmp_path, encoder, "distance")
    recipe = TuningRecipe(max_steps=1, learning_rate=1e-12)
    model = make_tunable(encoder[0], task, "full", recipe)
    with torch.no_grad():
        model.head.form.zero_()  # leaves the separation alone
    tune(model, task, recipe, codec)
    i, j, values = (np.concatenate(c) for c in zip(*map(data.maps.pairs, range(40)), strict=True))
    with torch.no_grad():
        longest = int(data.lengths.argmax())
        found = forward(model, data, np.array([longest]), "fp32")[0, 1:-1, 1:-1].numpy()
    for apart in (6, 9):
        assert found[0, apart] == pytest.approx(values[j - i == apart].mean(), abs=1e-3)


@pytest.mark.parametrize("kind", ["contact", "interaction"])
def test_saved_and_reloaded_it_predicts_the_same(tmp_path, encoder, kind):
    task, codec, data = read(tmp_path, encoder, kind)
    recipe = TuningRecipe(max_steps=2, learning_rate=1e-2)
    model = make_tunable(encoder[0], task, "full", recipe, order="ordered")
    tune(model, task, recipe, codec)
    save_pair_model(model, encoder[1], tmp_path / "m")
    again, _ = load_pair_model(tmp_path / "m")
    rows = np.arange(3)
    with torch.no_grad():
        expected = forward(model, data, rows, "fp32")
        assert torch.equal(forward(again.eval(), data, rows, "fp32"), expected)
    # And the folder is a checkpoint like any other, with the tuned trunk.
    from frugalfm.encoders import load_encoder

    trunk = load_encoder(tmp_path / "m")[0].esm.state_dict()
    assert all(torch.equal(trunk[n], v) for n, v in model.encoder.esm.state_dict().items())


def test_measured_on_the_same_rows_for_the_same_seed(tmp_path, encoder):
    task, codec, _ = read(tmp_path, encoder, "base-pair")
    dev = TuningData.encode(task.dev, "base-pair", codec, None)
    model = shake(make_pair_model(encoder[0], "positions"))
    found = [measure_maps(model, dev, 100, "fp32", (0.0, 1.0), 3) for _ in range(2)]
    assert found[0] == found[1]
    assert positions_head(model) is model.head
