"""Embeddings: the right positions pooled, whatever the batch; files are whole or absent."""

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from frugalfm.encoders import create_encoder
from frugalfm.errors import InputError
from frugalfm.probing.embed import Embedder, regroup
from frugalfm.probing.store import write_embeddings
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.inputs import Encoded


@pytest.fixture(scope="module")
def encoder():
    model, tokenizer = create_encoder("rna-fm-tiny", seed=1)
    return model, Codec.from_tokenizer(tokenizer), tokenizer


@pytest.fixture(scope="module")
def sequences(encoder):
    random = np.random.default_rng(0)
    lengths = [1, 40, 7, 2, 100, 40, 13]
    return [random.choice(encoder[1].residue_ids[:4], size=n).astype(np.uint8) for n in lengths]


def reference(encoder, sequence):
    """States of one sequence through the tokenizer and all hidden states of the whole model."""
    model, _, tokenizer = encoder
    letters = "".join(tokenizer.convert_ids_to_tokens(sequence.tolist()))
    with torch.no_grad():
        out = model(**tokenizer(letters, return_tensors="pt"), output_hidden_states=True)
    states = out.hidden_states[-1][0].double().numpy()
    # What the head reads: its output on these states is the model's.
    with torch.no_grad():
        logits = model.lm_head(out.hidden_states[-1])
    torch.testing.assert_close(logits, out.logits)
    return states


@pytest.mark.parametrize("pooling", ["mean", "cls", "token"])
@pytest.mark.parametrize("batch_tokens", [1, 90, 10_000])
def test_batched_equals_single_in_input_order(encoder, sequences, pooling, batch_tokens):
    states = [reference(encoder, sequence) for sequence in sequences]
    expected = {
        "mean": [s[1:-1].mean(0) for s in states],
        "cls": [s[0] for s in states],
        "token": np.concatenate([s[1:-1] for s in states]),
    }[pooling]
    embedder = Embedder(encoder[0], encoder[1], pooling, batch_tokens)
    told = []
    found = embedder.embed(sequences, told.append)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sum(told) == sum(map(len, sequences))


def test_what_stands_in_pads_does_not_matter(encoder, sequences, monkeypatch):
    """Not even NaN, which attention kernels may leave in rows that are wholly masked."""
    embedder = Embedder(encoder[0], encoder[1])
    expected = embedder.embed(sequences)
    forward = Embedder.forward

    def spoil(self, ids):
        states = forward(self, ids).clone()
        states[torch.from_numpy(ids == self.codec.pad_id)] = torch.nan
        return states

    monkeypatch.setattr(Embedder, "forward", spoil)
    np.testing.assert_array_equal(embedder.embed(sequences), expected)


@pytest.mark.parametrize("pooling", ["mean", "cls", "token"])
def test_what_is_not_finite_is_named_and_not_written(
    encoder, sequences, pooling, tmp_path, monkeypatch
):
    """Of several in a batch the first one."""
    forward = Embedder.forward

    def spoil(self, ids):
        states = forward(self, ids).clone()
        states[(ids != self.codec.pad_id).sum(1) == 42, 0 if pooling == "cls" else 7, 3] = torch.inf
        return states

    monkeypatch.setattr(Embedder, "forward", spoil)
    embedder = Embedder(encoder[0], encoder[1], pooling)
    with pytest.raises(InputError, match=r"embedding of sequence 2 is not finite; .*outliers"):
        embedder.embed(sequences)
    pieces = [Encoded(list("abcdefg"), sequences)]
    with pytest.raises(InputError, match="embedding of 'b' is not finite"):
        write_embeddings(tmp_path / "e.parquet", pieces, embedder, {})
    assert not list(tmp_path.iterdir())


def test_bf16_is_close(encoder, sequences):
    exact = Embedder(encoder[0], encoder[1]).embed(sequences)
    found = Embedder(encoder[0], encoder[1], precision="bf16").embed(sequences)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - exact).max() < 0.1 * np.abs(exact).max()


def test_no_sequences(encoder):
    assert Embedder(encoder[0], encoder[1]).embed([]).shape == (0, 128)


def test_regroup_keeps_order_and_bounds(sequences):
    pieces = [Encoded(["a", "b", "c"], sequences[:3]), Encoded(["d", "e", "f", "g"], sequences[3:])]
    found = list(regroup(pieces, 50))
    assert [name for piece in found for name in piece.ids] == list("abcdefg")
    tokens = [t for piece in found for t in piece.tokens]
    assert all(a is b for a, b in zip(tokens, sequences, strict=True))
    assert all(piece.lengths.sum() <= 50 or len(piece.ids) == 1 for piece in found)
    assert len(found) < len(sequences)


@pytest.mark.parametrize("pooling", ["mean", "token"])
def test_written_embeddings_are_the_same(encoder, sequences, pooling, tmp_path, monkeypatch):
    monkeypatch.setattr("frugalfm.probing.store._WINDOW", 50 * 128)
    monkeypatch.setattr("frugalfm.probing.store._POOLED_RESIDUES", 50)
    embedder = Embedder(encoder[0], encoder[1], pooling)
    pieces = [Encoded(list("abcdefg"), sequences)]
    path = tmp_path / "e.parquet"
    assert write_embeddings(path, pieces, embedder, {"pooling": pooling}) == 7
    table = pq.read_table(path)
    assert table.schema.metadata[b"pooling"] == pooling.encode()
    assert table["id"].to_pylist() == list("abcdefg")
    kind = "fixed_size_list<element: float>[128]"
    if pooling == "token":
        assert [len(x) for x in table["embedding"].to_pylist()] == [len(s) for s in sequences]
        kind = f"list<element: {kind}>"
    assert str(table.schema.field("embedding").type) == kind
    flat = table["embedding"].combine_chunks().flatten()
    flat = flat.flatten() if pooling == "token" else flat
    expected = embedder.embed(sequences)
    np.testing.assert_allclose(flat.to_numpy().reshape(-1, 128), expected, atol=1e-5)
    assert pq.ParquetFile(path).num_row_groups > 1


def test_a_failure_leaves_no_file_and_keeps_the_old_one(encoder, sequences, tmp_path):
    path = tmp_path / "e.parquet"
    path.write_bytes(b"old")

    def pieces():
        yield Encoded(["a"], sequences[:1])
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_embeddings(path, pieces(), Embedder(encoder[0], encoder[1]), {})
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["e.parquet"]


def test_pieces_have_no_embeddings_of_residues(encoder):
    """And a task with a structure is not sent from one option to another."""
    pieces = SimpleNamespace(per_residue=False)
    with pytest.raises(InputError, match=r"label a residue `frugalfm tune` works"):
        Embedder(encoder[0], pieces, "token")
