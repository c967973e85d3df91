"""The verb writes what it prints, skips what is done, and refuses bad input."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from frugalfm.artifacts import read_manifest
from frugalfm.encoders import create_encoder, save_encoder
from frugalfm.errors import InputError
from frugalfm.verbs.outliers import outliers


@pytest.fixture
def checkpoint(tmp_path):
    save_encoder(*create_encoder("rna-fm-tiny", seed=1), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    lines = [
        f">s{i}\n{''.join(random.choice(list('ACGU'), size=random.integers(5, 30)))}\n"
        for i in range(12)
    ]
    (tmp_path / "data.fa").write_text("".join(lines))
    return tmp_path / "data.fa"


def test_artifact_and_table(checkpoint, data, tmp_path, capsys):
    out = outliers(checkpoint, data=data, out=tmp_path / "out", limit=10, device="cpu")
    printed = capsys.readouterr().out
    assert "average kurtosis" in printed
    content = json.loads((out / "outliers.json").read_text())
    table = pq.read_table(out / "outliers.parquet")
    assert table.num_rows == 8
    assert table.to_pylist() == content["sites"]
    mean = np.mean(table["kurtosis"].to_numpy())
    assert content["avg_kurtosis"] == pytest.approx(mean)
    manifest = read_manifest(out, "outliers")
    assert manifest["summary"]["sequences"] == 10
    assert manifest["summary"]["max_inf_norm"] == content["max_inf_norm"]

    outliers(checkpoint, data=data, out=tmp_path / "out", limit=10, batch_tokens=50, device="cpu")
    assert "already measured" in capsys.readouterr().out
    with pytest.raises(InputError, match="--overwrite"):
        outliers(checkpoint, data=data, out=tmp_path / "out", limit=9, device="cpu")


def test_without_out_it_only_prints(checkpoint, data, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    assert outliers(checkpoint, data=data, device="cpu") is None
    assert sorted(tmp_path.iterdir()) == before
    printed = capsys.readouterr().out
    assert "12 sequences" in printed
    assert "1e-6 lowers the kurtosis" in printed  # random weights: tiny activations


def test_bad_input_is_refused(checkpoint, data, tmp_path):
    with pytest.raises(InputError, match="at least 1"):
        outliers(checkpoint, data=data, limit=0)
    with pytest.raises(InputError, match="no such checkpoint"):
        outliers(tmp_path / "nowhere", data=data)
    with pytest.raises(InputError, match="nowhere"):
        outliers(checkpoint, data=tmp_path / "nowhere.fa", device="cpu")
    with pytest.raises(InputError, match="'gpu'"):
        outliers(checkpoint, data=data, device="gpu")
    (tmp_path / "protein.fa").write_text(">a\nMKLVEEFPW\n")
    with pytest.raises(InputError, match=r"protein\.fa"):
        outliers(checkpoint, data=tmp_path / "protein.fa", out=tmp_path / "x", device="cpu")
    assert not (tmp_path / "x").exists()
    (tmp_path / "empty.fa").write_text("")
    with pytest.raises(InputError, match=r"empty\.fa"):
        outliers(checkpoint, data=tmp_path / "empty.fa", device="cpu")
