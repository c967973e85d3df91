"""Tuning: learns, keeps its best weights, and depends on nothing that it should not."""

import copy

import numpy as np
import pytest
import torch
from tuning_tasks import make_task

from frugalfm.encoders import create_encoder
from frugalfm.encoders.heads import add_head
from frugalfm.errors import FrugalError, InputError
from frugalfm.tasks import read_task
from frugalfm.tokens.codec import Codec
from frugalfm.training.labelled import TuningData
from frugalfm.training.presets import PRESETS, find_preset
from frugalfm.training.tuned import evaluate_tuned, make_tunable
from frugalfm.training.tuning import Tuned, TuningRecipe, decide, predict, tune

FAST = TuningRecipe(epochs=6, learning_rate=3e-3, warmup_steps=2)


@pytest.fixture(scope="module")
def encoder():
    return create_encoder("rna-fm-nano", seed=0)


def codec_of(encoder):
    return Codec.from_tokenizer(encoder[1])


@pytest.mark.parametrize(
    ("kind", "classes", "metric", "floor"),
    [
        ("classification", 2, "mcc", 0.8),
        ("classification", 4, "mcc", 0.7),
        ("multilabel", 4, "mcc", 0.6),
        ("regression", 2, "spearman", 0.8),
        ("token", 4, "mcc", 0.95),
    ],
)
def test_learns_what_is_easy(tmp_path, encoder, kind, classes, metric, floor):
    task = read_task(make_task(tmp_path / "t", kind, classes=classes), "rna", kind=kind)
    codec = codec_of(encoder)
    model = make_tunable(encoder[0], task, "full", FAST)
    tuned = tune(model, task, FAST, codec)
    result = evaluate_tuned(model, task, FAST, codec, max_tokens=None, how={}, resamples=20)
    assert result.metrics["test"][metric]["value"] > floor
    best = result.metrics["dev"][metric]["value"]
    assert tuned.best == pytest.approx(best, abs=1e-6)  # the weights of the best step were kept
    assert result.predictions.num_rows == 48
    if kind == "regression":  # in the labels' own units
        assert result.metrics["test"]["mse"]["value"] < 0.5 * np.var(task.test.targets)


def test_pads_and_passes_do_not_matter(tmp_path, encoder):
    task = read_task(make_task(tmp_path / "t", sizes=(40, 8, 8)), "rna")
    codec = codec_of(encoder)
    weights = []
    for batch_tokens in (30, 100_000):
        recipe = TuningRecipe(max_steps=3, batch_tokens=batch_tokens, learning_rate=1e-3)
        model = make_tunable(encoder[0], task, "full", recipe)
        tune(model, task, recipe, codec)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=2e-5)
    data = TuningData.encode(task.test, "classification", codec, None)
    together = predict(model, data, recipe)
    alone = [
        predict(model, TuningData([s], [t], "classification", codec), recipe)[0]
        for s, t in zip(data.sequences, data.targets, strict=True)
    ]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_same_seed_gives_the_same_weights(tmp_path, encoder):
    task = read_task(make_task(tmp_path / "t", sizes=(40, 8, 8)), "rna")
    weights = {}
    for seed in (1, 1, 2):
        recipe = TuningRecipe(max_steps=3, seed=seed, start="random")
        model = make_tunable(encoder[0], task, "full", recipe)
        tune(model, task, recipe, codec_of(encoder))
        found = torch.cat([p.detach().flatten() for p in model.parameters()])
        assert seed not in weights or torch.equal(weights[seed], found)
        weights[seed] = found
    assert not torch.equal(weights[1], weights[2])


def test_tuning_never_reads_test(tmp_path, encoder):
    task = read_task(make_task(tmp_path / "t", sizes=(40, 8, 8)), "rna")
    object.__setattr__(task, "test", None)
    model = make_tunable(encoder[0], task, "full", FAST)
    tune(model, task, TuningRecipe(max_steps=2), codec_of(encoder))


def test_every_sequence_once_an_epoch_in_full_batches():
    lengths = np.random.default_rng(0).integers(1, 50, 101)
    data = TuningData([np.zeros(n, np.uint8) for n in lengths], [], "classification", None)
    plan = data.plan(32, seed=1, epoch=0)
    assert sorted(map(len, plan)) == [5, 32, 32, 32]
    assert sorted(np.concatenate(plan)) == list(range(101))
    again = data.plan(32, seed=1, epoch=1)
    assert any(not np.array_equal(a, b) for a, b in zip(plan, again, strict=True))


def test_patience_ends_what_does_not_improve(tmp_path, encoder):
    task = read_task(make_task(tmp_path / "t", sizes=(40, 8, 8)), "rna")
    recipe = TuningRecipe(epochs=50, learning_rate=1e-12, patience=2, start="random")
    model = make_tunable(encoder[0], task, "full", recipe)
    tuned = tune(model, task, recipe, codec_of(encoder))
    assert (tuned.stopped, tuned.steps, tuned.best_step) == (True, 6, 2)


def test_patience_looks_at_what_was_trained():
    """A dip below the probe is no reason to stop as long as dev rises."""
    tuned = Tuned("mcc")
    kept = []
    for step, value in enumerate([0.6, 0.1, 0.3, 0.2, float("nan"), 0.5, 0.7]):
        tuned.steps = step
        kept.append(tuned.note(step, None, value))
        assert tuned.since_reached == [0, 0, 0, 1, 2, 0, 0][step]
    assert kept == [True, False, False, False, False, False, True]
    assert (tuned.best, tuned.best_step, tuned.reached) == (0.7, 6, 0.7)


def test_a_loss_that_is_not_finite_is_an_error(tmp_path, encoder):
    task = read_task(make_task(tmp_path / "t", sizes=(40, 8, 8)), "rna")
    model = make_tunable(encoder[0], task, "full", FAST)
    with torch.no_grad():
        model.esm.encoder.emb_layer_norm_after.bias.fill_(torch.nan)
    with pytest.raises(FrugalError, match="learning-rate"):
        tune(model, task, FAST, codec_of(encoder))


def test_a_head_may_have_a_learning_rate_of_its_own(tmp_path, encoder):
    task = read_task(make_task(tmp_path / "t", sizes=(40, 8, 8)), "rna")
    moved = {}
    for rate in (None, 1e-2):
        recipe = TuningRecipe(
            max_steps=1, learning_rate=1e-4, head_learning_rate=rate, start="random", clip=1e9
        )
        model = make_tunable(encoder[0], task, "full", recipe)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        tune(model, task, recipe, codec_of(encoder))
        moved[rate] = {n: float((p - before[n]).abs().max()) for n, p in model.named_parameters()}
    # AdamW's first step is the learning rate, in every coordinate.
    assert moved[1e-2]["classifier.weight"] == pytest.approx(1e-2, rel=0.05)
    assert moved[None]["classifier.weight"] == pytest.approx(1e-4, rel=0.05)
    name = "esm.encoder.layer.0.attention.self.value.weight"
    assert moved[1e-2][name] == pytest.approx(moved[None][name], rel=1e-3)


def test_residues_without_a_label_do_not_count(tmp_path, encoder):
    from frugalfm.training.outputs import accumulate

    task = read_task(make_task(tmp_path / "t", "token", sizes=(8, 8, 8)), "rna")
    data = TuningData.encode(task.train, "token", codec_of(encoder), None)
    model = add_head(encoder[0], "token", task.classes)
    for target in data.targets:
        target[::2] = -100
    found = accumulate(model, data, np.arange(8), 60, "fp32", (0.0, 1.0))
    logits = torch.from_numpy(predict(model, data, FAST)).double()
    targets = torch.from_numpy(np.concatenate(data.targets))
    expected = torch.nn.functional.cross_entropy(logits[targets >= 0], targets[targets >= 0])
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_head_leaves_the_encoder_alone(encoder):
    before = copy.deepcopy(encoder[0].state_dict())
    model = add_head(encoder[0], "token", ["a", "b", "c"], seed=3)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.config.attention == encoder[0].config.attention
    for name, value in model.esm.state_dict().items():
        assert torch.equal(value, before[f"esm.{name}"])
    again = add_head(encoder[0], "token", ["a", "b", "c"], seed=3)
    assert torch.equal(model.classifier.weight, again.classifier.weight)


def test_long_sequences_are_cut_in_tokens(tmp_path, encoder):
    task = read_task(make_task(tmp_path / "t", sizes=(40, 8, 8)), "rna")
    data = TuningData.encode(task.train, "classification", codec_of(encoder), 12)
    assert data.lengths.max() == 10
    assert data.cropped == (task.train.lengths > 10).sum()


def test_decisions():
    outputs = np.array([[1.0, -2.0], [-1.0, 3.0]])
    assert decide("classification", outputs).tolist() == [0, 1]
    assert decide("multilabel", outputs).tolist() == [[1, 0], [0, 1]]
    assert decide("regression", outputs[:, :1]).tolist() == [1.0, -1.0]


@pytest.mark.parametrize(
    ("folder", "alphabet", "expected"),
    [
        ("GUE/tf/0", "dna", "gue/tf"),
        ("GUE/EMP/H3K4me1", "dna", "gue/emp"),
        ("prom/prom_core_tata", "dna", "gue/prom_core_tata"),
        ("splice/reconstructed", "dna", "gue/splice"),
        ("virus/covid", "dna", "gue/covid"),
        ("GUE/tf/0", "rna", None),
        ("mine", "dna", None),
    ],
)
def test_presets_go_by_the_folders_name(tmp_path, folder, alphabet, expected):
    assert find_preset("auto", tmp_path / folder, alphabet) == expected


def test_presets_by_name():
    assert find_preset("gue/tf", "x", "rna") == "gue/tf"
    assert find_preset("none", "tf/0", "dna") is None
    with pytest.raises(InputError, match="gue/mouse"):
        find_preset("gue/rat", "x", "dna")
    assert PRESETS["gue/mouse"].max_steps == 1000
