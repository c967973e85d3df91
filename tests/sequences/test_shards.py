import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frugalfm.artifacts import open_stage
from frugalfm.errors import InputError
from frugalfm.sequences import shards
from frugalfm.sequences.shards import ShardWriter, open_shards, shard_schema


def table(first, count, length=10):
    return pa.table(
        {
            "id": [f"s{i}" for i in range(first, first + count)],
            "sequence": ["A" * length] * count,
            "length": pa.array([length] * count, pa.int32()),
            "score": pa.array(range(first, first + count), pa.float32()),
        }
    )


@pytest.fixture
def coreset(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "PART_ROWS", 100)
    monkeypatch.setattr(shards, "GROUP_ROWS", 30)
    stage = open_stage(tmp_path / "coreset", "coreset", {"alphabet": "rna"}, {})
    with ShardWriter(stage.work, shard_schema([pa.field("score", pa.float32())])) as writer:
        for first in range(0, 250, 25):
            writer.write(table(first, 25, 10 + first))
        writer.write(table(0, 0))
    return stage.commit(writer.summary())


def test_a_sequence_file_is_to_be_built_first(tmp_path):
    (tmp_path / "rna.fa").write_text(">a\nACGU\n")
    with pytest.raises(InputError, match=r"`frugalfm build .*rna\.fa --alphabet"):
        open_shards(tmp_path / "rna.fa")


def test_round_trip(coreset):
    found = open_shards(coreset)
    assert (found.alphabet, found.n_sequences) == ("rna", 250)
    assert [(part.path.name, part.rows, part.first_row) for part in found.parts] == [
        ("part-00000.parquet", 100, 0),
        ("part-00001.parquet", 100, 100),
        ("part-00002.parquet", 50, 200),
    ]
    assert (found.min_length, found.max_length) == (10, 235)
    assert found.n_residues == 25 * sum(range(10, 260, 25))
    batches = list(found.batches(["id", "score"], rows=7))
    assert max(map(len, batches)) <= 7
    assert pa.Table.from_batches(batches)["id"].to_pylist() == [f"s{i}" for i in range(250)]
    assert found.read(found.parts[1], ["score"])["score"].to_pylist() == list(range(100, 200))
    assert found.read(found.parts[2]).schema.names == ["id", "sequence", "length", "score"]


def test_missing_columns_are_null(tmp_path):
    with ShardWriter(tmp_path, shard_schema([pa.field("note", pa.string())])) as writer:
        writer.write(table(0, 3))
    (batch,) = shards.read_parquet(tmp_path / "part-00000.parquet")
    assert batch.column("note").null_count == 3


def test_many_rows_at_once_become_several_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "GROUP_RESIDUES", 1000)
    monkeypatch.setattr(shards, "PART_RESIDUES", 4000)
    with ShardWriter(tmp_path, shard_schema()) as writer:
        writer.write(table(0, 1000).drop_columns("score"))
    parts = [tmp_path / part["file"] for part in writer.summary()["parts"]]
    assert len(parts) == 3
    groups = [pq.ParquetFile(part).metadata.row_group(0).num_rows for part in parts]
    assert max(groups) <= 200
    assert sum(pq.read_metadata(part).num_rows for part in parts) == 1000


def test_unknown_column(coreset):
    with pytest.raises(InputError, match="no column 'label'; there are: id, sequence"):
        list(open_shards(coreset).batches(["label"]))


def test_a_flipped_byte_is_found(coreset):
    part = coreset / "part-00001.parquet"
    data = bytearray(part.read_bytes())
    data[60] ^= 1
    part.write_bytes(data)
    found = open_shards(coreset)
    with pytest.raises(InputError, match="part-00001"):
        list(found.batches())
    with pytest.raises(InputError, match="part-00001"):
        found.read(found.parts[1])


def test_other_artifacts_are_refused(coreset):
    manifest = json.loads((coreset / "manifest.json").read_text())
    del manifest["summary"]["parts"]
    (coreset / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="does not describe shards"):
        open_shards(coreset)
    manifest["kind"] = "scores"
    (coreset / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="kind 'scores'"):
        open_shards(coreset)


def test_a_failed_write_is_not_silent(tmp_path):
    folder = tmp_path / "gone"
    with pytest.raises(OSError, match="gone"), ShardWriter(folder, shard_schema()) as writer:
        writer.write(table(0, 3))
