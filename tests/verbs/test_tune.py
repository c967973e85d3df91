"""The verb ``tune``: a tuned model that predicts the same when it is loaded again."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from frugalfm.artifacts import read_manifest
from frugalfm.encoders import create_encoder, save_encoder
from frugalfm.errors import InputError
from frugalfm.training.tuned import load_tuned
from frugalfm.verbs.tune import tune

sys.path += [str(Path(__file__).parents[1] / name) for name in ("encoders", "training")]
from dnabert2_oracle import make_dna_tokenizer
from tuning_tasks import make_maps, make_pairs

ADAPTERS = [
    pytest.param(name, marks=pytest.mark.skipif(
        importlib.util.find_spec(needed) is None, reason="optional"
    ))
    for name, needed in (("lora", "peft"), ("qlora", "bitsandbytes"), ("loftq", "bitsandbytes"))
]  # fmt: skip
# From a random head, so that what is saved is not the probe that it would start as.
FAST = {
    "max_steps": 6, "learning_rate": 5e-3, "device": "cpu", "validate_every": 3, "start": "random",
}  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path):
    save_encoder(*create_encoder("rna-fm-nano", seed=1), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def task(tmp_path):
    random = np.random.default_rng(0)
    folder = tmp_path / "task"
    folder.mkdir()
    for name, size in (("train", 60), ("dev", 20), ("test", 20)):
        rows = ["sequence,label"]
        for index in range(size):
            letter = "AG"[index % 2]
            rows.append("".join(random.choice([letter] * 6 + list("CU"), 12 + index % 5))
                        + f",{letter}")  # fmt: skip
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return folder


def predict(model, tokenizer, task):
    """By nothing but transformers: one sequence at a time, without pads."""
    sequences = rows_of(task)
    if "U" not in tokenizer.get_vocab():
        sequences = [sequence.replace("U", "T") for sequence in sequences]
    with torch.no_grad():
        return torch.cat(
            [model(**tokenizer(s, return_tensors="pt")).logits.softmax(-1) for s in sequences]
        ).numpy()


def check_predictions(out, probabilities):
    table = pq.read_table(out / "predictions.parquet")
    classes = json.loads((out / "metrics.json").read_text())["classes"]
    assert [classes[i] for i in probabilities.argmax(1)] == table["prediction"].to_pylist()
    np.testing.assert_allclose(table["probability"].to_numpy(), probabilities.max(1), atol=1e-5)


def test_full_is_a_plain_hugging_face_folder(checkpoint, task, tmp_path, capsys):
    out = tune(checkpoint, task=task, out=tmp_path / "t", method="full", **FAST)
    model, tokenizer = load_tuned(out)
    check_predictions(out, predict(model, tokenizer, task))
    plain = AutoModelForSequenceClassification.from_pretrained(out)
    assert plain.config.id2label == {0: "A", 1: "G"}
    check_predictions(out, predict(plain.eval(), tokenizer, task))
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["tuning"]["effective_batch_size"] == 32
    assert metrics["tuning"]["seed"] == 42
    assert read_manifest(out, "tuned")["summary"] == metrics
    assert len((out / "log.jsonl").read_text().splitlines()) == 2
    said = capsys.readouterr().out
    assert "seed 42, effective batch size 32" in said
    tune(checkpoint, task=task, out=out, method="full", **FAST)
    assert "already there" in capsys.readouterr().out


@pytest.mark.parametrize("method", ADAPTERS)
def test_an_adapter_reloads_to_the_same_predictions(checkpoint, task, tmp_path, method):
    out = tune(checkpoint, task=task, out=tmp_path / "t", method=method, **FAST)
    assert not (out / "model.safetensors").exists()
    model, tokenizer = load_tuned(out)
    check_predictions(out, predict(model, tokenizer, task))
    moved = checkpoint.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="is not there"):
        load_tuned(out)
    load_tuned(out, base=moved)
    save_encoder(*create_encoder("rna-fm-nano", seed=2), checkpoint)
    with pytest.raises(InputError, match="is not the checkpoint"):
        load_tuned(out)


@pytest.mark.parametrize("method", ADAPTERS)
def test_merged_is_a_whole_model(checkpoint, task, tmp_path, method):
    out = tune(checkpoint, task=task, out=tmp_path / "t", method=method, merge=True, **FAST)
    assert not (out / "adapter_config.json").exists()
    model, tokenizer = load_tuned(out)
    check_predictions(out, predict(model, tokenizer, task))


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="optional")
def test_peft_loads_a_lora_adapter_by_itself(checkpoint, task, tmp_path):
    from peft import AutoPeftModelForSequenceClassification

    out = tune(checkpoint, task=task, out=tmp_path / "t", method="lora", pooling="cls", **FAST)
    model = AutoPeftModelForSequenceClassification.from_pretrained(str(out), num_labels=2)
    check_predictions(out, predict(model.eval(), load_tuned(out)[1], task))
    assert "PEFT alone loads it as well" in (out / "README.md").read_text()


@pytest.mark.parametrize("method", ADAPTERS)
def test_peft_by_itself_is_told_of_a_head_over_the_mean(checkpoint, task, tmp_path, method):
    from peft import AutoPeftModelForSequenceClassification, PeftModel

    out = tune(checkpoint, task=task, out=tmp_path / "t", method=method, **FAST)
    with pytest.raises(ValueError, match="load_tuned"):
        AutoPeftModelForSequenceClassification.from_pretrained(str(out), num_labels=2)
    plain = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=2)
    with pytest.raises(ValueError, match="load_tuned"):
        PeftModel.from_pretrained(plain, str(out))
    # An adapter from before PEFT was told is read as it always was.
    config = json.loads((out / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps(config | {"task_type": "SEQ_CLS"}))
    manifest = json.loads((out / "manifest.json").read_text())
    size = (out / "adapter_config.json").stat().st_size
    manifest["files"]["adapter_config.json"]["bytes"] = size
    (out / "manifest.json").write_text(json.dumps(manifest))
    model, tokenizer = load_tuned(out)
    check_predictions(out, predict(model, tokenizer, task))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "full"}, ["full, a whole model", "--pooling mean", "`AutoModelForSequenceC"]),
        ({"method": "lora"}, ["lora, an adapter", "`base=`", "reads the mean", "makes it refuse"]),
        ({"method": "lora", "merge": True}, ["merged into a whole model", "`AutoModelForSeq"]),
        ({"method": "full", "pooling": "cls"}, ["--pooling cls"]),
    ],
)
def test_the_card_says_what_it_is_and_how_to_load_it(checkpoint, task, tmp_path, options, said):
    if options["method"] == "lora":
        pytest.importorskip("peft")
    out = tune(checkpoint, task=task, out=tmp_path / "t", **options, **FAST)
    card = (out / "README.md").read_text()
    metrics = json.loads((out / "metrics.json").read_text())
    test = next(line for line in card.splitlines() if line.startswith("test mcc"))
    assert f"{metrics['test']['mcc']['value']:.4f}" in test
    for words in [
        "Tuned from: `model`", "classification of 2 classes", "seed 42", "frugalfm predict",
        "load_tuned(", *said,
    ]:  # fmt: skip
        assert words in card
    assert "More Information Needed" not in card  # of PEFT's form
    assert "README.md" in read_manifest(out)["files"]


@pytest.mark.parametrize("method", ["full", *ADAPTERS[:2]])
@pytest.mark.parametrize("kind", ["regression", "multilabel", "token"])
def test_other_kinds(checkpoint, task, tmp_path, kind, method):
    for path in task.iterdir():
        rows = [row.split(",")[0] for row in path.read_text().split()[1:]]
        labels = {
            "regression": [f"{row.count('A') + 0.5}" for row in rows],
            "multilabel": [";".join(sorted(set(row[:3]))) for row in rows],
            "token": [row.translate(str.maketrans("ACGU", "(.).")) for row in rows],
        }[kind]
        header = "structure" if kind == "token" else "label"
        lines = [f"{a},{b}" for a, b in zip(rows, labels, strict=True)]
        path.write_text(f"sequence,{header}\n" + "\n".join(lines) + "\n")
    out = tune(checkpoint, task=task, out=tmp_path / "t", method=method, kind=kind, **FAST)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["kind"] == kind
    table = pq.read_table(out / "predictions.parquet")
    model, tokenizer = load_tuned(out)
    with torch.no_grad():
        first = rows_of(task)[0]
        logits = model(**tokenizer(first, return_tensors="pt")).logits[0]
    if kind == "regression":
        assert float(logits[0]) == pytest.approx(table["prediction"][0].as_py(), abs=1e-4)
    elif kind == "multilabel":
        names = [c for c, logit in zip(metrics["classes"], logits, strict=True) if logit > 0]
        assert table["prediction"][0].as_py() == ";".join(names)
    else:
        letters = "".join(metrics["classes"][i] for i in logits[1:-1].argmax(-1))
        assert table["prediction"][0].as_py() == letters


def rows_of(task):
    return [row.split(",")[0] for row in (task / "test.csv").read_text().split()[1:]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"learning_rate": -1.0}, "--learning-rate"),
        ({"method": "full", "merge": True}, "--merge"),
        ({"method": "full", "rank": 4}, "--rank"),
        ({"method": "full", "targets": ["query"]}, "--targets"),
        ({"head_learning_rate": 0.0}, "--head-learning-rate"),
        ({"save_every": 0}, "--save-every"),
        ({"max_tokens": 2}, "--max-tokens"),
        ({"method": "full", "preset": "gue/rat"}, "gue/tf"),
        ({"method": "full", "kind": "token"}, "structure"),
        ({"method": "full", "leaks": "error"}, "leak"),
        ({"method": "full", "device": "tpu"}, "tpu"),
    ],
)
def test_bad_input_leaves_nothing_behind(checkpoint, task, tmp_path, options, message):
    if options.get("leaks"):
        (task / "dev.csv").write_bytes((task / "test.csv").read_bytes())
    with pytest.raises(InputError, match=message):
        tune(checkpoint, task=task, out=tmp_path / "t", **options)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "task"}


@pytest.mark.parametrize("method", ["full", *ADAPTERS])
def test_bf16(checkpoint, task, tmp_path, method):
    out = tune(checkpoint, task=task, out=tmp_path / "t", method=method, precision="bf16", **FAST)
    assert json.loads((out / "metrics.json").read_text())["tuning"]["precision"] == "bf16"
    model, _ = load_tuned(out)
    trained = [p for n, p in model.named_parameters() if "lora_" in n or "classifier" in n]
    assert {p.dtype for p in trained} == {torch.float32}


def test_test_is_read_once_at_the_end(checkpoint, task, tmp_path, monkeypatch):
    from frugalfm.training import tuned, tuning

    events = []
    score = tuning.score_split

    def watched(task, split, predicted, **options):
        events.append("test" if split is task.test else "dev")
        return score(task, split, predicted, **options)

    monkeypatch.setattr(tuning, "score_split", watched)
    report = tuned.report_predictions
    monkeypatch.setattr(
        tuned, "report_predictions", lambda *a, **k: (events.append("report"), report(*a, **k))[1]
    )
    tune(checkpoint, task=task, out=tmp_path / "t", method="full", **FAST)
    assert events == ["dev", "dev", "report"]


def test_a_checkpoint_is_no_tuned_model(checkpoint):
    with pytest.raises(InputError, match="not a finished artifact"):
        load_tuned(checkpoint)


@pytest.mark.parametrize("method", ["full", *ADAPTERS])
def test_dnabert2_with_the_preset_of_its_task(task, tmp_path, capsys, method):
    from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
    from frugalfm.encoders.dnabert2.modeling import DnaBert2ForMaskedLM

    tokenizer = make_dna_tokenizer()
    torch.manual_seed(0)
    config = DnaBert2Config(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, attention="softmax1",
    )  # fmt: skip
    save_encoder(DnaBert2ForMaskedLM(config), tokenizer, tmp_path / "dna")
    (tmp_path / "tf").mkdir()
    folder = task.rename(tmp_path / "tf" / "0")
    out = tune(
        tmp_path / "dna", task=folder, out=tmp_path / "t", method=method, max_steps=4,
        learning_rate=1e-3, device="cpu", start="random",
    )  # fmt: skip
    assert "preset gue/tf" in capsys.readouterr().out
    found = json.loads((out / "metrics.json").read_text())["tuning"]
    assert (found["max_tokens"], found["epochs"], found["warmup_steps"]) == (30, 3, 30)
    model, tokenizer = load_tuned(out)
    assert model.config.attention == "softmax1"
    check_predictions(out, predict(model, tokenizer, folder))


def test_the_start_is_told_beside_the_result(checkpoint, task, tmp_path, capsys):
    options = FAST | {"start": "probe", "learning_rate": 1e-9}
    out = tune(checkpoint, task=task, out=tmp_path / "t", method="full", **options)
    found = json.loads((out / "metrics.json").read_text())
    started = found["tuning"]["started_from"]
    assert found["tuning"]["best_step"] == 0
    assert started["value"] == pytest.approx(found["dev"]["mcc"]["value"])
    assert f"started as had {started['value']:.4f}" in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="optional")
def test_other_linears_can_be_adapted(checkpoint, task, tmp_path):
    targets = ["attention.output.dense", "intermediate.dense"]
    out = tune(checkpoint, task=task, out=tmp_path / "t", method="lora", targets=targets, **FAST)
    model, tokenizer = load_tuned(out)
    adapted = {n.split(".lora_A")[0].rsplit(".", 2)[-2] for n, _ in model.named_parameters()
               if ".lora_A" in n}  # fmt: skip
    assert adapted == {"output", "intermediate"}
    check_predictions(out, predict(model, tokenizer, task))


@pytest.mark.parametrize("method", ["full", *ADAPTERS])
@pytest.mark.parametrize("kind", ["interaction", "contact"])
def test_pairs_reload_to_the_same_predictions(checkpoint, tmp_path, kind, method):
    from frugalfm.tasks import read_task
    from frugalfm.tokens.codec import Codec
    from frugalfm.training.labelled import TuningData
    from frugalfm.training.outputs import forward

    make = make_maps if kind == "contact" else make_pairs
    folder = make(tmp_path / "pairs", kind, sizes=(24, 8, 8))
    out = tune(checkpoint, task=folder, out=tmp_path / "t", method=method, kind=kind, **FAST)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["kind"] == kind
    table = pq.read_table(out / "predictions.parquet")
    model, tokenizer = load_tuned(out)
    codec = Codec.from_tokenizer(tokenizer)
    data = TuningData.encode(read_task(folder, "rna", kind=kind).test, kind, codec, None)
    with torch.no_grad():
        for row in range(len(data.sequences)):
            logits = forward(model, data, np.array([row]), "fp32")[0]
            if kind == "interaction":
                assert table["probability"][row].as_py() == pytest.approx(
                    float(logits.softmax(-1).max()), abs=1e-5
                )
            else:
                for found in table["prediction"][row].as_py():
                    expected = torch.sigmoid(logits[found["i"] + 1, found["j"] + 1])
                    assert found["score"] == pytest.approx(float(expected), abs=1e-5)
    if method == "full":  # and it is a checkpoint that can be tuned or probed again
        again = tune(out, task=folder, out=tmp_path / "u", method="full", kind=kind, **FAST)
        assert (again / "model.safetensors").is_file()


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="optional")
def test_pairs_merge(checkpoint, tmp_path):
    folder = make_pairs(tmp_path / "pairs", "affinity", sizes=(24, 8, 8))
    out = tune(
        checkpoint, task=folder, out=tmp_path / "t", method="lora", merge=True, order="ordered",
        kind="affinity", **FAST,
    )  # fmt: skip
    model, tokenizer = load_tuned(out)
    assert type(model).__name__ == "PairModel"
    lines = [line.split(",") for line in (folder / "test.csv").read_text().split()[1:]]
    found = []
    for a, b, _ in lines:
        words = tokenizer([a, b], padding=True, return_tensors="pt")
        with torch.no_grad():
            found.append(float(model(words["input_ids"], words["attention_mask"]).logits))
    expected = pq.read_table(out / "predictions.parquet")["prediction"].to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("method", ADAPTERS[1:2])
def test_nothing_is_said_but_the_summary(checkpoint, task, tmp_path, method):
    """In a process of its own, as a user sees it: no warning of PEFT or bitsandbytes."""
    words = [
        "tune", str(checkpoint), "--task", str(task), "--out", str(tmp_path / "t"),
        "--method", method, "--max-steps", "2",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "frugalfm", *words], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "test mcc" in done.stdout


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["full", *ADAPTERS])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu(checkpoint, task, tmp_path, method, precision):
    options = FAST | {"device": "cuda", "precision": precision, "start": "probe"}
    out = tune(checkpoint, task=task, out=tmp_path / "t", method=method, **options)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["tuning"]["device"] == "cuda"
    assert metrics["test"]["mcc"]["value"] > 0.8
    # What was tuned there predicts the same here.
    model, tokenizer = load_tuned(out)
    table = pq.read_table(out / "predictions.parquet")
    found = predict(model, tokenizer, task).max(1)
    np.testing.assert_allclose(found, table["probability"].to_numpy(), atol=5e-2)
