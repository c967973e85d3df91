"""The verb writes metrics, sites and a scheme that works; it refuses bad input."""

import json

import numpy as np
import pytest
import torch

from frugalfm.artifacts import read_manifest
from frugalfm.encoders import create_encoder, load_encoder, save_encoder
from frugalfm.errors import InputError
from frugalfm.quantization import load_scheme, simulate
from frugalfm.verbs.quantize import quantize


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
        ({"weight_granularity": "token"}, "tensor or channel"),
        ({"activation_granularity": "channel"}, "tensor or token"),
        ({"calibration_batches": 0}, "at least 1"),
        ({"calibration_batches": 21}, r"data\.fa: 40 sequences are too few.* need 42"),
        ({"data": write_fasta(tmp_path / "p.fa", 40, "MKLVEF")}, r"p\.fa"),
        ({"data": write_fasta(tmp_path / "none.fa", 0)}, r"none\.fa"),
    ):
        with pytest.raises(InputError, match=words):
            quantize(checkpoint, **({"data": data, "out": out, "device": "cpu"} | settings))
    assert not out.exists()


def test_broken_weights_are_named(tmp_path, data):
    model, tokenizer = create_encoder("rna-fm-tiny", seed=1)
    with torch.no_grad():
        model.esm.encoder.layer[2].intermediate.dense.weight[0, 0] = torch.nan
    save_encoder(model, tokenizer, tmp_path / "model")
    with pytest.raises(InputError, match=r"layer\.2\.intermediate\.dense is not finite"):
        quantize(tmp_path / "model", data=data, out=tmp_path / "out", device="cpu")
