"""A task evaluated end to end: the right rows scored, test untouched by the choice."""

import json

import numpy as np
import pytest
from sklearn import metrics as oracle

from frugalfm.encoders import create_encoder
from frugalfm.errors import InputError
from frugalfm.probing.embed import Embedder
from frugalfm.probing.evaluation import count_residues, draw_whole, evaluate_task
from frugalfm.tasks import read_task
from frugalfm.tokens.codec import Codec


@pytest.fixture(scope="module")
def encoder():
    model, tokenizer = create_encoder("rna-fm-tiny", seed=1)
    return model, Codec.from_tokenizer(tokenizer)


@pytest.fixture
def make(tmp_path):
    def write(label, column="label", sizes=(60, 20, 30)):
        random = np.random.default_rng(3)
        for name, size in zip(("train", "dev", "test"), sizes, strict=True):
            rows = [f"sequence,{column}"]
            for _ in range(size):
                letters = random.choice(list("ACGU"), p=random.dirichlet(np.ones(4)), size=20)
                sequence = "".join(letters[: random.integers(8, 20)])
                rows.append(f"{sequence},{label(sequence)}")
            (tmp_path / f"{name}.csv").write_text("\n".join(rows) + "\n")
        return tmp_path

    return write


def test_classes(encoder, make):
    folder = make(lambda s: "rich" if sum(map(s.count, "GC")) > len(s) / 2 else "poor")
    task = read_task(folder, "rna")
    found = evaluate_task(Embedder(*encoder), task, resamples=50)
    metrics, table = found.metrics, found.predictions
    assert table.column_names == ["row", "label", "prediction", "probability"]
    label, prediction = table["label"].to_pylist(), table["prediction"].to_pylist()
    assert label == task.test.texts.to_pylist()
    accuracy = metrics["test"]["accuracy"]
    assert accuracy["value"] == pytest.approx(oracle.accuracy_score(label, prediction))
    assert accuracy["value"] > 0.85  # composition is nearly linear in the mean embedding
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert metrics["test"]["mcc"]["value"] == pytest.approx(
        oracle.matthews_corrcoef(label, prediction)
    )
    majority = max(metrics["classes"], key=task.train.texts.to_pylist().count)
    assert metrics["baseline"]["predicts"] == majority
    assert metrics["baseline"]["test"]["accuracy"]["value"] == label.count(majority) / 30
    assert metrics["n"] == {"train": 60, "dev": 20, "test": 30}
    probe = metrics["probe"]
    assert probe["grid"][f"{probe['C']:g}"] == max(probe["grid"].values())
    assert probe["grid"][f"{probe['C']:g}"] == pytest.approx(metrics["dev"]["macro_f1"]["value"])
    assert all(0.5 <= p <= 1 for p in table["probability"].to_pylist())
    json.dumps(metrics, allow_nan=False)


def test_test_labels_do_not_reach_the_choice_or_the_predictions(encoder, make):
    folder = make(lambda s: "rich" if sum(map(s.count, "GC")) > len(s) / 2 else "poor")
    first = evaluate_task(Embedder(*encoder), read_task(folder, "rna"), resamples=0)
    test = folder / "test.csv"
    test.write_text(test.read_text().replace("poor", "none").replace("rich", "poor"))
    test.write_text(test.read_text().replace("none", "rich"))
    second = evaluate_task(Embedder(*encoder), read_task(folder, "rna"), resamples=0)
    assert first.metrics["probe"] == second.metrics["probe"]
    assert first.predictions["prediction"] == second.predictions["prediction"]
    accuracies = [x.metrics["test"]["accuracy"]["value"] for x in (first, second)]
    assert sum(accuracies) == pytest.approx(1)


def test_numbers(encoder, make):
    task = read_task(make(lambda s: f"{s.count('A') / len(s):.3f}"), "rna")
    found = evaluate_task(Embedder(*encoder), task, resamples=50)
    assert found.metrics["probe"]["name"] == "ridge regression"
    assert found.metrics["test"]["spearman"]["value"] > 0.8
    assert found.metrics["baseline"]["test"]["spearman"]["value"] is None
    assert found.metrics["baseline"]["predicts"] == pytest.approx(task.train.targets.mean())
    label, prediction = found.predictions["label"], found.predictions["prediction"]
    assert found.metrics["test"]["r2"]["value"] == pytest.approx(
        oracle.r2_score(label.to_numpy(), prediction.to_numpy())
    )
    json.dumps(found.metrics, allow_nan=False)


def test_residues(encoder, make, monkeypatch):
    monkeypatch.setattr("frugalfm.probing.evaluation._WINDOW", 40 * 128)  # several windows
    folder = make(lambda s: s.translate(str.maketrans("ACGU", ".(.)")), "structure")
    task = read_task(folder, "rna")
    found = evaluate_task(
        Embedder(*encoder, pooling="token"), task, train_tokens=400, resamples=50, seed=4
    )
    assert found.metrics["probe"]["train_tokens"] <= 400
    assert found.metrics["test"]["accuracy"]["value"] > 0.97
    labels, predictions = (found.predictions[c].to_pylist() for c in ("label", "prediction"))
    assert [len(p) for p in predictions] == task.test.lengths.tolist()
    assert labels == task.test.texts.to_pylist()
    f1 = oracle.f1_score(list("".join(labels)), list("".join(predictions)), average="macro")
    assert found.metrics["test"]["macro_f1"]["value"] == pytest.approx(f1)


def test_training_sequences_are_drawn_whole_under_the_cap():
    lengths = np.array([30, 10, 20, 40, 5])
    for seed in range(20):
        rows = draw_whole(lengths, 60, seed)
        assert lengths[rows].sum() <= 60
        assert (np.diff(rows) > 0).all()
    assert len({tuple(draw_whole(lengths, 60, seed)) for seed in range(20)}) > 3
    assert len(draw_whole(lengths, 1, 0)) == 1
    assert draw_whole(lengths, 1000, 0).tolist() == [0, 1, 2, 3, 4]


def test_pooling_must_suit_the_task(encoder, make):
    task = read_task(make(lambda s: s[0]), "rna")
    with pytest.raises(InputError, match="does not suit"):
        evaluate_task(Embedder(*encoder, pooling="token"), task)


def write_pairs(folder, label, sizes=(120, 40, 60)):
    """Pairs of sequences that are rich in one of two letters."""
    random = np.random.default_rng(5)
    for name, size in zip(("train", "dev", "test"), sizes, strict=True):
        rows = ["sequence_a,sequence_b,label"]
        for _ in range(size):
            kinds = random.integers(2, size=2)
            a, b = ("".join(random.choice(list("ACGU"), 20, p=np.roll([0.7, 0.1, 0.1, 0.1], k)))
                    for k in kinds)  # fmt: skip
            rows.append(f"{a},{b},{label(*kinds, a, b)}")
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_interactions(encoder, tmp_path):
    task = read_task(write_pairs(tmp_path, lambda i, j, *_: int(i == j)), "rna")
    assert task.kind == "interaction"
    told = []
    found = evaluate_task(Embedder(*encoder), task, resamples=50, tick=told.append)
    assert sum(told) == count_residues(task, 1)
    test = found.metrics["test"]
    assert test["accuracy"]["value"] > 0.9
    assert test["auroc"]["value"] > 0.95
    table = found.predictions.to_pydict()
    score = [p if y == "1" else 1 - p
             for p, y in zip(table["probability"], table["prediction"], strict=True)]  # fmt: skip
    true = [int(label) for label in table["label"]]
    assert test["auroc"]["value"] == pytest.approx(oracle.roc_auc_score(true, score), abs=1e-6)
    assert found.metrics["probe"]["order"] == "symmetric"
    assert found.metrics["bootstrap"]["unit"] == "pair of sequences"
    json.dumps(found.metrics, allow_nan=False)


def test_the_order_of_a_pair_matters_only_if_told(encoder, tmp_path):
    folder = write_pairs(tmp_path, lambda i, j, *_: int(i > j))
    task = read_task(folder, "rna")
    ordered = evaluate_task(Embedder(*encoder), task, order="ordered", resamples=0)
    assert ordered.metrics["test"]["auroc"]["value"] > 0.95
    before = evaluate_task(Embedder(*encoder), task, resamples=0)
    for name in ("train", "dev", "test"):
        text = (folder / f"{name}.csv").read_text()
        swapped = text.replace("sequence_a,sequence_b", "sequence_b,sequence_a")
        (folder / f"{name}.csv").write_text(swapped)
    after = evaluate_task(Embedder(*encoder), read_task(folder, "rna"), resamples=0)
    assert before.predictions["prediction"] == after.predictions["prediction"]


def test_affinities(encoder, tmp_path):
    folder = write_pairs(tmp_path, lambda i, j, a, b: (a.count("A") + b.count("A")) / 10)
    task = read_task(folder, "rna")
    assert task.kind == "affinity"
    found = evaluate_task(Embedder(*encoder), task, resamples=20)
    assert found.metrics["test"]["spearman"]["value"] > 0.85
    assert found.metrics["test"]["mae"]["value"] < found.metrics["baseline"]["test"]["mae"]["value"]


def test_sets_of_labels(encoder, make):
    def label(sequence):
        rich = [c for c in "ACGU" if sequence.count(c) > len(sequence) / 4]
        return ";".join([*rich, "all"])

    task = read_task(make(label), "rna", kind="multilabel")
    found = evaluate_task(Embedder(*encoder), task, resamples=20)
    assert found.metrics["test"]["accuracy"]["value"] > 0.85
    assert found.metrics["test"]["auroc"]["value"] > 0.9
    assert all("all" in text.split(";") for text in found.predictions["prediction"].to_pylist())
    json.dumps(found.metrics, allow_nan=False)


def test_masked_residues_take_no_part(encoder, make):
    folder = make(lambda s: s.translate(str.maketrans("ACGU", "HECC")), "structure")
    for path in folder.glob("*.csv"):
        rows = path.read_text().split()[1:]
        # Where the mask says no, the label is wrong.
        lines = []
        for row in rows:
            sequence, labels = row.split(",")
            mask = "".join("01"[i % 3 != 0] for i in range(len(sequence)))
            wrong = "".join(
                y if m == "1" else "H" if y != "H" else "E"
                for y, m in zip(labels, mask, strict=True)
            )
            lines.append(f"{sequence},{wrong},{mask}")
        path.write_text("sequence,structure,mask\n" + "\n".join(lines) + "\n")
    task = read_task(folder, "rna")
    found = evaluate_task(Embedder(*encoder, pooling="token"), task, resamples=0)
    assert found.metrics["test"]["accuracy"]["value"] > 0.97
    assert found.metrics["probe"]["train_tokens"] == (task.train.targets >= 0).sum()
