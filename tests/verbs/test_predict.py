"""The verb ``predict``: what the evaluation predicted, of any input."""

import copy
import csv
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import EsmForSequenceClassification, EsmForTokenClassification

from frugalfm.artifacts import read_manifest
from frugalfm.deployment import deploy
from frugalfm.encoders import create_encoder, load_encoder, save_encoder
from frugalfm.errors import InputError
from frugalfm.training import prediction_run
from frugalfm.training.predicting import TaskHead
from frugalfm.training.tuned import load_tuned
from frugalfm.verbs.predict import predict
from frugalfm.verbs.quantize import quantize
from frugalfm.verbs.tune import tune

sys.path += [str(Path(__file__).parents[1] / name) for name in ("encoders", "training")]
from dnabert2_oracle import make_dna_tokenizer
from predict_models import FAST, Models, run, write_fasta
from tuning_tasks import make_task


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    return Models(tmp_path_factory.mktemp("predict"))


METHODS = [
    pytest.param("classification", name, marks=pytest.mark.skipif(
        importlib.util.find_spec(needed) is None, reason="optional"
    ))
    for name, needed in (("lora", "peft"), ("qlora", "bitsandbytes"), ("loftq", "bitsandbytes"))
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *[(kind, "full") for kind in (
            "classification", "multilabel", "regression", "token", "interaction", "affinity",
            "contact", "base-pair",
        )],
        *METHODS,
    ],
)  # fmt: skip
def test_predictions_are_those_of_the_evaluation(tuned, tmp_path, kind, method):
    model, test = tuned(kind, method)
    found = pq.read_table(run(model, test, tmp_path / "p.parquet")).to_pydict()
    expected = pq.read_table(model / "predictions.parquet").to_pydict()
    assert found["id"] == [f"test:{row + 1}" for row in expected["row"]]
    if kind in {"regression", "affinity"}:
        np.testing.assert_allclose(found["value"], expected["prediction"], rtol=1e-6)
    elif kind == "contact":
        for ours, theirs in zip(found["contacts"], expected["prediction"], strict=True):
            one, two = ([list(entry.values()) for entry in some] for some in (ours, theirs))
            np.testing.assert_allclose(one, two, atol=1e-6)
    else:
        assert found["label"] == expected["prediction"]
        if "probability" in found:
            np.testing.assert_allclose(
                found["probability"], expected["probability"], rtol=0, atol=1e-6
            )


def test_a_merged_adapter_and_a_moved_checkpoint(tuned, tmp_path):
    pytest.importorskip("peft")
    model, test = tuned("classification", "lora")
    merged, _ = tuned("classification", "lora", merge=True)
    one, two = (
        pq.read_table(run(found, test, tmp_path / f"{found.name}.parquet"))["probability"]
        for found in (model, merged)
    )
    np.testing.assert_allclose(one, two, atol=1e-5)
    (tuned.checkpoint).rename(tuned.folder / "moved")
    try:
        with pytest.raises(InputError, match="--base"):
            run(model, test, tmp_path / "new.parquet")
        three = pq.read_table(
            run(model, test, tmp_path / "new.parquet", base=tuned.folder / "moved")
        )
    finally:
        (tuned.folder / "moved").rename(tuned.checkpoint)
    assert three["probability"].equals(one)


@pytest.mark.parametrize("kind", ["classification", "token", "interaction"])
def test_a_deployed_model(tuned, tmp_path, kind):
    pytest.importorskip("openvino")
    model, test = tuned(kind)
    loaded, tokenizer = load_tuned(model)
    head = TaskHead.from_summary(read_manifest(model)["summary"])
    deploy(loaded, tokenizer, None, tmp_path / "d", precision="fp32", task=head.describe())
    found = pq.read_table(run(tmp_path / "d", test, tmp_path / "p.parquet"))
    expected = pq.read_table(run(model, test, tmp_path / "e.parquet"))
    assert found.schema.metadata[b"precision"] == b"fp32"
    assert found.column_names == expected.column_names
    for name in found.column_names:
        if pa.types.is_floating(found[name].type):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4)
        else:
            assert found[name].equals(expected[name])
    with pytest.raises(InputError, match="run on the CPU"):
        predict(tmp_path / "d", test, out=tmp_path / "x.parquet", device="cuda")


def make_plain(folder, problem, names):
    """A folder of transformers' own, with nothing that tells where it is from."""
    encoder, tokenizer = create_encoder("rna-fm-nano", seed=1)
    config = copy.deepcopy(encoder.config)
    config.id2label, config.problem_type = dict(enumerate(names)), problem
    auto = EsmForTokenClassification if problem is None else EsmForSequenceClassification
    torch.manual_seed(3)
    model = auto(config).eval()
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.mul_(20)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


@pytest.mark.parametrize(
    ("problem", "names"),
    [
        ("single_label_classification", ["LABEL_0", "LABEL_1"]),
        ("single_label_classification", ["x", "y", "z"]),
        ("multi_label_classification", ["x", "y", "z"]),
        ("regression", ["LABEL_0"]),
        (None, ["H", "-"]),
    ],
)
def test_a_plain_hugging_face_folder(tmp_path, problem, names):
    """The same as by hand, and as what is deployed of it."""
    model, tokenizer = make_plain(tmp_path / "m", problem, names)
    fasta = write_fasta(tmp_path / "in.fa", 40)
    found = pq.read_table(run(tmp_path / "m", fasta, tmp_path / "p.parquet")).to_pydict()
    texts = fasta.read_text().split("\n")[1::2]
    for row, text in enumerate(texts[:10]):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        if problem == "regression":
            assert found["value"][row] == pytest.approx(float(logits[0]), abs=1e-4)
        elif problem is None:
            assert found["label"][row] == "".join(names[int(i)] for i in logits[1:-1].argmax(-1))
        elif problem.startswith("multi"):
            assert found["label"][row] == ";".join(
                name for name, logit in zip(names, logits, strict=True) if logit > 0
            )
        else:
            assert found["label"][row] == names[int(logits.argmax())]
            assert found["probability"][row] == pytest.approx(
                float(logits.softmax(0).max()), abs=1e-4
            )
    if importlib.util.find_spec("openvino") is None:
        return
    options = {"weights": 16, "activations": 16, "precision": "fp32", "calibration_batches": 2}
    quantize(tmp_path / "m", data=fasta, out=tmp_path / "d", deploy=True, device="cpu", **options)
    again = pq.read_table(run(tmp_path / "d", fasta, tmp_path / "again.parquet")).to_pydict()
    for name, values in found.items():
        if values and isinstance(values[0], float):
            np.testing.assert_allclose(again[name], values, atol=1e-4)
        else:
            assert again[name] == values


def test_classes_of_residues_with_long_names_are_refused(tmp_path):
    make_plain(tmp_path / "m", None, ["helix", "sheet"])
    with pytest.raises(InputError, match=r"labels residues as 'helix'.*id2label"):
        run(tmp_path / "m", write_fasta(tmp_path / "in.fa", 3), tmp_path / "p.parquet")


def test_a_deployed_encoder_has_no_head(tuned, tmp_path):
    pytest.importorskip("openvino")
    deploy(*load_encoder(tuned.checkpoint), None, tmp_path / "d", precision="fp32")
    with pytest.raises(InputError, match="then deploy the tuned model"):
        run(tmp_path / "d", write_fasta(tmp_path / "in.fa", 3), tmp_path / "p.parquet")


@pytest.mark.parametrize("kind", ["classification", "token"])
def test_tokens_of_several_residues(tmp_path, kind):
    config = {
        "model_type": "dnabert2", "vocab_size": len(make_dna_tokenizer()), "hidden_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48,
    }  # fmt: skip
    from transformers import AutoConfig, AutoModelForMaskedLM

    torch.manual_seed(0)
    made = AutoModelForMaskedLM.from_config(AutoConfig.for_model(**config))
    save_encoder(made, make_dna_tokenizer(), tmp_path / "model")
    task = make_task(tmp_path / "task", kind, sizes=(80, 12, 16))
    for file in task.glob("*.csv"):
        file.write_text(file.read_text().replace("U", "T"))
    limit = {"max_tokens": 8} if kind == "classification" else {}
    model = tune(
        tmp_path / "model", task=task, out=tmp_path / "t", method="full", kind=kind, **FAST, **limit
    )
    if limit:
        with pytest.raises(InputError, match=r"tuned on at most 6; --too-long crop"):
            run(model, task / "test.csv", tmp_path / "p.parquet")
    options = {"too_long": "crop"} if limit else {}
    found = pq.read_table(run(model, task / "test.csv", tmp_path / "p.parquet", **options))
    expected = pq.read_table(model / "predictions.parquet")
    assert found["label"].to_pylist() == expected["prediction"].to_pylist()
    if limit:
        np.testing.assert_allclose(found["probability"], expected["probability"], atol=1e-6)


def test_the_summary_and_what_the_file_says_of_itself(tuned, tmp_path, capsys):
    model, _ = tuned()
    fasta = write_fasta(tmp_path / "in.fa", 50)
    out = run(model, fasta, tmp_path / "new" / "p.parquet")
    said = capsys.readouterr().out
    assert "50 sequences, " in said
    assert "residues/s" in said
    table = pq.read_table(out)
    labels = table["label"].to_pylist()
    for name in set(labels):
        assert f"{name} {labels.count(name)}" in said
    metadata = table.schema.metadata
    assert len(metadata[b"checkpoint"]) == len(metadata[b"sequences"]) == 64
    assert metadata[b"kind"] == b"classification"
    assert [file.name for file in out.parent.iterdir()] == ["p.parquet"]


def test_text_files_hold_the_same(tuned, tmp_path):
    model, _ = tuned()
    ids = ["plain", "with,comma", 'with "quotes"', "plain", "ünï"]
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": ids, "sequence": ["ACGU", "GG", "CA", "ACGU", "A" * 9]}), source)
    table = pq.read_table(run(model, source, tmp_path / "p.parquet", probabilities=True))
    assert table["id"].to_pylist() == ids
    total = np.asarray(table["probability_A"]) + np.asarray(table["probability_C"])
    np.testing.assert_allclose(total, 1, atol=1e-6)
    for ending, delimiter in ((".csv", ","), (".tsv", "\t")):
        out = run(model, source, tmp_path / f"p{ending}", probabilities=True)
        with out.open(newline="") as handle:
            header, *rows = csv.reader(handle, delimiter=delimiter)
        assert header == ["id", "label", "probability", "probability_A", "probability_C"]
        assert out.read_text().startswith(delimiter.join(header) + "\n")
        for name, column in zip(header, zip(*rows, strict=True), strict=True):
            expected = table[name].to_pylist()
            same = np.float32(column) if name.startswith("prob") else list(column)
            assert list(same) == expected
        note = json.loads(out.with_name(out.name + ".json").read_text())
        assert note["settings"]["kind"] == "classification"


def test_probabilities_of_residues_and_of_several_labels(tuned, tmp_path):
    model, test = tuned("token")
    table = pq.read_table(run(model, test, tmp_path / "p.parquet", probabilities=True))
    for label, odds in zip(*(table[name].to_pylist() for name in table.column_names[1:]), strict=1):
        assert "".join(np.array(["R", "Y"])[np.argmax(odds, 1)]) == label
        np.testing.assert_allclose(np.sum(odds, 1), 1, atol=1e-6)
    model, test = tuned("multilabel")
    table = pq.read_table(run(model, test, tmp_path / "m.parquet", probabilities=True))
    for row in table.to_pylist():
        likely = [name for name in ("A", "G", "none") if row[f"probability_{name}"] > 0.5]
        assert row["label"] == ";".join(likely)


def test_neither_batches_nor_windows_matter(tuned, tmp_path, monkeypatch):
    model, _ = tuned()
    fasta = write_fasta(tmp_path / "in.fa", 90)
    tables = [pq.read_table(run(model, fasta, tmp_path / "a.parquet"))]
    monkeypatch.setattr(prediction_run, "_WINDOW", 300)
    monkeypatch.setattr(prediction_run, "_BATCHES", 1)
    for tokens in (1, 100):
        out = tmp_path / f"{tokens}.parquet"
        tables.append(pq.read_table(run(model, fasta, out, batch_tokens=tokens)))
    assert tables[0]["id"].to_pylist() == [f"s{i}" for i in range(90)]
    for table in tables[1:]:
        assert table["id"].equals(tables[0]["id"])
        assert table["label"].equals(tables[0]["label"])
        np.testing.assert_allclose(table["probability"], tables[0]["probability"], atol=1e-6)


def test_the_order_of_records_does_not_matter(tuned, tmp_path):
    model, _ = tuned("regression")
    fasta = write_fasta(tmp_path / "in.fa", 40)
    records = fasta.read_text().split(">")[1:]
    random = np.random.default_rng(0)
    (tmp_path / "mixed.fa").write_text("".join(f">{r}" for r in random.permutation(records)))
    one, two = (
        dict(zip(*pq.read_table(run(model, file, file.with_suffix(".parquet"))).to_pydict()
                 .values(), strict=True))
        for file in (fasta, tmp_path / "mixed.fa")
    )  # fmt: skip
    assert list(one) != list(two)
    np.testing.assert_allclose(list(one.values()), [two[name] for name in one], rtol=1e-6)


def test_long_sequences_are_cut_when_asked(tuned, tmp_path, monkeypatch, capsys):
    model, _ = tuned(max_tokens=12)
    (tmp_path / "long.fa").write_text(">a\nACGUACGUACGUACGU\n>b\nACGUACGUAC\n>c\nGG\n")
    with pytest.raises(InputError, match="tuned on at most 10"):
        run(model, tmp_path / "long.fa", tmp_path / "p.csv")
    table = pq.read_table(run(model, tmp_path / "long.fa", tmp_path / "p.parquet", too_long="crop"))
    odds = table["probability"].to_pylist()
    assert odds[0] == pytest.approx(odds[1], abs=1e-6)
    assert "1 sequences cut at their end" in capsys.readouterr().out


@pytest.mark.gpu
def test_on_a_gpu(tuned, tmp_path):
    model, test = tuned()
    expected = pq.read_table(model / "predictions.parquet")
    out = predict(model, test, out=tmp_path / "p.parquet", device="cuda")
    np.testing.assert_allclose(
        pq.read_table(out)["probability"], expected["probability"], atol=1e-3
    )
    out = predict(model, test, out=tmp_path / "b.parquet", device="cuda", precision="bf16")
    np.testing.assert_allclose(
        pq.read_table(out)["probability"], expected["probability"], atol=0.05
    )
