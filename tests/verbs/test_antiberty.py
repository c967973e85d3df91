"""Real weights: AntiBERTy, from its PyPI package where that is installed, on antibodies.

docs/examples/antiberty.md shows the same by command line.
"""

import importlib.util
import math
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from frugalfm import build, import_checkpoint, outliers, score
from frugalfm.artifacts import read_manifest
from frugalfm.encoders import load_encoder
from frugalfm.encoders.mlm_head import list_head_layers

# Found, not imported: only the weights in it are used, none of its code.
PACKAGE = importlib.util.find_spec("antiberty")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="pip install antiberty==0.1.3")

# Variable domains of trastuzumab, and of a human and a mouse antibody.
ANTIBODIES = {
    "trastuzumab_VH": (
        "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAY"
        "LQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS"
    ),
    "trastuzumab_VL": (
        "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQP"
        "EDFATYYCQQHYTTPPTFGQGTKVEIK"
    ),
    "human_VH": (
        "EVQLVQSGPEVKKPGTSVKVSCKASGFTFMSSAVQWVRQARGQRLEWIGWIVIGSGNTNYAQKFQERVTITRDMSTSTAY"
        "MELSSLRSEDTAVYYCAAPYCSSISCNDGFDIWGQGTMVTVS"
    ),
    "mouse_VL": (
        "DVVMTQTPFSLPVSLGDQASISCRSSQSLVHSNGNTYLHWYLQKPGQSPKLLIYKVSNRFSGVPDRFSGSGSGTDFTLKI"
        "SRVEAEDLGVYFCSQSTHVPYTFGGGTKLEIK"
    ),
}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("antiberty")
    source = Path(PACKAGE.submodule_search_locations[0]) / "trained_models/AntiBERTy_md_smooth"
    import_checkpoint(source, out=folder / "model", allow_pickle=True)
    shuffled = random.Random(0)
    rows = dict(ANTIBODIES)
    for name, sequence in ANTIBODIES.items():
        rows[f"{name}_shuffled"] = "".join(shuffled.sample(sequence, len(sequence)))
    text = "".join(f">{name}\n{sequence}\n" for name, sequence in rows.items())
    (folder / "some.fasta").write_text(text)
    build(folder / "some.fasta", alphabet="protein", out=folder / "shards")
    return folder


def test_import(setting):
    summary = read_manifest(setting / "model", "checkpoint")["summary"]
    assert summary["architecture"] == "bert"
    assert summary["parameters"] == 25_759_769
    assert "cls.species" in " ".join(summary["notes"])
    model, tokenizer = load_encoder(setting / "model")
    assert tokenizer("EVQL")["input_ids"] == [2, 8, 22, 18, 14, 3]
    assert next(iter(list_head_layers(model))) == "cls.predictions.transform.dense"


def test_it_knows_antibodies(setting):
    """Loss in nats: far below guessing for antibodies, above it for the same letters shuffled."""
    out = score(
        setting / "shards",
        model=setting / "model",
        out=setting / "scores",
        subset=2,
        passes=2,  # a quarter of the residues
        adapt=False,
    )
    table = pq.read_table(out / "part-00000.parquet")
    losses = dict(zip(table["id"].to_pylist(), table["loss"].to_pylist(), strict=True))
    assert len(losses) == 8
    for name in ANTIBODIES:
        assert losses[name] < 1.0, name
        assert losses[f"{name}_shuffled"] > math.log(20), name


def test_outliers(setting):
    out = outliers(
        setting / "model", data=setting / "some.fasta", out=setting / "outliers", device="cpu"
    )
    assert read_manifest(out)["summary"]
