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
