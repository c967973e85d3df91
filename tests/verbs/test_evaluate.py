"""The verb ``evaluate``: an artifact with metrics and predictions."""

import json

import pyarrow.parquet as pq
import pytest

from frugalfm.artifacts import read_manifest
from frugalfm.encoders import create_encoder, save_encoder
from frugalfm.errors import InputError
from frugalfm.verbs.evaluate import evaluate


@pytest.fixture
def checkpoint(tmp_path):
    save_encoder(*create_encoder("rna-fm-tiny", seed=1), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def task(tmp_path):
    folder = tmp_path / "task"
    folder.mkdir()
    for name, letters in (("train", "ACGU"), ("dev", "CGUA"), ("test", "GUAC")):
        rows = [f"{a * 5}{b * 4}{'ACA' * (i + 1)},{a}" for i in range(2) for a in letters
                for b in letters]  # fmt: skip
        (folder / f"{name}.csv").write_text("sequence,label\n" + "\n".join(rows) + "\n")
    return folder


def test_evaluate(checkpoint, task, tmp_path, capsys):
    out = evaluate(checkpoint, task=task, out=tmp_path / "e", device="cpu")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["kind"] == "classification"
    assert metrics["classes"] == list("ACGU")
    assert metrics["repeats"]["test_in_train"] == 32
    assert pq.read_table(out / "predictions.parquet").num_rows == 32
    manifest = read_manifest(out, "evaluation")
    assert manifest["summary"] == metrics
    assert set(manifest["inputs"]) == {"checkpoint", "train", "dev", "test"}
    said = capsys.readouterr().out
    assert "classification of 4 classes (labels are names); 32 train, 32 dev, 32 test" in said
    assert "32 test in train" in said
    evaluate(checkpoint, task=task, out=out, device="cpu")
    assert "already there" in capsys.readouterr().out


def test_residues_through_the_verb(checkpoint, task, tmp_path):
    for path in task.iterdir():
        rows = [row.split(",")[0] for row in path.read_text().split()[1:]]
        structures = [row.translate(str.maketrans("ACGU", "(.).")) for row in rows]
        lines = [f"{a},{b}" for a, b in zip(rows, structures, strict=True)]
        path.write_text("sequence,structure\n" + "\n".join(lines) + "\n")
    out = evaluate(checkpoint, task=task, out=tmp_path / "e", device="cpu", leaks="report")
    assert json.loads((out / "metrics.json").read_text())["kind"] == "token"
    assert read_manifest(out)["config"]["pooling"] == "token"


def test_bad_input_leaves_nothing_behind(checkpoint, task, tmp_path):
    out = tmp_path / "e"
    with pytest.raises(InputError, match="32 test in train"):
        evaluate(checkpoint, task=task, out=out, leaks="error", device="cpu")
    with pytest.raises(InputError, match="--train-tokens"):
        evaluate(checkpoint, task=task, out=out, train_tokens=0)
    with pytest.raises(InputError, match="no such checkpoint"):
        evaluate(tmp_path / "none", task=task, out=out)
    (task / "dev.csv").unlink()
    with pytest.raises(InputError, match="no dev file"):
        evaluate(checkpoint, task=task, out=out)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "task"}


def test_another_call_is_refused_and_overwrites_when_told(checkpoint, task, tmp_path):
    out = evaluate(checkpoint, task=task, out=tmp_path / "e", device="cpu")
    with pytest.raises(InputError, match="--overwrite"):
        evaluate(checkpoint, task=task, out=out, pooling="cls", device="cpu")
    evaluate(checkpoint, task=task, out=out, pooling="cls", device="cpu", overwrite=True)
    assert read_manifest(out)["config"]["pooling"] == "cls"


def test_maps_through_the_verb(checkpoint, tmp_path, capsys):
    folder = tmp_path / "maps"
    folder.mkdir()
    for name in ("train", "dev", "test"):
        rows = ["sequence,structure"] + [
            f"{'G' * n}{'A' * 5}{'C' * n},{'(' * n}{'.' * 5}{')' * n}" for n in range(3, 9)
        ]
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
    out = evaluate(checkpoint, task=folder, out=tmp_path / "e", kind="base-pair", device="cpu")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["kind"] == "base-pair"
    assert metrics["repeats"]["test_in_train"] == 6
    config = read_manifest(out)["config"]
    assert (config["probe"], config["train_sequences"]) == ("both", 6)
    assert pq.read_table(out / "predictions.parquet").num_rows == 6
    assert "test pooled_f1" in capsys.readouterr().out
    other = evaluate(
        checkpoint, task=folder, out=tmp_path / "f", kind="base-pair", probe="attention",
        train_sequences=3, train_pairs=200, device="cpu",
    )  # fmt: skip
    assert json.loads((other / "metrics.json").read_text())["probe"]["train_pairs"] <= 200
    with pytest.raises(InputError, match="--train-pairs"):
        evaluate(checkpoint, task=folder, out=tmp_path / "g", train_pairs=0)


def test_pairs_through_the_verb(checkpoint, task, tmp_path, capsys):
    for path in task.iterdir():
        rows = [row.split(",") for row in path.read_text().split()[1:]]
        lines = [f"{a},{b[::-1]},{int(x == y)}" for (a, x), (b, y) in
                 zip(rows, rows[1:] + rows[:1], strict=True)]  # fmt: skip
        path.write_text("sequence_a,sequence_b,label\n" + "\n".join(lines) + "\n")
    out = evaluate(checkpoint, task=task, out=tmp_path / "e", device="cpu", order="ordered")
    assert json.loads((out / "metrics.json").read_text())["kind"] == "interaction"
    assert read_manifest(out)["config"]["order"] == "ordered"
    assert "test sequences seen" in capsys.readouterr().out
