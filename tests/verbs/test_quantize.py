"""The verb writes metrics, sites and a scheme that works; it refuses bad input."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from frugalfm.artifacts import read_manifest
from frugalfm.encoders import create_encoder, load_encoder, save_encoder
from frugalfm.errors import InputError
from frugalfm.quantization import load_scheme, simulate
from frugalfm.tokens.vocabulary import make_protein_tokenizer
from frugalfm.verbs.quantize import quantize
from frugalfm.verbs.tune import tune

sys.path += [str(Path(__file__).parents[1] / name) for name in ("encoders", "training")]
from architectures import make_mlm
from tuning_tasks import make_task


@pytest.fixture
def checkpoint(tmp_path):
    save_encoder(*create_encoder("rna-fm-tiny", seed=1), tmp_path / "model")
    return tmp_path / "model"


def write_fasta(path, count, letters="ACGU"):
    random = np.random.default_rng(0)
    path.write_text(
        "".join(
            f">s{i}\n{''.join(random.choice(list(letters), size=random.integers(10, 40)))}\n"
            for i in range(count)
        )
    )
    return path


@pytest.fixture
def data(tmp_path):
    return write_fasta(tmp_path / "data.fa", 40)


def test_artifact(checkpoint, data, tmp_path, capsys):
    settings = {"data": data, "out": tmp_path / "out", "calibration_batches": 4, "device": "cpu"}
    out = quantize(checkpoint, weights=4, activations=4, **settings)
    printed = capsys.readouterr().out
    assert "W4A4 (weight-and-activation)" in printed
    assert "esm.encoder.layer.{0..3}.attention.self.query" in printed
    assert "not quantized" in printed
    content = json.loads((out / "quantization.json").read_text())
    assert content["execution"] == "simulated"
    assert len(content["quantized"]) == 25
    assert any(place["name"] == "lm_head.decoder" for place in content["not_quantized"])
    assert content["increase"] == pytest.approx(content["quantized_loss"] - content["loss"])
    assert content["sequences"] == 20
    assert read_manifest(out, "quantization")["summary"]["label"] == "W4A4"
    quantize(checkpoint, weights=4, activations=4, **settings)
    assert "already quantized" in capsys.readouterr().out

    model, _ = load_encoder(checkpoint)
    ids = torch.tensor([[0, 4, 5, 6, 7, 2]])
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        with simulate(model, load_scheme(out)):
            rounded = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert not torch.equal(plain, rounded)


def test_weight_only_has_a_label_of_its_own(checkpoint, data, tmp_path, capsys):
    out = quantize(
        checkpoint,
        data=data,
        out=tmp_path / "out",
        activations=16,
        calibration_batches=2,
        weight_granularity="channel",
        device="cpu",
    )
    assert "W8A16 (weight-only: activations stay in floating point)" in capsys.readouterr().out
    content = json.loads((out / "quantization.json").read_text())
    assert content["activations"] is None
    assert content["weights"]["granularity"] == "channel"


def test_bad_input_is_refused(checkpoint, data, tmp_path):
    out = tmp_path / "out"
    for settings, words in (
        ({"weights": 1}, "--weights 1"),
        ({"activations": 17}, "--activations 17"),
        ({"method": "magic"}, "magic"),
        ({"weight_granularity": "token"}, "tensor, channel or group"),
        ({"activation_granularity": "channel"}, "tensor, token or sequence"),
        ({"calibration_batches": 0}, "--calibration-batches must be positive"),
        ({"calibration_batches": 21}, r"data\.fa: 40 sequences are too few.* need 42"),
        ({"limit": 3}, "6 sequences are too few.*give a larger --limit or fewer"),
        ({"data": write_fasta(tmp_path / "p.fa", 40, "MKLVEF")}, r"p\.fa"),
        ({"data": write_fasta(tmp_path / "none.fa", 0)}, r"none\.fa"),
        ({"data": write_fasta(tmp_path / "one.fa", 1)}, r"one\.fa: 1 sequences are too few"),
        ({"data": write_fasta(tmp_path / "n.fa", 40, "N-")}, r"n\.fa"),
        ({"data": None}, "nothing to calibrate on; give sequences with --data"),
        ({"task": tmp_path}, "the checkpoint has no head"),
        ({"alpha": 0.5}, "--alpha does nothing with --method minmax"),
        ({"group_size": 48}, r"query: 128 inputs do not divide into groups of 48"),
    ):
        with pytest.raises(InputError, match=words):
            quantize(checkpoint, **({"data": data, "out": out, "device": "cpu"} | settings))
    assert not out.exists()


def test_a_repeated_call_warns_again(checkpoint, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("frugalfm.quantization.evaluation.SATURATION_LIMIT", 0)
    settings = {"data": data, "out": tmp_path / "out", "device": "cpu", "calibration_batches": 4}
    settings |= {"activation_observer": "percentile", "percentile": 80}
    quantize(checkpoint, **settings)
    (warning,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("warning")]
    assert "saturate on the evaluation data, worst esm." in warning
    quantize(checkpoint, **settings)
    again = capsys.readouterr().out.splitlines()
    assert "already quantized" in again[0]
    assert again[1:] == [warning]


def test_observers_that_find_nothing_are_refused_but_for_fixed_scales(checkpoint, data, tmp_path):
    """A deployed model has those, whatever the method's paper has."""
    settings = {"data": data, "out": tmp_path / "out", "device": "cpu", "calibration_batches": 4}
    settings |= {"method": "smoothquant", "activation_observer": "percentile", "percentile": 99.0}
    with pytest.raises(InputError, match="give --activation-granularity tensor for fixed scales"):
        quantize(checkpoint, **settings)
    fixed = quantize(checkpoint, activation_granularity="tensor", **settings)
    assert read_manifest(fixed, "quantization")["config"]["percentile"] == 99
    with pytest.raises(InputError, match="magic"):
        quantize(checkpoint, **settings | {"method": "magic"}, deploy=True)
    if importlib.util.find_spec("openvino"):
        out = quantize(checkpoint, **settings | {"out": tmp_path / "d"}, deploy=True)
        config = read_manifest(out, "quantization")["config"]
        assert config["activation_granularity"] == "tensor"
        assert (config["rounding"], config["alpha"]) == ("gptq", "search")
        assert config["activation_observer"] == "percentile"  # as given


def test_broken_weights_are_named(tmp_path, data):
    model, tokenizer = create_encoder("rna-fm-tiny", seed=1)
    with torch.no_grad():
        model.esm.encoder.layer[2].intermediate.dense.weight[0, 0] = torch.nan
    save_encoder(model, tokenizer, tmp_path / "model")
    with pytest.raises(InputError, match=r"layer\.2\.intermediate\.dense is not finite"):
        quantize(tmp_path / "model", data=data, out=tmp_path / "out", device="cpu")


def test_more_than_linears(checkpoint, data, tmp_path, capsys):
    out = quantize(
        checkpoint,
        data=data,
        out=tmp_path / "out",
        sites="all",
        tables=True,
        weight_granularity="group",
        group_size=32,
        activation_granularity="sequence",
        calibration_batches=2,
        device="cpu",
    )
    printed = capsys.readouterr().out
    assert "quantized (weight 8 bits per group of 32 and input 8 bits per sequence):" in printed
    assert "esm.encoder.layer.{0..3}.attention.self.(probabilities)" in printed
    assert "esm.encoder.layer.{0..3}.output.dense (reads the hidden activation)" in printed
    assert "W8A8 (weight-and-activation; sites: all)" in printed
    content = json.loads((out / "quantization.json").read_text())
    kinds = {place["kind"] for place in content["quantized"]}
    assert kinds == {"linear", "table", "output", "input", "attention"}
    scheme = load_scheme(out)
    assert scheme.extent == "all"
    assert scheme.tables
    model, _ = load_encoder(checkpoint)
    scheme.check(model)


@pytest.mark.parametrize(
    ("observer", "more"), [("mse", {}), ("percentile", {"percentile": 99.0}), ("minmax", {})]
)
def test_observers_by_name(checkpoint, data, tmp_path, observer, more):
    out = quantize(
        checkpoint,
        data=data,
        out=tmp_path / "out",
        weights=3,
        activations=4,
        weight_observer=observer,
        activation_observer=observer,
        symmetric_activations=True,
        calibration_batches=2,
        device="cpu",
        **more,
    )
    config = read_manifest(out, "quantization")["config"]
    assert (config["weight_observer"], config["symmetric_activations"]) == (observer, True)
    assert load_scheme(out).activations.symmetric


def test_rounding_weights_to_nearest(checkpoint, data, tmp_path, capsys):
    out = quantize(
        checkpoint, data=data, out=tmp_path / "out", method="rtn", calibration_batches=2,
        device="cpu",
    )  # fmt: skip
    assert "W4A16 (weight-only" in capsys.readouterr().out
    assert load_scheme(out).weights.group_size == 128


@pytest.fixture
def tuned(checkpoint, tmp_path):
    folder = make_task(tmp_path / "task", sizes=(40, 12, 12))
    options = {"max_steps": 2, "validate_every": 2, "learning_rate": 5e-3, "device": "cpu"}
    return folder, tune(checkpoint, task=folder, out=tmp_path / "tuned", method="lora", **options)


def test_a_tuned_model_on_its_task_and_without_labels(tuned, data, tmp_path, capsys):
    folder, model = tuned
    options = {"calibration_batches": 4, "device": "cpu"}
    out = quantize(model, task=folder, out=tmp_path / "a", **options)
    printed = capsys.readouterr().out
    assert "test mcc of task" in printed
    assert "same decision" in printed
    content = json.loads((out / "quantization.json").read_text())
    assert content["measured"] == "task"
    assert content["drop"] == pytest.approx(content["value"] - content["quantized_value"])
    expected = json.loads((model / "metrics.json").read_text())["test"]["mcc"]["value"]
    assert content["value"] == pytest.approx(expected)
    quantize(model, task=folder, out=tmp_path / "a", **options)
    assert "already quantized; W8A8 (weight-and-activation): test mcc" in capsys.readouterr().out
    both = quantize(model, task=folder, data=data, out=tmp_path / "b", **options)
    assert json.loads((both / "quantization.json").read_text())["value"] == content["value"]
    out = quantize(model, data=data, out=tmp_path / "c", **options)
    content = json.loads((out / "quantization.json").read_text())
    assert (content["measured"], content["sequences"]) == ("agreement", 20)
    assert content["agreement"] > 0.8
    with pytest.raises(InputError, match="give --task, or sequences with --data"):
        quantize(model, out=tmp_path / "d", **options)
    other = make_task(tmp_path / "other", sizes=(40, 12, 12), classes=3)
    with pytest.raises(InputError, match="the model was tuned for A, C"):
        quantize(model, task=other, out=tmp_path / "d", **options)
    with pytest.raises(InputError, match=r"train\.csv: 40 rows are too few for 41"):
        quantize(model, task=folder, out=tmp_path / "d", calibration_batches=41, device="cpu")
    assert not (tmp_path / "d").exists()


def test_data_of_another_alphabet_are_refused(tmp_path, checkpoint):
    """Letters that a protein model takes are refused, too, if they are those of DNA alone."""
    tokenizer = make_protein_tokenizer()
    torch.manual_seed(0)
    model = make_mlm("esm2")
    save_encoder(model, tokenizer, tmp_path / "protein")
    options = {"out": tmp_path / "out", "device": "cpu", "calibration_batches": 2}
    dna = write_fasta(tmp_path / "dna.fa", 40, "ACGT")
    with pytest.raises(InputError, match=r"dna\.fa: holds nothing but ACGTUN, so it is DNA or RNA"):
        quantize(tmp_path / "protein", data=dna, **options)
    unknown = write_fasta(tmp_path / "x.fa", 40, "J")
    with pytest.raises(InputError, match=r"x\.fa: 100% of the tokens are unknown"):
        quantize(tmp_path / "protein", data=unknown, **options)
    assert not (tmp_path / "out").exists()
    proteins = write_fasta(tmp_path / "p.fa", 40, "MKLVEFACGT")
    assert quantize(tmp_path / "protein", data=proteins, **options) == tmp_path / "out"


def test_a_failure_half_way_leaves_nothing(checkpoint, data, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("on purpose")

    monkeypatch.setattr("frugalfm.artifacts.write_json", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        quantize(checkpoint, data=data, out=tmp_path / "out", calibration_batches=2, device="cpu")
    assert not (tmp_path / "out").exists()
