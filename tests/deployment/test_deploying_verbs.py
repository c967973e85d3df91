"""From a checkpoint to a deployed folder to embeddings, by the verbs."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from frugalfm.encoders import create_encoder, save_encoder
from frugalfm.errors import FrugalError, InputError
from frugalfm.quantization.plan import QuantizationPlan
from frugalfm.quantization.running import quantize_subject
from frugalfm.quantization.subjects import load_subject

pytest.importorskip("openvino")

from frugalfm.deployment import is_deployed
from frugalfm.verbs.embed import embed
from frugalfm.verbs.quantize import quantize


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint, sequences, and what was deployed of it."""
    folder = tmp_path_factory.mktemp("deployed")
    save_encoder(*create_encoder("rna-fm-nano", seed=1), folder / "model")
    random = np.random.default_rng(0)
    lines = [
        f">s{i}\n{''.join(random.choice(list('ACGU'), random.integers(5, 40)))}" for i in range(24)
    ]
    (folder / "in.fa").write_text("\n".join(lines) + "\n")
    out = quantize(
        folder / "model",
        data=folder / "in.fa",
        out=folder / "out",
        method="smoothquant",
        activation_granularity="tensor",
        deploy=True,
        calibration_batches=2,
        device="cpu",
    )
    return folder, out


def test_the_artifact(made, capsys):
    folder, out = made
    assert is_deployed(out)
    assert not (out / "scheme.safetensors").exists()
    summary = json.loads((out / "manifest.json").read_text())["summary"]["deployed"]
    assert summary["execution"] == "static"
    assert summary["kernels"]["u8"] + summary["kernels"].get("i8", 0) >= 18
    assert summary["bytes"] == sum(f.stat().st_size for f in out.glob("model.*"))
    assert summary["error_to_scheme"] < 0.1
    assert json.loads((out / "deployment.json").read_text())["task"] is None
    quantize(
        folder / "model",
        data=folder / "in.fa",
        out=out,
        method="smoothquant",
        activation_granularity="tensor",
        deploy=True,
        calibration_batches=2,
        device="cpu",
    )
    assert "already quantized" in capsys.readouterr().out


@pytest.mark.parametrize("pooling", ["mean", "token"])
def test_embed_takes_it_like_a_checkpoint(made, tmp_path, pooling):
    folder, deployed = made
    found = []
    for model in (folder / "model", deployed):
        out = tmp_path / f"{model.name}.parquet"
        embed(model, folder / "in.fa", out=out, pooling=pooling, device="cpu", batch_tokens=100)
        table = pq.read_table(out)
        column = table["embedding"].combine_chunks()
        found.append(
            np.asarray(column.flatten().flatten() if pooling == "token" else column.flatten())
        )
    assert found[0].shape == found[1].shape
    assert np.linalg.norm(found[1] - found[0]) < 0.1 * np.linalg.norm(found[0])
    assert table.schema.metadata[b"precision"] == b"bf16"


def test_embed_refuses(made, tmp_path):
    folder, deployed = made
    with pytest.raises(InputError, match="run on the CPU"):
        embed(deployed, folder / "in.fa", out=tmp_path / "e.parquet", device="cuda")


def test_what_cannot_run_is_refused_first(tmp_path):
    """Before the checkpoint is looked at."""
    for options, message in (
        ({"activations": 6}, "--activations 8"),
        ({"sites": "attention"}, "--sites linears"),
        ({"method": "nf4"}, "--method rtn or gptq"),
    ):
        with pytest.raises(InputError, match=message):
            quantize(tmp_path / "no", data=tmp_path, out=tmp_path / "o", deploy=True, **options)
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_converted_fails_before_the_long_work(made, tmp_path, monkeypatch):
    import openvino

    def fail(*_, **__):
        raise RuntimeError("first line\nNo conversion rule found for operations: aten::odd")

    def work(*_, **__):
        raise AssertionError("calibrated first")

    monkeypatch.setattr(openvino, "convert_model", fail)
    monkeypatch.setattr("frugalfm.quantization.running.quantize_subject", work)
    with pytest.raises(FrugalError, match=r"cannot be converted .*aten::odd"):
        quantize(
            made[0] / "model", data=made[0] / "in.fa", out=tmp_path / "o", deploy=True, device="cpu"
        )
    assert not (tmp_path / "o").exists()


def test_a_deployed_model_is_measured_on_a_few_batches(made):
    """Of all that a masked-language model is evaluated on, the longest among them."""
    subject = load_subject(made[0] / "model")
    plan = QuantizationPlan(calibration_batches=2, batch_tokens=50)
    found = quantize_subject(subject, plan, data=made[0] / "in.fa")
    assert found.found.sequences == 12
    assert len(found.batches) == 4
    widths = [batch.input_ids.shape[1] for batch in found.batches]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < widths[0]
