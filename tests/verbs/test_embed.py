"""The verb ``embed``: one whole file, or a clear message."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from frugalfm.encoders import create_encoder, load_encoder, save_encoder
from frugalfm.errors import InputError
from frugalfm.probing.embed import Embedder
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.inputs import stream_encoded
from frugalfm.verbs.build import build
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
    for name in ("e.csv", "e.npy", "e"):
        with pytest.raises(InputError, match=r"name it \.parquet"):
            embed(checkpoint, fasta, out=tmp_path / name, device="cpu")
    with pytest.raises(InputError, match=r"--base .*is a whole model"):
        embed(checkpoint, fasta, out=out, base=checkpoint, device="cpu")
    out.write_text("precious")
    with pytest.raises(InputError, match="already exists"):
        embed(checkpoint, fasta, out=out, device="cpu")
    assert out.read_text() == "precious"


def test_neither_the_input_nor_the_encoder_is_overwritten(checkpoint, fasta, tmp_path):
    pool = build(fasta, alphabet="rna", out=tmp_path / "pool")
    part = pool / "part-00000.parquet"
    table = tmp_path / "t.parquet"
    pq.write_table(pq.read_table(part), table)
    (tmp_path / "link.parquet").symlink_to(table)
    weights = checkpoint / "weights.parquet"
    before = table.read_bytes(), part.read_bytes()
    for sequences, out in [
        (table, table),
        (table, tmp_path / "link.parquet"),
        (pool, part),
        (pool, tmp_path / "model/../pool/part-00000.parquet"),
        (fasta, weights),
    ]:
        with pytest.raises(InputError, match="is or lies inside the input"):
            embed(checkpoint, sequences, out=out, overwrite=True, device="cpu")
    assert (table.read_bytes(), part.read_bytes()) == before
    assert not weights.exists()


def test_a_file_goes_through_a_link(checkpoint, fasta, tmp_path):
    (tmp_path / "home").symlink_to(tmp_path / "scratch")  # which is not there yet
    out = embed(checkpoint, fasta, out=tmp_path / "home/e.parquet", device="cpu")
    (tmp_path / "l.parquet").symlink_to(out)
    embed(checkpoint, fasta, out=tmp_path / "l.parquet", pooling="cls", overwrite=True)
    assert (tmp_path / "l.parquet").is_symlink()
    assert pq.read_schema(tmp_path / "scratch/e.parquet").metadata[b"pooling"] == b"cls"


def test_what_is_made_of_another_column_or_of_another_name_is_another(checkpoint, tmp_path, capsys):
    one, two, out = tmp_path / "one.csv", tmp_path / "two.csv", tmp_path / "e.parquet"
    one.write_text("sequence,other\nACGU,GGGG\n")
    embed(checkpoint, one, out=out, sequence_column="other", device="cpu")
    with pytest.raises(InputError, match="not made by this call"):
        embed(checkpoint, one, out=out, device="cpu")
    embed(checkpoint, one, out=out, device="cpu", overwrite=True)
    assert pq.read_table(out)["id"].to_pylist() == ["one:1"]
    one.rename(two)
    with pytest.raises(InputError, match="not made by this call"):
        embed(checkpoint, two, out=out, device="cpu")
    two.write_text("id,sequence\na,ACGU\n")
    embed(checkpoint, two, out=out, device="cpu", overwrite=True)
    two.rename(one)
    capsys.readouterr()
    embed(checkpoint, one, out=out, device="cpu")
    assert "already there" in capsys.readouterr().out
