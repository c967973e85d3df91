"""CPUs without bf16 or VNNI: models run on them all the same, and say what is to be known."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from frugalfm.deployment import processor
from frugalfm.errors import InputError
from frugalfm.quantization import METHODS
from frugalfm.tokens.masking import IGNORED
from frugalfm.tokens.vocabulary import make_protein_tokenizer
from frugalfm.training.data import Batch

pytest.importorskip("openvino")

import openvino

from frugalfm.deployment import deploy, load_deployed

sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
from architectures import make_batch, make_mlm

INTEL = "processor\t: 0\nflags\t\t: fpu sse4_2 avx2 {}\nbugs\t\t: none\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\n"
on_x86 = pytest.mark.skipif(
    platform.machine() not in {"x86_64", "AMD64"}, reason="of x86's instruction sets"
)


@pytest.mark.parametrize(
    ("cpuinfo", "lacks"),
    [
        (INTEL.format(""), True),
        (INTEL.format("avx512f avx512bw"), True),
        (INTEL.format("avx512f avx512_vnni"), False),
        (INTEL.format("avx_vnni"), False),
        (INTEL.format("amx_tile amx_int8"), False),
        (ARM, False),
        ("", False),
        (None, False),
    ],
)
def test_what_the_cpu_lacks(cpuinfo, lacks, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    monkeypatch.setattr(processor, "_CPUINFO", path)
    assert processor.lacks_vnni() is lacks


@pytest.fixture(scope="module")
def model():
    return make_mlm("bert", num_hidden_layers=2)


def round_all(model, weights, **options):
    ids, mask = make_batch()
    batch = Batch(ids, mask, torch.full_like(ids, IGNORED), int(mask.sum()))
    return METHODS["minmax"](
        model, [batch], weights=weights, weight_granularity="channel", **options
    )


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    """One model in several schemes."""
    folder = tmp_path_factory.mktemp("schemes")
    for name, scheme in {
        "W8A8": round_all(model, 8),
        "W8A8 dynamic": round_all(model, 8, activation_granularity="token"),
        "W7A8": round_all(model, 7),
        "W8": METHODS["rtn"](model, [], weights=8, weight_granularity="channel"),
        "float": None,
    }.items():
        deploy(model, make_protein_tokenizer(), scheme, folder / name)
    return folder


@pytest.mark.parametrize(
    ("name", "saturates"),
    [("W8A8", True), ("W8A8 dynamic", False), ("W7A8", False), ("W8", False), ("float", False)],
)
def test_a_cpu_without_vnni_is_told_of_once(name, saturates, folders, monkeypatch, capsys):
    processor.say_once.cache_clear()
    monkeypatch.setattr("frugalfm.deployment.runtime.lacks_vnni", lambda: False)
    load_deployed(folders / name, precision="fp32")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("frugalfm.deployment.runtime.lacks_vnni", lambda: True)
    for _ in range(2):
        load_deployed(folders / name, precision="fp32")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (saturates or "dynamic" in name)
    assert all("no VNNI" in line and "--weights 7" in line for line in lines)
    card = json.loads((folders / name / "deployment.json").read_text())
    assert card["saturates_without_vnni"] is saturates


def patch_core(monkeypatch, fails, capabilities=("FP32", "BF16", "INT8")):
    """Let the engine fail with some precisions; gives those that were asked for."""
    asked = []

    class Core(openvino.Core):
        def get_property(self, *_):
            return list(capabilities)

        def compile_model(self, graph, device, options):
            asked.append(options["INFERENCE_PRECISION_HINT"])
            if asked[-1] in fails:
                raise RuntimeError("Exception from src\nno such kernel\n\n")
            return super().compile_model(graph, device, options)

    monkeypatch.setattr(openvino, "Core", Core)
    processor.say_once.cache_clear()
    return asked


def run(engine):
    ids, mask = (t.numpy() for t in make_batch())
    return engine.run(ids, mask)["last_hidden_state"]


def test_where_the_engine_fails_with_bf16_it_computes_in_fp32(folders, monkeypatch, capsys):
    exact = run(load_deployed(folders / "float", precision="fp32"))
    asked = patch_core(monkeypatch, {"bf16"})
    np.testing.assert_array_equal(run(load_deployed(folders / "float")), exact)
    assert asked == ["bf16", "f32"]
    said = capsys.readouterr().err
    assert "bf16 on this CPU (no such kernel); computing in fp32" in said
    assert "deploy again" not in said


def test_where_there_is_no_bf16_it_is_not_tried(folders, monkeypatch, capsys):
    asked = patch_core(monkeypatch, set(), capabilities=["FP32", "INT8"])
    load_deployed(folders / "float", precision="fp32")
    assert capsys.readouterr().err == ""
    for _ in range(2):
        load_deployed(folders / "float")
    assert asked == ["f32", "f32", "f32"]
    assert capsys.readouterr().err.count("this CPU has no bf16; computing in fp32\n") == 1


def test_where_nothing_runs_the_folder_is_not_blamed(folders, monkeypatch):
    patch_core(monkeypatch, {"bf16", "f32"})
    with pytest.raises(InputError, match=r"cannot run it on this CPU \(no such kernel\)") as found:
        load_deployed(folders / "float")
    assert "deploy again" not in str(found.value)


@on_x86
@pytest.mark.parametrize("name", ["float", "W7A8", "W8A8 dynamic"])
def test_on_an_old_cpu(name, folders, model, tmp_path):
    """Without bf16 and VNNI; weights of 7 bits do not saturate there."""
    ids, mask = (t.numpy() for t in make_batch())
    np.savez(tmp_path / "in.npz", ids=ids, mask=mask)
    (tmp_path / "cpuinfo").write_text(INTEL.format(""))
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from frugalfm.deployment import processor\n"
        "processor._CPUINFO = Path(sys.argv[4])\n"
        "from frugalfm.deployment import load_deployed\n"
        "engine = load_deployed(sys.argv[1], outputs=('logits',))\n"
        "given = np.load(sys.argv[2])\n"
        "np.save(sys.argv[3], engine.run(given['ids'], given['mask'])['logits'])\n"
        "print(*sorted(engine.count_kernels()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folders / name]
        + [tmp_path / file for file in ("in.npz", "out.npy", "cpuinfo")],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    )
    assert "computing in fp32" in done.stderr
    kinds = done.stdout.split()
    assert "bf16" not in kinds
    assert ("u8" in kinds) == (name == "W7A8")
    here = load_deployed(folders / name, outputs=("logits",), precision="fp32").run(ids, mask)
    found = torch.from_numpy(np.load(tmp_path / "out.npy"))[torch.from_numpy(mask).bool()]
    expected = torch.from_numpy(here["logits"])[torch.from_numpy(mask).bool()]
    assert float((found - expected).norm() / expected.norm()) < (
        0.02 if "dynamic" in name else 3e-3
    )
