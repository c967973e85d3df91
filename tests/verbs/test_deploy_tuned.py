"""A tuned model, quantized and deployed by the verb, answers as the model that it was made of."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from frugalfm.errors import InputError
from frugalfm.verbs.quantize import quantize

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "training")]
from predict_models import Models, run

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    return Models(tmp_path_factory.mktemp("deploy"))


def deploy(model, test, out, **options):
    options = {"calibration_batches": 2, "limit": 20, "device": "cpu"} | options
    quantize(model, task=test.parent, out=out, deploy=True, **options)
    return json.loads((out / "quantization.json").read_text())


@pytest.mark.parametrize(
    ("kind", "method", "options"),
    [
        ("classification", "full", {"method": "smoothquant"}),
        ("classification", "lora", {"method": "smoothquant"}),
        ("token", "full", {"method": "smoothquant"}),
        ("interaction", "full", {"method": "minmax", "weight_granularity": "channel"}),
        ("classification", "full", {"method": "gptq", "weight_granularity": "channel"}),
        ("classification", "full", {"method": "omniquant", "epochs": 1}),
    ],
)
def test_a_deployed_model_answers_as_the_tuned_one(tuned, tmp_path, capsys, kind, method, options):
    if method == "lora":
        pytest.importorskip("peft")
    model, test = tuned(kind, method)
    found = deploy(model, test, tmp_path / "d", **options)["deployed"]
    said = capsys.readouterr().out.splitlines()
    deploy(model, test, tmp_path / "d", **options)
    (repeated,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("deployed"))
    assert repeated in said
    weight_only = options["method"] == "gptq"
    assert found["execution"] == ("weight-only" if weight_only else "static")
    if not weight_only:
        integer = sum(n for name, n in found["kernels"].items() if name in {"u8", "i8"})
        assert integer == 3 * 6
    # bf16 between the products, and answers that lie close together after so little tuning.
    assert found["error_to_scheme"] < 0.05
    ours = pq.read_table(run(tmp_path / "d", test, tmp_path / "p.parquet", probabilities=True))
    exact = pq.read_table(run(model, test, tmp_path / "e.parquet", probabilities=True))
    assert ours.column_names == exact.column_names
    for name in ours.column_names:
        if name.startswith("probability_"):
            one, two = (
                np.concatenate(list(map(np.atleast_1d, t[name].to_pylist()))) for t in (ours, exact)
            )
            np.testing.assert_allclose(one, two, atol=0.1 if weight_only else 0.05)


def test_what_cannot_be_deployed_is_refused_at_once(tuned, tmp_path):
    model, test = tuned()
    with pytest.raises(InputError, match="cannot be deployed"):
        deploy(model, test, tmp_path / "d", method="minmax", activations=4)
    with pytest.raises(InputError, match="use --method rtn or gptq"):
        deploy(model, test, tmp_path / "d", method="nf4")
    with pytest.raises(InputError, match="--sites linears"):
        deploy(model, test, tmp_path / "d", sites="all")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        *((kind, "fp32") for kind in ("contact", "base-pair", "distance", "interaction")),
        *((kind, "bf16") for kind in ("contact", "distance", "affinity")),
    ],
)
def test_models_of_pairs_are_scored_as_deployed_and_predict(
    tuned, tmp_path, capsys, kind, precision
):
    """Pairs of residues and of sequences: the metric is the engine's, on all of test."""
    model, test = tuned(kind)
    found = deploy(model, test, tmp_path / "d", precision=precision)
    task = found["deployed"]["task"]
    assert task["value"] == found["deployed"]["task"]["test"][task["metric"]]["value"]
    assert (task["fp32"], task["simulated"]) == (found["value"], found["quantized_value"])
    assert f"test {task['metric']} of the deployed model" in capsys.readouterr().out
    assert found["method"] == "smoothquant"  # the default here
    assert found["deployed"]["error_to_scheme"] < 0.01
    if kind not in {"affinity", "interaction"}:
        assert found["deployed"]["agreement_with_fp32"] is None
    ours = pq.read_table(run(tmp_path / "d", test, tmp_path / "p.parquet"))
    exact = pq.read_table(run(model, test, tmp_path / "e.parquet"))
    assert ours.column_names == exact.column_names
    assert ours["id"].equals(exact["id"])
    for name in {"distances", "value", "probability"} & set(ours.column_names):
        one, two = (
            np.concatenate([np.atleast_1d(x) for x in t[name].to_pylist()]) for t in (ours, exact)
        )
        np.testing.assert_allclose(one, two, rtol=0.05, atol=0.05)


def test_the_metric_is_what_predict_gives(tuned, tmp_path):
    from sklearn.metrics import matthews_corrcoef

    model, test = tuned()
    found = deploy(model, test, tmp_path / "d")["deployed"]["task"]
    said = pq.read_table(run(tmp_path / "d", test, tmp_path / "p.parquet"))["label"].to_pylist()
    true = [line.split(",")[1] for line in test.read_text().split()[1:]]
    assert found["metric"] == "mcc"
    assert found["value"] == pytest.approx(matthews_corrcoef(true, said))


def test_a_table_of_residues_stays_exact(tuned, tmp_path):
    """Rounded to 8 bits, the tables of this small model made most of the error of W8A8."""
    model, test = tuned()
    found = deploy(model, test, tmp_path / "d", precision="fp32")["deployed"]
    assert found["tables_at_8_bits"] == []
    assert found["error_to_fp32"] < 1.5 * found["scheme_error"]


def test_bf16_keeps_the_small_differences_that_a_probe_reads(tmp_path, capsys):
    """The head of a narrow BERT reads differences of a few thousandths of its inputs."""
    import torch
    from transformers import BertConfig, BertForMaskedLM
    from tuning_tasks import make_task

    from frugalfm.encoders import create_encoder, save_encoder
    from frugalfm.verbs.tune import tune

    _, tokenizer = create_encoder("rna-fm-nano", seed=1)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, pad_token_id=tokenizer.pad_token_id, max_position_embeddings=130,
    )  # fmt: skip
    save_encoder(BertForMaskedLM(config).eval(), tokenizer, tmp_path / "model")
    task = make_task(tmp_path / "task", sizes=(80, 24, 48))
    tune(
        tmp_path / "model", task=task, out=tmp_path / "tuned", max_steps=2, device="cpu",
        learning_rate=1e-3, method="full",
    )  # fmt: skip
    found = {}
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        content = deploy(tmp_path / "tuned", task / "test.csv", out, precision=precision)
        found[precision] = content["deployed"]
        said = capsys.readouterr().out
        assert "times larger than fp32" in said
    assert found["fp32"]["error_to_fp32"] < 0.03
    assert found["bf16"]["error_to_fp32"] < 0.15  # .39 with a head that reads its inputs as is
    assert found["bf16"]["agreement_with_fp32"] > 0.95
    assert "warning: the deployed model's output error to fp32" in said
    assert "try --precision fp32" in said
