"""Probes of maps find what is planted, and report what they did."""

import json

import numpy as np
import pytest
import torch

from frugalfm.encoders import create_encoder
from frugalfm.errors import InputError
from frugalfm.probing import map_probes, pair_features
from frugalfm.probing.embed import Embedder
from frugalfm.probing.map_probes import MapPlan, _draw, evaluate_maps
from frugalfm.probing.pair_features import PairReader
from frugalfm.tasks import read_task
from frugalfm.tasks.brackets import parse_structure
from frugalfm.tasks.map_metrics import measure_map
from frugalfm.tasks.maps import MapTargets
from frugalfm.tokens.codec import Codec

PLACES = np.array([[0, 0, 0], [12, 0, 0], [0, 15, 0], [9, 9, 9]])


@pytest.fixture(scope="module")
def embedder():
    model, tokenizer = create_encoder("rna-fm-nano", seed=1)
    return Embedder(model, Codec.from_tokenizer(tokenizer), "token")


def write_chains(folder, sizes=(30, 10, 12)):
    """Each letter has its place in space: distances follow from letters."""
    random = np.random.default_rng(0)
    for name, size in zip(("train", "dev", "test"), sizes, strict=True):
        rows = []
        for _ in range(size):
            codes = random.choice(4, int(random.integers(20, 40)))
            xyz = PLACES[codes] + random.normal(scale=0.5, size=(len(codes), 3))
            rows.append(
                {"sequence": "".join("ACGU"[c] for c in codes), "coordinates": xyz.tolist()}
            )
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_contacts_by_products(embedder, tmp_path):
    task = read_task(write_chains(tmp_path), "rna")
    plan = MapPlan.draw(task, "pairs", train_pairs=4000)
    told = []
    found = evaluate_maps(embedder, task, plan, resamples=50, tick=told.append)
    assert sum(told) == plan.count_residues(task)
    test, baseline = (found.metrics[key] for key in ("test", "baseline"))
    assert test["top_L"]["value"] > 0.95
    assert test["top_L/5"]["value"] > 0.95
    assert baseline["test"]["top_L"]["value"] < 0.5
    probe = found.metrics["probe"]
    assert probe["name"] == "logistic regression on products of embeddings"
    assert probe["train_sequences"] == 30
    assert probe["train_pairs"] <= 4000
    assert probe["grid"][f"{probe['C']:g}"] == max(probe["grid"].values())
    table = found.predictions
    first = table["prediction"][0].as_py()
    assert len(first) == len(task.test.sequences[0].as_py())
    scores = [pair["score"] for pair in first]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    values, valid = task.test.maps.matrix(0)
    touching = [values[pair["i"], pair["j"]] for pair in first]
    assert all(valid[pair["i"], pair["j"]] for pair in first)
    assert table["top_L"].to_pylist()[0] == pytest.approx(np.mean(touching))
    json.dumps(found.metrics, allow_nan=False)


def test_probabilities_are_as_high_as_contacts_are_frequent(embedder, tmp_path):
    """Though half of the pairs that are fitted are contacts."""
    task = read_task(write_chains(tmp_path), "rna")
    reader = PairReader(embedder, attention=False, products=True)
    plan = MapPlan.draw(task, "pairs", train_pairs=3000)
    probes, count = map_probes._fit(reader, task, plan, None)
    assert count == 3000
    sequences = map_probes._encode(reader, task.test)
    found, true = [], []
    for row, (logits,) in reader.combine(sequences, probes[-1].weights, probes[-1].bias):
        i, j, values = task.test.maps.pairs(row)
        found.append(1 / (1 + np.exp(-logits[i, j])))
        true.append(values)
    true, found = np.concatenate(true), np.concatenate(found)
    assert true.mean() < 0.35
    assert found.mean() == pytest.approx(true.mean(), rel=0.15)


def test_distances_by_planted_embeddings(embedder, tmp_path, monkeypatch):
    """The last hidden states are those of the letters, and noise."""
    letters = torch.randn(25, 64, generator=torch.Generator().manual_seed(1))

    def plant(self, ids):
        noise = torch.randn(*ids.shape, 64, generator=torch.Generator().manual_seed(2))
        return letters[torch.from_numpy(ids)] + 0.1 * noise

    monkeypatch.setattr(Embedder, "forward", plant)
    task = read_task(write_chains(tmp_path), "rna", kind="distance")
    plan = MapPlan.draw(task, train_pairs=4000)
    assert plan.probe == "pairs"
    found = evaluate_maps(embedder, task, plan, resamples=20)
    best = []  # what the letters tell: the true distance of their places
    for index, text in enumerate(task.test.sequences.to_pylist()):
        at = PLACES[["ACGU".index(letter) for letter in text]]
        apart = np.linalg.norm(at[:, None] - at, axis=-1)
        best.append(measure_map(task.test.maps, index, apart)["spearman"])
    assert found.metrics["test"]["spearman"]["value"] > np.mean(best) - 0.08
    assert found.metrics["test"]["mae"]["value"] < 2
    assert found.metrics["baseline"]["test"]["mae"]["value"] > 4
    assert found.metrics["probe"]["name"] == "ridge regression on products of embeddings"
    assert found.predictions.column_names == ["row", "spearman", "mae"]


def test_contacts_by_planted_attention(embedder, tmp_path, monkeypatch):
    """One head of the last layer sees the contacts among noise, in one direction only."""
    task = read_task(write_chains(tmp_path), "rna")
    truth = {}
    for split in task.splits.values():
        for index, text in enumerate(split.sequences.to_pylist()):
            truth[text] = split.maps.matrix(index)[0]
    letters = {int(embedder.codec.table[ord(c)]): c for c in "ACGU"}
    batch = []
    collate = type(embedder.codec).collate

    def remember(self, sequences):
        batch[:] = ["".join(letters[int(t)] for t in s) for s in sequences]
        return collate(self, sequences)

    def plant(name, module, query, key, bias, scale):
        generator = torch.Generator().manual_seed(0)
        size = query.shape[-2]
        weights = torch.rand(len(batch), query.shape[1], size, size, generator=generator)
        if module is modules[-1]:
            for row, text in enumerate(batch):
                found = np.triu(truth[text]) * 0.8
                weights[row, 1, 1 : len(text) + 1, 1 : len(text) + 1] += torch.from_numpy(found)
        return weights

    modules = pair_features.find_attentions(embedder.model)
    monkeypatch.setattr(type(embedder.codec), "collate", remember)
    monkeypatch.setattr(pair_features, "attention_weights", plant)
    plan = MapPlan.draw(task, train_pairs=4000)
    assert plan.probe == "attention"
    assert len(plan.train) == 20
    found = evaluate_maps(embedder, task, plan, resamples=20)
    assert found.metrics["test"]["top_L/5"]["value"] > 0.9
    assert found.metrics["probe"]["name"] == "logistic regression (L1) on attention maps"
    assert found.metrics["probe"]["train_sequences"] == 20


def write_hairpins(folder, sizes=(60, 20, 20)):
    """Stems of pairs of letters that occur once each, in random order."""
    random = np.random.default_rng(3)
    couples = ["RY", "KM", "SW", "BD", "HV"]
    for name, size in zip(("train", "dev", "test"), sizes, strict=True):
        rows = ["sequence,structure"]
        for _ in range(size):
            stem = [couples[k] for k in random.permutation(5)]
            loop = "A" * int(random.integers(4, 9))
            tail = "C" * int(random.integers(1, 5))
            left, right = "".join(x[0] for x in stem), "".join(x[1] for x in stem[::-1])
            structure = "(" * 5 + "." * len(loop) + ")" * 5 + "." * len(tail)
            rows.append(f"{left}{loop}{right}{tail},{structure}")
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_base_pairs(embedder, tmp_path):
    task = read_task(write_hairpins(tmp_path), "rna", kind="base-pair")
    plan = MapPlan.draw(task, train_pairs=6000)
    assert plan.probe == "both"
    found = evaluate_maps(embedder, task, plan, resamples=20)
    assert found.metrics["test"]["f1"]["value"] > 0.9
    assert found.metrics["test"]["pooled_f1"]["value"] > 0.9
    assert 0 < found.metrics["probe"]["threshold"] < 1
    assert found.metrics["bootstrap"]["unit"] == "sequence"
    labels, predictions = (found.predictions[c].to_pylist() for c in ("label", "prediction"))
    f1 = []
    for label, prediction in zip(labels, predictions, strict=True):
        true = set(map(tuple, parse_structure(label, len(label)).tolist()))
        guess = set(map(tuple, parse_structure(prediction, len(label)).tolist()))
        f1.append(2 * len(true & guess) / (len(true) + len(guess)))
    assert found.metrics["test"]["f1"]["value"] == pytest.approx(np.mean(f1))
    assert found.predictions["f1"].to_pylist() == pytest.approx(f1)


def test_test_labels_do_not_reach_the_choice_or_the_predictions(embedder, tmp_path):
    folder = write_hairpins(tmp_path)
    results = []
    for _ in range(2):
        task = read_task(folder, "rna", kind="base-pair")
        results.append(evaluate_maps(embedder, task, MapPlan.draw(task, "pairs"), resamples=0))
        test = folder / "test.csv"
        test.write_text(test.read_text().replace("(((((", ".....").replace(")))))", "....."))
    assert results[0].metrics["probe"] == results[1].metrics["probe"]
    assert results[0].predictions["prediction"] == results[1].predictions["prediction"]
    assert results[1].metrics["test"]["recall"]["value"] is None


def test_nothing_to_learn_is_refused(embedder, tmp_path):
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.csv").write_text("sequence,contacts\nACGUACGUAC,\n")
    task = read_task(tmp_path, "rna")
    with pytest.raises(InputError, match="all alike"):
        evaluate_maps(embedder, task, MapPlan.draw(task))


def test_drawn_pairs_are_bounded_and_seeded():
    xyz = np.random.default_rng(0).normal(scale=4, size=(50, 3)).astype(np.float32)
    maps = MapTargets("contact", np.array([50]), (xyz,))
    first, again, other = (_draw(maps, 0, 100, seed) for seed in (1, 1, 2))
    assert len(first.values) == 100
    assert first.values.sum() == 50
    assert first.true + first.false == len(maps.pairs(0)[2])
    np.testing.assert_array_equal(first.i, again.i)
    assert (first.i != other.i).any()
    matrix = maps.matrix(0)[0]
    assert (matrix[first.i, first.j] == first.values).all()


def test_sequences_are_drawn_by_the_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(map_probes, "_CHOOSING", 4)
    task = read_task(write_chains(tmp_path), "rna")
    first, again, other = (MapPlan.draw(task, train_sequences=6, seed=s) for s in (1, 1, 2))
    assert len(np.unique(first.train)) == 6
    assert len(first.choosing) == 4
    assert first.train.tolist() == again.train.tolist()
    assert first.train.tolist() != other.train.tolist()
