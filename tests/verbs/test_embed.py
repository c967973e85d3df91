"""The verb ``embed``: one whole file, or a clear message."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from frugalfm.encoders import create_encoder, load_encoder, save_encoder
from frugalfm.errors import InputError
from frugalfm.probing.embed import Embedder
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.inputs import stream_encoded
from frugalfm.verbs.embed import embed


@pytest.fixture
def checkpoint(tmp_path):
    save_encoder(*create_encoder("rna-fm-tiny", seed=1), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "in.fa"
    path.write_text(">a\nACGU\n>b\nggtta\n>c\nACGUACGUACGU\n")
    return path


def test_embed(checkpoint, fasta, tmp_path, capsys):
    out = embed(checkpoint, fasta, out=tmp_path / "new" / "e.parquet", device="cpu")
    table = pq.read_table(out)
    assert table["id"].to_pylist() == ["a", "b", "c"]
    metadata = table.schema.metadata
    assert metadata[b"pooling"] == b"mean"
    assert len(metadata[b"checkpoint"]) == 64
    assert b"frugalfm" in metadata
    model, tokenizer = load_encoder(checkpoint)
    codec = Codec.from_tokenizer(tokenizer)
    tokens = [t for piece in stream_encoded(fasta, codec) for t in piece.tokens]
    expected = Embedder(model, codec).embed(tokens)
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), expected, atol=1e-6)
    said = capsys.readouterr().out
    assert "128 numbers for each sequence" in said
    assert "3 sequences, 21 residues" in said


def test_the_same_call_is_done_and_another_is_refused(checkpoint, fasta, tmp_path, capsys):
    out = tmp_path / "e.parquet"
    embed(checkpoint, fasta, out=out, device="cpu")
    before = out.stat().st_mtime_ns
    embed(checkpoint, fasta, out=out, device="cpu")
    assert "already there" in capsys.readouterr().out
    assert out.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="--overwrite"):
        embed(checkpoint, fasta, out=out, pooling="cls", device="cpu")
    embed(checkpoint, fasta, out=out, pooling="cls", device="cpu", overwrite=True)
    assert pq.read_schema(out).metadata[b"pooling"] == b"cls"


def test_a_bad_record_is_found_before_anything_is_written(checkpoint, tmp_path):
    path = tmp_path / "bad.fa"
    path.write_text(">a\nACGU\n>b\nAC!U\n")
    with pytest.raises(InputError, match="line 4"):
        embed(checkpoint, path, out=tmp_path / "e.parquet", device="cpu")
    path.write_text(">a\n" + "A" * 1023 + "\n")
    with pytest.raises(InputError, match="1023 residues"):
        embed(checkpoint, path, out=tmp_path / "e.parquet", device="cpu")
    assert not list(tmp_path.glob("*e.parquet*"))
    assert not list(tmp_path.glob(".*"))


def test_bad_options(checkpoint, fasta, tmp_path):
    out = tmp_path / "e.parquet"
    with pytest.raises(InputError, match="--batch-tokens"):
        embed(checkpoint, fasta, out=out, batch_tokens=0)
    with pytest.raises(InputError, match="no such checkpoint"):
        embed(tmp_path / "none", fasta, out=out)
    with pytest.raises(InputError, match=r"none\.fa: no such file"):
        embed(checkpoint, tmp_path / "none.fa", out=out)
    with pytest.raises(InputError, match="is a folder"):
        embed(checkpoint, fasta, out=tmp_path, device="cpu")
    (tmp_path / "other.txt").write_text("precious")
    with pytest.raises(InputError, match="already exists"):
        embed(checkpoint, fasta, out=tmp_path / "other.txt", device="cpu")
    assert (tmp_path / "other.txt").read_text() == "precious"
