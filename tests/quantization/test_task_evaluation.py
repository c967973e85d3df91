"""Tuned models of every kind: their task's metrics and outputs, before and after."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    BertConfig,
    BertForTokenClassification,
    EsmConfig,
)

from frugalfm.encoders import create_encoder, save_encoder
from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
from frugalfm.errors import InputError
from frugalfm.quantization import (
    METHODS,
    QuantizationPlan,
    compare_decisions,
    compare_task,
    load_subject,
    simulate,
)
from frugalfm.quantization.running import quantize_subject, read_own_task
from frugalfm.quantization.subjects import check_subject, read_tuning
from frugalfm.quantization.task_evaluation import encode_unlabelled, task_batches
from frugalfm.tasks import read_task
from frugalfm.tasks.metrics import score_classes, score_numbers
from frugalfm.tokens.codec import Codec
from frugalfm.training.labelled import TuningData
from frugalfm.training.predicting import TaskHead
from frugalfm.training.tuned import make_tunable
from frugalfm.training.tuning import TuningRecipe
from frugalfm.verbs.quantize import quantize
from frugalfm.verbs.tune import tune

sys.path += [str(Path(__file__).parents[1] / name) for name in ("encoders", "training")]
from dnabert2_oracle import make_dna_tokenizer
from tuning_tasks import make_maps, make_pairs, make_task

SIZES = (48, 12, 16)
KINDS = ("classification", "multilabel", "regression", "token", "interaction", "contact")


def make_labelled(folder, kind):
    if kind == "interaction":
        return make_pairs(folder, sizes=SIZES)
    if kind == "contact":
        return make_maps(folder, sizes=(24, 8, 8))
    return make_task(folder, kind, sizes=SIZES, classes=3 if kind == "multilabel" else 2)


def make_tuned(task, encoder, tokenizer):
    """A model with a random head, larger than at the start of training."""
    codec = Codec.from_tokenizer(tokenizer)
    model = make_tunable(encoder, task, "full", TuningRecipe(), codec=codec)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    return model.eval(), codec


def predict_one_by_one(model, codec, task):
    """Logits of test, a sequence at a time without pads."""
    found = []
    data = TuningData.encode(task.test, task.kind, codec, None)
    for row in range(len(task.test)):
        ids = torch.from_numpy(data.collate(np.array([row])))
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        found.append(logits[0, 1:-1] if task.kind == "token" else logits)
    return torch.cat(found).numpy().astype(np.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_head(kind, tmp_path):
    task = read_task(make_labelled(tmp_path / "task", kind), "rna", kind=kind)
    model, codec = make_tuned(task, *create_encoder("rna-fm-nano", seed=2))
    rows = TuningData.encode(task.train, kind, codec, None)
    batches = task_batches(rows, 4)
    scheme = METHODS["minmax"](model, batches, weights=4, activations=4)
    found = compare_task(model, scheme, task, codec, resamples=20)
    assert (found.label, found.kind, found.task) == ("W4A4", kind, "task")
    assert set(found.plain) == set(found.quantized) == {"dev", "test"}
    assert found.drop == pytest.approx(found.value - found.quantized_value)
    assert set(found.saturation) == set(scheme.sites)
    none = compare_task(
        model, METHODS["minmax"](model, (), weights=16, activations=16), task, codec, resamples=20
    )
    assert none.plain == none.quantized == found.plain
    assert none.drop == 0
    if kind == "contact":
        assert found.agreement is None
        assert found.plain != found.quantized
        return
    assert none.output_error == 0 < found.output_error
    if kind == "interaction":
        return
    plain = predict_one_by_one(model, codec, task)
    with simulate(model, scheme):
        rounded = predict_one_by_one(model, codec, task)
    check(found, task, plain, rounded)


def check(found, task, plain, rounded):
    """Against the formulas, from outputs that were computed without batches."""
    truth = task.test.targets
    if task.kind == "regression":
        expected = np.sqrt(np.square(rounded - plain).mean()) / plain.std()
        metrics = score_numbers(truth, rounded[:, 0], resamples=0)
        assert found.agreement is None
    else:
        sizes = np.linalg.norm(plain, axis=1)
        expected = (np.linalg.norm(rounded - plain, axis=1) / sizes).mean()
        decided = [x > 0 if task.kind == "multilabel" else x.argmax(1) for x in (plain, rounded)]
        # A logit at a tie may fall either way with another batch.
        assert found.agreement == pytest.approx((decided[0] == decided[1]).mean(), abs=0.05)
        metrics = score_classes(truth.ravel(), decided[1].ravel().astype(int), resamples=0)
    assert found.output_error == pytest.approx(expected, rel=0.1)
    value = metrics[found.metric].value
    assert found.quantized_value == pytest.approx(value, abs=0.1, nan_ok=True)


def test_eight_bits_cost_less_than_three(tmp_path):
    task = read_task(make_task(tmp_path / "task", "token", sizes=SIZES), "rna", kind="token")
    model, codec = make_tuned(task, *create_encoder("rna-fm-nano", seed=2))
    batches = task_batches(TuningData.encode(task.train, "token", codec, None), 4)
    found = [
        compare_task(
            model, METHODS["minmax"](model, batches, weights=b, activations=b), task, codec,
            resamples=0,
        )
        for b in (8, 3)
    ]  # fmt: skip
    assert found[0].output_error < 0.1 < found[1].output_error
    assert found[0].agreement > 0.95 > found[1].agreement


@pytest.mark.parametrize("kind", ["classification", "token"])
def test_pieces_of_several_residues(kind, tmp_path):
    """DNABERT-2: tokens are pieces, and labels of residues are laid out by residue."""
    tokenizer = make_dna_tokenizer()
    config = DnaBert2Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    encoder = AutoModelForMaskedLM.from_config(config).eval()
    folder = make_task(tmp_path / "task", kind, sizes=SIZES)
    for path in folder.glob("*.csv"):
        path.write_text(path.read_text().replace("U", "T"))
    task = read_task(folder, "dna", kind=kind)
    model, codec = make_tuned(task, encoder, tokenizer)
    rows = TuningData.encode(task.train, kind, codec, None)
    plan = QuantizationPlan(options={"weights": 6, "activations": 6}, sites="all")
    scheme = plan.find_scheme(model, task_batches(rows, 4))
    found = compare_task(model, scheme, task, codec, resamples=0)
    assert 0 < found.output_error < 1
    assert found.items == (len(task.test.targets) if kind == "token" else len(task.test))
    drawn = encode_unlabelled(rows.sequences, kind, codec)
    again = compare_decisions(model, scheme, drawn)
    assert again.items == sum(len(t) for t in drawn.targets)


def test_batches_are_disjoint_unmasked_and_as_many_as_asked_for(tmp_path):
    task = read_task(make_task(tmp_path / "task", sizes=SIZES), "rna")
    codec = Codec.from_tokenizer(create_encoder("rna-fm-nano")[1])
    rows = TuningData.encode(task.train, task.kind, codec, None)
    batches = task_batches(rows, 6, batch_tokens=128, seed=3)
    assert len(batches) == 6
    assert len({len(batch.input_ids) for batch in batches}) == 1
    assert all(batch.input_ids.numel() <= 128 for batch in batches)
    seen = [tuple(row[row != 1].tolist()) for batch in batches for row in batch.input_ids]
    known = {(0, *row.tolist(), 2) for row in rows.sequences}
    assert len(set(seen)) == len(seen)
    assert set(seen) <= known
    with pytest.raises(InputError, match="48 rows are too few for 49 calibration batches"):
        task_batches(rows, 49)


FAST = {"max_steps": 2, "learning_rate": 5e-3, "device": "cpu", "validate_every": 2}


@pytest.mark.parametrize(("method", "merge"), [("full", False), ("lora", False), ("lora", True)])
def test_tuned_folders_whole_adapted_and_merged(method, merge, tmp_path):
    save_encoder(*create_encoder("rna-fm-nano", seed=1), tmp_path / "model")
    folder = make_task(tmp_path / "task", sizes=SIZES)
    more = {"merge": True} if merge else {}
    out = tune(tmp_path / "model", task=folder, out=tmp_path / "t", method=method, **more, **FAST)
    assert check_subject(out)
    subject = load_subject(out)
    assert (subject.head.kind, subject.head.classes) == ("classification", ("A", "C"))
    names = [name for name, _ in subject.model.named_modules()]
    assert not any("lora" in name for name in names)
    plan = QuantizationPlan(calibration_batches=4)
    result = quantize_subject(subject, plan, task=read_own_task(folder, subject))
    metrics = json.loads((out / "metrics.json").read_text())
    for split in ("dev", "test"):
        for name, found in result.found.plain[split].items():
            assert found["value"] == pytest.approx(metrics[split][name]["value"], nan_ok=True)
    assert result.measured == "task"
    assert result.found.output_error < 0.2


def test_the_task_is_read_as_tune_was_told_to(tmp_path):
    """One table with columns of other names, of which tune held rows out."""
    save_encoder(*create_encoder("rna-fm-nano", seed=1), tmp_path / "model")
    rows = (make_task(tmp_path / "task", sizes=(60, 2, 2)) / "train.csv").read_text().splitlines()
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["seq,class", *rows[1:]]) + "\n")
    reading = {"sequence_column": "seq", "label_column": "class", "dev_share": 0.2}
    options = reading | {"test_share": 0.2, "leaks": "drop"}
    out = tune(tmp_path / "model", task=table, out=tmp_path / "t", method="full", **options, **FAST)
    metrics = json.loads((out / "metrics.json").read_text())
    task = read_own_task(table, load_subject(out), read_tuning(out))
    assert (len(task.dev), len(task.test)) == (metrics["n"]["dev"], metrics["n"]["test"])
    quantized = quantize(out, task=table, out=tmp_path / "q", calibration_batches=4)
    plain = json.loads((quantized / "quantization.json").read_text())["plain"]
    for name, found in plain["test"].items():
        assert found["value"] == pytest.approx(metrics["test"][name]["value"], nan_ok=True)
    assert read_tuning(tmp_path / "model") == {}
    with pytest.raises(InputError, match=r"tuned with .*--dev-share 0.2.* as tune was given it"):
        quantize(out, task=make_task(tmp_path / "other", sizes=SIZES), out=tmp_path / "q2")


def test_the_task_has_to_be_the_models_own(tmp_path):
    save_encoder(*create_encoder("rna-fm-nano", seed=1), tmp_path / "model")
    folder = make_task(tmp_path / "task", sizes=SIZES)
    out = tune(tmp_path / "model", task=folder, out=tmp_path / "t", method="full", **FAST)
    subject = load_subject(out)
    other = make_task(tmp_path / "other", sizes=SIZES, classes=3)
    with pytest.raises(InputError, match="has the classes A, C, G, the model was tuned for A, C"):
        read_own_task(other, subject)
    assert not check_subject(tmp_path / "model")
    with pytest.raises(InputError, match="no head to predict a task with"):
        read_own_task(folder, load_subject(tmp_path / "model"))


def test_a_plain_hugging_face_head_is_known_by_its_config(tmp_path):
    encoder, tokenizer = create_encoder("rna-fm-nano", seed=1)
    for kind in ("classification", "multilabel", "regression", "token"):
        task = read_task(make_labelled(tmp_path / f"{kind}-task", kind), "rna", kind=kind)
        model, _ = make_tuned(task, encoder, tokenizer)
        save_encoder(model, tokenizer, tmp_path / kind)
        head = load_subject(tmp_path / kind).head
        assert head == check_subject(tmp_path / kind)
        assert head.kind == kind
        assert head.classes == task.classes
        again = read_own_task(tmp_path / f"{kind}-task", load_subject(tmp_path / kind))
        assert again.kind == kind


def write_config(folder, **content):
    known = {"model_type": "esm", "architectures": ["EsmForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(known | content))


def test_classes_and_kinds_are_those_that_transformers_reads(tmp_path):
    (tmp_path / "model.safetensors").touch()
    for count in (2, 12):
        EsmConfig(num_labels=count, architectures=["EsmForSequenceClassification"]).save_pretrained(
            tmp_path
        )
        expected = tuple(AutoConfig.from_pretrained(tmp_path).id2label.values())
        assert len(expected) == count
        assert check_subject(tmp_path) == TaskHead("classification", expected)
    # As text, 10 is before 2.
    write_config(tmp_path, id2label={str(i): f"c{i}" for i in sorted(range(12), key=str)})
    assert check_subject(tmp_path).classes == tuple(f"c{i}" for i in range(12))
    write_config(tmp_path, id2label={"0": "LABEL_0"})
    assert check_subject(tmp_path) == TaskHead("regression")
    write_config(tmp_path, problem_type="regression")
    with pytest.raises(InputError, match="predicts 2 numbers of each sequence"):
        check_subject(tmp_path)
    write_config(tmp_path, architectures=["EsmForMaskedLM"])
    assert check_subject(tmp_path) is None


def test_labels_of_tokens_that_hold_several_residues_are_refused(tmp_path):
    """Those of transformers' own class; ours lays them out by residue."""
    tokenizer = make_dna_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1,
                        num_attention_heads=2, intermediate_size=24)  # fmt: skip
    save_encoder(BertForTokenClassification(config), tokenizer, tmp_path / "m")
    with pytest.raises(InputError, match="labels tokens that hold several residues each"):
        load_subject(tmp_path / "m")


def test_sequences_are_cut_as_in_tuning(tmp_path):
    codec = Codec.from_tokenizer(create_encoder("rna-fm-nano")[1])
    sequences = [np.full(n, 4, np.uint8) for n in (3, 10, 30)]
    found = encode_unlabelled(sequences, "classification", codec, 12)
    assert [len(s) for s in found.sequences] == [3, 10, 10]
    assert found.cropped == 1
    whole = encode_unlabelled(sequences, "token", codec, 12)
    assert [len(s) for s in whole.sequences] == [len(t) for t in whole.targets] == [3, 10, 30]

    save_encoder(*create_encoder("rna-fm-nano", seed=1), tmp_path / "model")
    folder = make_task(tmp_path / "task", sizes=SIZES)
    out = tune(tmp_path / "model", task=folder, out=tmp_path / "t", method="full", max_tokens=14,
               **FAST)  # fmt: skip
    subject = load_subject(out)
    seen = []
    subject.model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    (tmp_path / "d.fa").write_text("".join(f">s{i}\n{'ACGU' * (1 + i % 9)}\n" for i in range(40)))
    plan = QuantizationPlan(calibration_batches=4)
    for task in (None, read_own_task(folder, subject)):
        quantize_subject(subject, plan, data=tmp_path / "d.fa", task=task)
        assert max(seen) == 14
        seen.clear()


def test_unlabelled_pairs_are_refused():
    codec = Codec.from_tokenizer(create_encoder("rna-fm-nano")[1])
    for kind in ("interaction", "contact"):
        with pytest.raises(InputError, match="measured on labelled data; give --task"):
            encode_unlabelled([], kind, codec)


def test_infinities_are_named_and_nothing_is_changed(tmp_path):
    task = read_task(make_task(tmp_path / "task", sizes=SIZES), "rna")
    model, codec = make_tuned(task, *create_encoder("rna-fm-nano", seed=2))
    batches = task_batches(TuningData.encode(task.train, task.kind, codec, None), 4)
    scheme = METHODS["minmax"](model, batches)
    name = "esm.encoder.layer.1.output.dense"
    with torch.no_grad():
        model.get_submodule(name).bias[0] = torch.inf
    with pytest.raises(InputError, match="output is not finite; the checkpoint is unusable"):
        compare_task(model, scheme, task, codec)
    with pytest.raises(InputError, match=r"the input of .* is not finite"):
        METHODS["minmax"](model, batches)
    assert isinstance(model.get_submodule(name), torch.nn.Linear)


def test_a_damaged_head_is_refused(tmp_path):
    encoder, tokenizer = create_encoder("rna-fm-nano", seed=1)
    task = read_task(make_task(tmp_path / "task", sizes=SIZES), "rna")
    model, _ = make_tuned(task, encoder, tokenizer)
    save_encoder(model, tokenizer, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    weights = load_file(path)
    del weights["classifier.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match="unmatched keys"):
        load_subject(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        check_subject(tmp_path / "m")
