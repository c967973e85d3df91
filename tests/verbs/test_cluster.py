"""The verb: shards in, one row a sequence out, with either method."""

import shutil
import stat

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import frugalfm
from frugalfm.artifacts import open_stage, read_manifest
from frugalfm.cli import main
from frugalfm.errors import FrugalError, InputError
from frugalfm.sequences import shards as shards_room
from frugalfm.sequences.shards import ShardWriter, open_shards, shard_schema

FAMILIES, MEMBERS = 8, 5


def make_shards(folder, sequences, alphabet="rna"):
    table = pa.table(
        {
            "id": [f"s{i}" for i in range(len(sequences))],
            "sequence": sequences,
            "length": pa.array([len(s) for s in sequences], pa.int32()),
        }
    )
    with open_stage(folder, "shards", {"alphabet": alphabet}, {}) as stage:
        with ShardWriter(stage.work, shard_schema()) as writer:
            for batch in table.to_batches(7):
                writer.write(batch)
        return stage.commit(writer.summary())


@pytest.fixture
def families(tmp_path, monkeypatch):
    """Shards of several parts: members differ in one letter; the last row is a run of A."""
    monkeypatch.setattr(shards_room, "PART_ROWS", 13)
    rng = np.random.default_rng(0)
    sequences = []
    for _ in range(FAMILIES):
        parent = "".join(rng.choice(list("ACGU"), rng.integers(100, 200)))
        for place in range(MEMBERS):
            other = "C" if parent[place] == "A" else "A"
            sequences.append(parent[:place] + other + parent[place + 1 :])
    shuffled = rng.permutation(len(sequences))
    return make_shards(
        tmp_path / "shards", [*(sequences[i] for i in shuffled), "A" * 50]
    ), np.append(shuffled // MEMBERS, FAMILIES)


def read(folder):
    return pa.concat_tables(map(pq.read_table, sorted(folder.glob("part-*.parquet"))))


def same_partition(a, b):
    return len(set(zip(a, b, strict=True))) == len(set(a)) == len(set(b))


def test_families_become_clusters_part_by_part(tmp_path, families, capsys):
    data, truth = families
    out = frugalfm.cluster(data, method="minhash", out=tmp_path / "clusters")
    shards, table = open_shards(data), read(out)
    assert len(shards.parts) > 2
    for part in shards.parts:
        rows = pq.read_table(out / part.path.name)["row"].to_pylist()
        assert rows == list(range(part.first_row, part.first_row + part.rows))
    types = {"row": "int64", "id": "string", "cluster": "int64", "complexity": "float"}
    assert {field.name: str(field.type) for field in table.schema} == types
    assert table["id"].to_pylist() == [f"s{i}" for i in range(len(truth))]
    clusters = table["cluster"].to_numpy()
    assert same_partition(clusters.tolist(), truth.tolist())
    assert clusters[-1] == FAMILIES  # the smallest
    assert table["complexity"][-1].as_py() == 0
    assert min(table["complexity"].to_pylist()[:-1]) > 0.8
    manifest = read_manifest(out, "clusters")
    assert manifest["summary"]["clusters"] == FAMILIES + 1
    assert manifest["summary"]["singletons"] == 1
    assert manifest["summary"]["largest"] == MEMBERS
    assert sorted(manifest["files"]) == [part.path.name for part in shards.parts]
    assert f"in {FAMILIES + 1} clusters" in capsys.readouterr().out


def test_the_same_call_is_skipped_and_another_refused(tmp_path, families, capsys):
    data, _ = families
    out = frugalfm.cluster(data, method="minhash", out=tmp_path / "c")
    capsys.readouterr()
    frugalfm.cluster(data, method="minhash", min_identity=0.7, out=out)
    assert "already clustered" in capsys.readouterr().out
    with pytest.raises(InputError, match="--overwrite"):
        frugalfm.cluster(data, method="minhash", min_identity=0.9, out=out)


def test_the_seed_decides_little_and_repeats_itself(tmp_path, families):
    data, truth = families
    found = [
        read(frugalfm.cluster(data, method="minhash", seed=seed, out=tmp_path / f"c{i}"))
        for i, seed in enumerate([0, 0, 5])
    ]
    assert found[0] == found[1]
    assert same_partition(found[2]["cluster"].to_pylist(), truth.tolist())


def test_a_stricter_identity_makes_more_clusters(tmp_path, families):
    data, truth = families
    out = frugalfm.cluster(data, method="minhash", min_identity=1, out=tmp_path / "c")
    assert len(set(read(out)["cluster"].to_pylist())) == len(truth)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Put a program called mmseqs on the PATH; its body runs for easy-linclust."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def write(body):
        program = folder / "mmseqs"
        program.write_text(f'#!/bin/sh\nif [ "$1" = version ]; then echo 99; exit; fi\n{body}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return write


# Pairs every sequence with the first of the two of its kind, even and odd rows.
PAIR_UP = """
echo "$@" > "$(dirname "$0")/arguments"
cp "$2" "$(dirname "$0")/pool.fasta"
grep '^>' "$2" | tr -d '>' | awk '{ print $1 % 2 "\\t" $1 }' > "$3_cluster.tsv"
"""


def test_mmseqs_is_asked_and_its_table_read(tmp_path, families, fake):
    fake(PAIR_UP)
    data, truth = families
    out = frugalfm.cluster(data, min_identity=0.85, out=tmp_path / "c")
    clusters = read(out)["cluster"].to_pylist()
    assert clusters == [row % 2 for row in range(len(truth))]
    arguments = (tmp_path / "bin/arguments").read_text()
    for words in ("easy-linclust ", "--min-seq-id 0.85 ", "-c 0.8 --cov-mode 1", "--dbtype 2"):
        assert words in arguments
    lines = (tmp_path / "bin/pool.fasta").read_text().splitlines()
    sequences = [s for b in open_shards(data).batches() for s in b.column("sequence").to_pylist()]
    assert lines[1::2] == [sequence.replace("U", "T") for sequence in sequences]
    manifest = read_manifest(out)
    assert manifest["config"]["method"] == manifest["summary"]["method"] == "mmseqs"
    assert manifest["config"]["mmseqs"] == "99"
    assert not any("fasta" in name for name in manifest["files"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo out of memory >&2; exit 3", "status 3.*out of memory"),
        ("exit 0", "status 0.*no message"),
        ('printf "0\\t0\\n" > "$3_cluster.tsv"', "left out 40 of 41.* row 1"),
        (PAIR_UP + 'printf "0\\t3\\n" >> "$3_cluster.tsv"', "twice"),
        (PAIR_UP + 'printf "0\\t999\\n" >> "$3_cluster.tsv"', "not given"),
        ('echo nonsense > "$3_cluster.tsv"', "cannot be read"),
    ],
)
def test_what_goes_wrong_in_mmseqs_is_said(tmp_path, families, fake, body, message):
    fake(body)
    with pytest.raises(FrugalError, match=message):
        frugalfm.cluster(families[0], method="mmseqs", out=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_without_mmseqs_auto_is_minhash(tmp_path, families, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    out = frugalfm.cluster(families[0], out=tmp_path / "c")
    assert read_manifest(out)["summary"]["method"] == "minhash"
    with pytest.raises(InputError, match="install MMseqs2"):
        frugalfm.cluster(families[0], method="mmseqs", out=tmp_path / "d")


@pytest.mark.skipif(shutil.which("mmseqs") is None, reason="needs MMseqs2")
def test_the_real_mmseqs_finds_the_same_families(tmp_path, families):
    out = frugalfm.cluster(families[0], method="mmseqs", out=tmp_path / "c")
    assert same_partition(read(out)["cluster"].to_pylist(), families[1].tolist())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere"),
        (["nowhere", "--min-identity", "0"], "--min-identity must be positive"),
        (["nowhere", "--min-identity", "1.5"], "--min-identity must be at most 1"),
        (["nowhere", "--seed", "-1"], "--seed"),
    ],
)
def test_bad_options_are_one_line_and_status_2(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["cluster", *words, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_protein_pool(tmp_path):
    rng = np.random.default_rng(0)
    parent = "".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 200))
    other = "".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 200))
    child = "".join("S" if rng.random() < 0.2 else letter for letter in parent)
    data = make_shards(tmp_path / "p", [child, other, parent, "UO"], "protein")
    out = frugalfm.cluster(data, method="minhash", out=tmp_path / "c")
    clusters = read(out)["cluster"].to_pylist()
    assert clusters[0] == clusters[2] == 0
    assert sorted(clusters) == [0, 0, 1, 2]
