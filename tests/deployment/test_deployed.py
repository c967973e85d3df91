"""A deployed model computes what its torch model computes, or its simulated scheme."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from frugalfm.errors import InputError
from frugalfm.quantization import METHODS, split_batches
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.vocabulary import make_protein_tokenizer

pytest.importorskip("openvino")

from frugalfm.deployment import deploy, is_deployed, load_deployed
from frugalfm.deployment.measure import deploy_scheme, measure_fidelity
from frugalfm.deployment.processor import lacks_vnni
from frugalfm.deployment.tracing import trace
from frugalfm.quantization.simulate import simulate

sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
from architectures import DESCRIBED, make_batch, make_mlm

TOKENIZER = make_protein_tokenizer()
CODEC = Codec.from_tokenizer(TOKENIZER)
BOTH = ("last_hidden_state", "logits")
needs_vnni = pytest.mark.skipif(lacks_vnni(), reason="sums of 8-bit products saturate on this CPU")


def make_split(count=40):
    random = np.random.default_rng(0)
    sequences = [
        random.integers(4, 24, random.integers(5, 40)).astype(np.uint8) for _ in range(count)
    ]
    return split_batches(sequences, CODEC, calibration_batches=3, batch_tokens=400)


def run_torch(model, ids, mask):
    with torch.no_grad():
        trunk = getattr(model, model.base_model_prefix)
        states = trunk(input_ids=ids, attention_mask=mask).last_hidden_state
        return states.numpy(), model(input_ids=ids, attention_mask=mask).logits.numpy()


def check_equal(model, engine, limit=1e-4):
    """Padded, of other sizes than traced, alone and whole."""
    ids, mask = make_batch()
    for rows, width in ((slice(None), 21), (slice(1, 2), 6), (slice(0, 1), 21), (slice(1, 3), 13)):
        some, seen = ids[rows, :width], mask[rows, :width]
        found = engine.run(some.numpy(), seen.numpy())
        real = seen.numpy().astype(bool)
        for got, expected in zip(found.values(), run_torch(model, some, seen), strict=True):
            assert got.dtype == np.float32
            gap = np.abs(got[real] - expected[real]).max()
            assert gap <= limit * np.abs(expected[real]).max()


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        *((kind, "softmax") for kind in DESCRIBED),
        ("dnabert2", "softmax1"),
        ("rna-fm", "sink"),
        ("esmc", "clipped"),
        ("bert", "gated"),
    ],
)
def test_in_fp32_it_is_the_torch_model(kind, attention, tmp_path):
    # ModernBERT's second and third layer have windows, in which a pad may have no key.
    layers = 3 if kind == "modernbert" else 2
    model = make_mlm(kind, attention=attention, num_hidden_layers=layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate_" in name or "sink_" in name:
                parameter.normal_()
            if name.endswith(".bias"):
                parameter.normal_(std=0.1)
    card = deploy(model, TOKENIZER, None, tmp_path / "out", precision="fp32")
    assert card["execution"] == "float"
    engine = load_deployed(tmp_path / "out", outputs=BOTH)
    assert engine.hidden_size == 32
    assert set(engine.count_kernels()) == {"f32"}
    check_equal(model, engine)


@pytest.fixture(scope="module")
def subject():
    return make_mlm("dnabert2", num_hidden_layers=2), make_split()


SCHEMES = {
    "W7A8": lambda m, b: METHODS["minmax"](m, b, weights=7, weight_granularity="channel"),
    "W8A8": METHODS["minmax"],
    "W8A8 symmetric": lambda m, b: METHODS["minmax"](
        m, b, weight_granularity="channel", symmetric_activations=True
    ),
    "W4A8": lambda m, b: METHODS["minmax"](m, b, weights=4, weight_granularity="channel"),
    "smoothquant": lambda m, b: METHODS["smoothquant"](m, b, activation_granularity="tensor"),
    "outlier suppression": METHODS["outlier-suppression"],
}


@pytest.mark.parametrize(
    "name",
    [
        name if name in {"W4A8", "W7A8"} else pytest.param(name, marks=needs_vnni)
        for name in SCHEMES
    ],
)
def test_products_of_integers_are_the_simulated_scheme(name, subject, tmp_path, monkeypatch):
    """Exactly so while tables are left alone; a value at a tie may fall either way."""
    monkeypatch.setattr("frugalfm.deployment.lowering._SMALL", 1.0)
    model, split = subject
    scheme = SCHEMES[name](model, split.calibration)
    found = deploy_scheme(
        model, TOKENIZER, scheme, tmp_path / "out", split.evaluation, precision="fp32"
    )
    kernels = found["kernels"]
    assert found["execution"] == "static"
    # Each gated network's first linear becomes two products; the decoder is no site.
    assert kernels.pop("f32") == 1
    assert set(kernels) <= {"u8", "i8"}
    assert sum(kernels.values()) == len(scheme.sites) + 2
    assert found["error_to_scheme"] < 3e-3
    assert found["agreement_with_scheme"] > 0.99
    assert found["scheme_error"] > 5e-3


@needs_vnni
def test_as_deployed_by_default(subject, tmp_path, monkeypatch):
    """With bf16 between the integers, and the table at 8 bits as if it were not a small one."""
    monkeypatch.setattr("frugalfm.deployment.lowering._FEW", 0)
    model, split = subject
    scheme = SCHEMES["smoothquant"](model, split.calibration)
    found = deploy_scheme(model, TOKENIZER, scheme, tmp_path / "out", split.evaluation)
    assert found["tables_at_8_bits"] == ["bert.embeddings.word_embeddings"]
    assert found["error_to_scheme"] < 0.03
    assert found["agreement_with_scheme"] > 0.95
    exact = load_deployed(tmp_path / "out", outputs=("logits",), precision="fp32")
    precise = measure_fidelity(exact, model, scheme, split.evaluation)
    assert precise.error_to_scheme < 0.02


@needs_vnni
def test_inputs_that_are_rounded_as_they_pass(subject, tmp_path):
    model, split = subject
    scheme = METHODS["smoothquant"](model, split.calibration)
    found = deploy_scheme(
        model, TOKENIZER, scheme, tmp_path / "out", split.evaluation, precision="fp32"
    )
    assert found["execution"] == "dynamic"
    assert found["error_to_scheme"] < 0.02
    assert found["error_to_fp32"] < 0.02


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_weights_alone(bits, subject, tmp_path, monkeypatch):
    monkeypatch.setattr("frugalfm.deployment.lowering._SMALL", 1.0)
    model, split = subject
    scheme = METHODS["rtn"](model, split.calibration, weights=bits, group_size=16)
    found = deploy_scheme(
        model, TOKENIZER, scheme, tmp_path / "out", split.evaluation, precision="fp32"
    )
    assert found["execution"] == "weight-only"
    assert found["error_to_scheme"] < 1e-4  # inputs are not rounded


@needs_vnni
def test_a_fused_projection_with_separate_ones(tmp_path, monkeypatch):
    """Query, key and value of ESM-C read one rounded input; its decoder is a site."""
    monkeypatch.setattr("frugalfm.deployment.lowering._SMALL", 1.0)
    model, split = make_mlm("esmc", num_hidden_layers=2), make_split()
    scheme = SCHEMES["W8A8"](model, split.calibration)
    found = deploy_scheme(
        model, TOKENIZER, scheme, tmp_path / "out", split.evaluation, precision="fp32"
    )
    assert sum(found["kernels"].values()) == len(scheme.sites) == 16
    assert "f32" not in found["kernels"]
    assert found["error_to_scheme"] < 3e-3


def test_shifts_of_inputs_are_made_up_for(tmp_path, monkeypatch):
    """With a bias and, in the gated network, without one."""
    from dataclasses import replace

    from frugalfm.quantization import ChannelTransform

    monkeypatch.setattr("frugalfm.deployment.lowering._SMALL", 1.0)
    model, split = make_mlm("dnabert2", num_hidden_layers=2), make_split()
    scheme = METHODS["rtn"](model, split.calibration, weights=8, weight_granularity="channel")
    random = torch.Generator().manual_seed(0)
    transforms = {
        site: ChannelTransform(
            torch.rand(model.get_submodule(site).in_features, generator=random) + 0.5,
            torch.randn(model.get_submodule(site).in_features, generator=random),
        )
        for site in scheme.sites
    }
    found = deploy_scheme(
        model,
        TOKENIZER,
        replace(scheme, transforms=transforms),
        tmp_path / "out",
        split.evaluation,
        precision="fp32",
    )
    assert found["error_to_scheme"] < 1e-4


def test_one_simulation_measures_all_batches(subject, tmp_path, monkeypatch):
    """As a fresh one for each batch does."""
    model, split = subject
    scheme = SCHEMES["W8A8"](model, split.calibration)
    deploy(model, TOKENIZER, scheme, tmp_path / "out", precision="fp32")
    engine = load_deployed(tmp_path / "out", outputs=("logits",))
    begun = []
    monkeypatch.setattr(
        "frugalfm.deployment.measure.simulate", lambda *x: begun.append(1) or simulate(*x)
    )
    batches = split.evaluation
    together = measure_fidelity(engine, model, scheme, batches)
    assert len(batches) > 1
    assert len(begun) == 1
    errors, sizes = 0.0, 0.0
    for batch in batches:
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        real = batch.attention_mask.bool()
        with torch.no_grad():
            exact = model(**inputs).logits[real].double()
            with simulate(model, scheme):
                rounded = model(**inputs).logits[real].double()
        errors += float((rounded - exact).square().sum())
        sizes += float(exact.square().sum())
    assert together.scheme_error == pytest.approx((errors / sizes) ** 0.5)


def test_a_graph_that_was_traced_before(subject, tmp_path):
    """Gives the same folder, whatever ran in between."""
    model, split = subject
    graph = trace(model)
    scheme = SCHEMES["smoothquant"](model, split.calibration)
    deploy(model, TOKENIZER, scheme, tmp_path / "early", graph=graph)
    deploy(model, TOKENIZER, scheme, tmp_path / "late")
    early, late = ((tmp_path / name / "model.bin").read_bytes() for name in ("early", "late"))
    assert early == late


def test_a_batch_changes_nothing(subject, tmp_path):
    model, split = subject
    scheme = SCHEMES["smoothquant"](model, split.calibration)
    deploy(model, TOKENIZER, scheme, tmp_path / "out", precision="fp32")
    engine = load_deployed(tmp_path / "out")
    ids, mask = (t.numpy() for t in make_batch())
    together = engine.run(ids, mask)["last_hidden_state"]
    for row, length in enumerate(mask.sum(1)):
        alone = engine.run(ids[row : row + 1, :length], mask[row : row + 1, :length])
        states = alone["last_hidden_state"][0]
        assert np.linalg.norm(together[row, :length] - states) < 5e-3 * np.linalg.norm(states)


def test_it_runs_without_torch_and_without_transformers(subject, tmp_path):
    deploy(subject[0], TOKENIZER, None, tmp_path / "out")
    code = (
        "import sys, numpy as np\n"
        "from frugalfm.deployment import is_deployed, load_deployed\n"
        "assert is_deployed(sys.argv[1])\n"
        "out = load_deployed(sys.argv[1], threads=1).run(np.ones((2, 5)), np.ones((2, 5)))\n"
        "print(out['last_hidden_state'].shape, {'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n")[0] == "(2, 5, 32) set()"


def test_sizes(tmp_path):
    """Of a model whose linears are most of it: half, a quarter, an eighth and its scales."""
    from frugalfm.encoders import create_encoder

    model, tokenizer = create_encoder("rna-fm-tiny", seed=1)
    made = {
        "bf16": (None, 1.9),
        "8": (METHODS["rtn"](model, [], weights=8, weight_granularity="channel"), 3.5),
        "4": (METHODS["rtn"](model, [], weights=4, group_size=128), 6.0),
    }
    for name, (scheme, smaller) in made.items():
        card = deploy(model, tokenizer, scheme, tmp_path / name)
        weights = card["files"]["model.bin"]
        assert card["bytes_fp32"] / weights > smaller
        assert card["bytes"] == sum(f.stat().st_size for f in (tmp_path / name).glob("model.*"))
        assert card["max_tokens"] == 1024


def test_only_what_is_asked_for(subject, tmp_path):
    deploy(subject[0], TOKENIZER, None, tmp_path / "out")
    engine = load_deployed(tmp_path / "out")
    ids, mask = (t.numpy() for t in make_batch())
    assert set(engine.run(ids, mask)) == {"last_hidden_state"}
    fewer = sum(engine.count_kernels().values())
    assert sum(load_deployed(tmp_path / "out", outputs=BOTH).count_kernels().values()) > fewer
    with pytest.raises(InputError, match="not attentions"):
        load_deployed(tmp_path / "out", outputs=("attentions",))
    with pytest.raises(InputError, match=r"both are to be \(batch, tokens\)"):
        engine.run(ids, mask[:, :5])


def test_damage_is_named(subject, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    assert not is_deployed(folder)
    with pytest.raises(InputError, match=r"holds no deployment\.json"):
        load_deployed(tmp_path)
    deploy(subject[0], TOKENIZER, None, folder)
    assert is_deployed(folder)
    with pytest.raises(InputError, match="already"):
        deploy(subject[0], TOKENIZER, None, folder)
    card = json.loads((folder / "deployment.json").read_text())

    def write(**changes):
        (folder / "deployment.json").write_text(json.dumps(card | changes))

    write(engine_version="9999.1.0")
    with pytest.raises(InputError, match=r"9999\.1\.0.*pip install"):
        load_deployed(folder)
    write(format=99)
    with pytest.raises(InputError, match="format 99"):
        load_deployed(folder)
    write(engine="another")
    with pytest.raises(InputError, match="made for another"):
        load_deployed(folder)
    (folder / "deployment.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        load_deployed(folder)
    write()
    whole = (folder / "model.bin").read_bytes()
    (folder / "model.bin").write_bytes(whole[:-10])
    with pytest.raises(InputError, match=r"model\.bin: has .* deploy again"):
        load_deployed(folder)
    (folder / "model.bin").unlink()
    with pytest.raises(InputError, match=r"model\.bin: is missing"):
        load_deployed(folder)
    (folder / "model.bin").write_bytes(whole)
    (folder / "model.xml").write_text("x" * card["files"]["model.xml"])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_deployed(folder)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match=r'pip install "frugalfm\[deploy\]"'):
        load_deployed(folder)


def test_nothing_half_written(subject, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("frugalfm.deployment.writing._write_tokenizer", fail)
    with pytest.raises(OSError, match="disk full"):
        deploy(subject[0], TOKENIZER, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
