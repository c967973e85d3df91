"""The head starts as the linear probe of what it reads, fitted by the oracle, scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tuning_tasks import make_pairs, make_task

from frugalfm.encoders import create_encoder
from frugalfm.probing.embed import Embedder
from frugalfm.probing.probes import choose, fit_logistic, fit_ridge
from frugalfm.tasks import read_task
from frugalfm.tasks.results import score_split
from frugalfm.tokens.codec import Codec
from frugalfm.training.labelled import TuningData
from frugalfm.training.tuned import make_tunable
from frugalfm.training.tuning import TuningRecipe, decide, predict, tune

# One step that changes nothing: what is kept is what tuning starts at.
STILL = TuningRecipe(max_steps=1, learning_rate=1e-12)


@pytest.fixture(scope="module")
def encoder():
    return create_encoder("rna-fm-nano", seed=3)


def embed(encoder, sequences, pooling="mean"):
    codec = Codec.from_tokenizer(encoder[1])
    tokens, lengths = codec.encode(sequences)
    return Embedder(encoder[0], codec, pooling).embed(np.split(tokens, np.cumsum(lengths)[:-1]))


def start(encoder, task, split, method="full"):
    codec = Codec.from_tokenizer(encoder[1])
    model = make_tunable(encoder[0], task, method, STILL)
    tuned = tune(model, task, STILL, codec)
    return predict(model, TuningData.encode(split, task.kind, codec, None), STILL), tuned


def best(task, x, held, probes, read):
    metric = "spearman" if task.kind in {"regression", "affinity"} else "mcc"
    values = [
        score_split(task, task.dev, read(probe.outputs(held)), resamples=0)[metric].value
        for probe in probes
    ]
    return probes[choose(values)], max(values)


@pytest.mark.parametrize("classes", [2, 4])
def test_classes(tmp_path, encoder, classes):
    task = read_task(make_task(tmp_path / "t", classes=classes), "rna")
    x, held, test = (embed(encoder, s.sequences) for s in task.splits.values())
    probes = fit_logistic(x, task.train.targets, classes)
    probe, value = best(task, x, held, probes, lambda out: out.argmax(1))
    found, tuned = start(encoder, task, task.test)
    scale = np.abs(probe.outputs(test)).max()
    np.testing.assert_allclose(found, probe.outputs(test), atol=1e-5 * max(1, scale))
    assert tuned.start["setting"] == probe.setting
    assert tuned.start["value"] == pytest.approx(value)
    assert (tuned.best_step, tuned.history[0]["step"]) == (0, 0)
    # And the probe is what scikit-learn makes of standardised embeddings.
    oracle = make_pipeline(
        StandardScaler(), LogisticRegression(C=probe.setting, max_iter=1000, tol=1e-3)
    ).fit(x.astype(np.float64), task.train.targets)
    odds = np.exp(found - found.max(1, keepdims=True))
    np.testing.assert_allclose(
        odds / odds.sum(1, keepdims=True), oracle.predict_proba(test.astype(np.float64)), atol=2e-3
    )


def test_numbers(tmp_path, encoder):
    task = read_task(make_task(tmp_path / "t", "regression"), "rna")
    x, held, test = (embed(encoder, s.sequences) for s in task.splits.values())
    probe, _ = best(task, x, held, fit_ridge(x, task.train.targets), lambda out: out[:, 0])
    found, tuned = start(encoder, task, task.test)
    np.testing.assert_allclose(found, probe.outputs(test), rtol=1e-5)
    assert tuned.start["setting"] == probe.setting


def test_several_labels(tmp_path, encoder):
    task = read_task(make_task(tmp_path / "t", "multilabel"), "rna", kind="multilabel")
    x, _, test = (embed(encoder, s.sequences) for s in task.splits.values())
    found, tuned = start(encoder, task, task.test)
    for column, flags in enumerate(task.train.targets.T):
        oracle = make_pipeline(
            StandardScaler(),
            LogisticRegression(C=tuned.start["setting"], max_iter=1000, tol=1e-3),
        ).fit(x.astype(np.float64), flags)
        expected = oracle.predict_proba(test.astype(np.float64))[:, 1]
        np.testing.assert_allclose(1 / (1 + np.exp(-found[:, column])), expected, atol=2e-3)


def test_residues(tmp_path, encoder):
    task = read_task(make_task(tmp_path / "t", "token"), "rna")
    x, held, test = (embed(encoder, s.sequences, "token") for s in task.splits.values())
    probes = fit_logistic(x, task.train.targets, len(task.classes))
    probe, _ = best(task, x, held, probes, lambda out: out.argmax(1))
    found, _ = start(encoder, task, task.test)
    expected = probe.outputs(test)
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("kind", ["interaction", "affinity"])
def test_pairs_of_sequences(tmp_path, encoder, kind):
    task = read_task(make_pairs(tmp_path / "t", kind), "rna", kind=kind)
    features = []
    for split in task.splits.values():
        a, b = embed(encoder, split.sequences), embed(encoder, split.partners)
        features.append(np.concatenate([a + b, a * b, np.abs(a - b)], axis=1))
    x, held, test = features
    y = task.train.targets
    fitted = fit_logistic(x, y, 2) if kind == "interaction" else fit_ridge(x, y)
    probe, _ = best(task, x, held, fitted, lambda out: decide(kind, out))
    found, _ = start(encoder, task, task.test)
    expected = probe.outputs(test)
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))


def test_lora_starts_there_too(tmp_path, encoder):
    pytest.importorskip("peft")
    task = read_task(make_task(tmp_path / "t"), "rna")
    whole, _ = start(encoder, task, task.test)
    adapter, _ = start(encoder, task, task.test, "lora")
    np.testing.assert_allclose(adapter, whole, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_tuning_never_ends_below_its_start(tmp_path, encoder, pooling):
    task = read_task(make_task(tmp_path / "t", sizes=(64, 32, 8)), "rna")
    ruinous = TuningRecipe(epochs=2, learning_rate=1.0, seed=1)
    model = make_tunable(encoder[0], task, "full", ruinous, pooling=pooling)
    tuned = tune(model, task, ruinous, Codec.from_tokenizer(encoder[1]))
    assert tuned.best >= tuned.start["value"] - 1e-9


def test_at_random_there_is_no_candidate_before_the_first_step(tmp_path, encoder):
    task = read_task(make_task(tmp_path / "t", sizes=(64, 32, 8)), "rna")
    recipe = TuningRecipe(max_steps=2, start="random", learning_rate=1e-12)
    model = make_tunable(encoder[0], task, "full", recipe)
    before = model.classifier.weight.detach().clone()
    tuned = tune(model, task, recipe, Codec.from_tokenizer(encoder[1]))
    assert tuned.start is None
    assert [line["step"] for line in tuned.history] == [2]
    torch.testing.assert_close(model.classifier.weight, before)


def test_a_class_that_was_not_drawn_is_a_number(tmp_path, encoder, monkeypatch):
    from frugalfm.training import starts

    monkeypatch.setattr(starts, "_MOST", 8)
    task = read_task(make_task(tmp_path / "t", classes=4), "rna")
    found, tuned = start(encoder, task, task.test)
    assert tuned.start["items"] == 8
    assert found.min() > -1e3
