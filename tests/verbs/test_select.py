"""The verb: folders in, a coreset out, bad folders refused."""

import json
from pathlib import Path

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

SIZE = 500
BUDGET = 60


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Shards of several parts and row groups, with a column of the user's."""
    monkeypatch.setattr(shards_room, "PART_ROWS", 120)
    monkeypatch.setattr(shards_room, "GROUP_ROWS", 50)
    rng = np.random.default_rng(1)
    lengths = rng.integers(5, 90, SIZE)
    table = pa.table(
        {
            "id": [f"s{i}" for i in range(SIZE)],
            "sequence": ["".join(rng.choice(list("ACGU"), length)) for length in lengths],
            "length": pa.array(lengths, pa.int32()),
            "family": [f"f{i % 7}" for i in range(SIZE)],
        }
    )
    stage = open_stage(tmp_path / "shards", "shards", {"alphabet": "rna"}, {})
    with ShardWriter(stage.work, shard_schema([pa.field("family", pa.string())])) as writer:
        for batch in table.to_batches(40):
            writer.write(batch)
    stage.commit(writer.summary())
    return tmp_path / "shards"


@pytest.fixture
def scores(tmp_path, data):
    return make_scores(tmp_path / "scores", data, np.random.default_rng(2).lognormal(0, 1, SIZE))


def make_scores(folder: Path, data: Path, influence, ids=None) -> Path:
    stage = open_stage(folder, "scores", {}, {"shards": data})
    size = len(influence)
    shards = pa.Table.from_batches(open_shards(data).batches()).combine_chunks()
    lengths = shards["length"].chunk(0)
    ids = ids or shards["id"].to_pylist()
    for number, rows in enumerate(np.array_split(np.arange(size), 3)):
        part = {
            "id": [ids[row] for row in rows],
            "row": pa.array(rows, pa.int64()),
            "influence": pa.array(np.asarray(influence, np.float32)[rows]),
            "loss": pa.array(np.ones(len(rows), np.float32)),
            "n_tokens": lengths.take(pa.array(rows)),
            "length": lengths.take(pa.array(rows)),
        }
        pq.write_table(pa.table(part), stage.work / f"part-{number:05d}.parquet")
    return stage.commit({"n_sequences": size})


def content(folder: Path) -> dict[str, dict]:
    rows = pa.Table.from_batches(open_shards(folder).batches()).to_pylist()
    return {row["id"]: row for row in rows}


def make_clusters(folder: Path, data: Path, cluster, complexity=None) -> Path:
    stage = open_stage(folder, "clusters", {}, {"shards": data})
    for number, rows in enumerate(np.array_split(np.arange(len(cluster)), 2)):
        complexities = np.ones(len(cluster)) if complexity is None else complexity
        part = {
            "row": pa.array(rows, pa.int64()),
            "cluster": pa.array(np.asarray(cluster)[rows], pa.int64()),
            "complexity": pa.array(complexities[rows], pa.float32()),
        }
        pq.write_table(pa.table(part), stage.work / f"part-{number:05d}.parquet")
    return stage.commit({})


STRATEGIES = (
    "random",
    "top-influence",
    "top-influence-by-length",
    "coverage",
    "coverage-log",
    "top-loss",
    "middle-loss",
    "bottom-loss",
)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_coreset_is_shards_again(tmp_path, data, scores, strategy, capsys):
    out = frugalfm.select(scores, budget="12%", strategy=strategy, out=tmp_path / "coreset")
    coreset, pool = content(out), content(data)
    assert len(coreset) == BUDGET
    assert all(pool[name] == row for name, row in coreset.items())
    opened = open_shards(out)
    assert opened.alphabet == "rna"
    assert opened.n_sequences == BUDGET
    assert opened.n_residues == sum(row["length"] for row in coreset.values())
    selection = pq.read_table(out / "selection.parquet")
    assert selection.column_names == ["id", "row", "influence", "stratum"]
    assert selection["id"].to_pylist() == list(coreset)
    report = json.loads((out / "occupancy.json").read_text())
    assert report["strategy"] == strategy
    assert sum(stratum["chosen"] for stratum in report["strata"]) == BUDGET
    manifest = read_manifest(out, "coreset")
    assert set(manifest["inputs"]) == {"scores", "shards"}
    assert manifest["summary"]["composition"]["chosen"]["sequences"] == BUDGET
    assert (out / "selection.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out.splitlines()
    assert printed == manifest["summary"]["report"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["manifest.json", "occupancy.json", "selection.parquet", "selection.png"]
        + [part["file"] for part in manifest["summary"]["parts"]]
    )


def test_the_command_line(tmp_path, scores, capsys):
    words = ["select", str(scores), "--budget", "60", "--strategy", "coverage"]
    words += ["--seed", "3", "--out", str(tmp_path / "coreset")]
    assert main(words) == 0
    assert "coverage: 60 of 500 sequences; the hardest 50 were set aside" in capsys.readouterr().out
    assert main(words) == 0
    assert "already there" in capsys.readouterr().out
    assert main([*words, "--strata", "10"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--strata", "10", "--overwrite"]) == 0
    assert main([*words[:2], "--budget", "600", *words[4:]]) == 2
    assert "choose at most 500" in capsys.readouterr().err


def test_top_influence_of_the_pool(tmp_path, data):
    scores = make_scores(tmp_path / "scores", data, np.arange(SIZE))
    out = frugalfm.select(scores, budget="20", strategy="top-influence", out=tmp_path / "coreset")
    assert list(content(out)) == [f"s{i}" for i in range(480, 500)]
    # A coreset can be scored and selected from, as any shards.
    again = make_scores(tmp_path / "again", out, np.arange(20))
    out = frugalfm.select(again, budget="5", strategy="top-influence", out=tmp_path / "smaller")
    assert list(content(out)) == [f"s{i}" for i in range(495, 500)]


def test_clusters_complexity_and_sources(tmp_path, data, scores, capsys):
    cluster = np.arange(SIZE) // 5
    complexity = np.random.default_rng(0).random(SIZE)
    clusters = make_clusters(tmp_path / "clusters", data, cluster, complexity)
    words = ["select", str(scores), "--budget", "20", "--strategy", "top-influence"]
    words += ["--clusters", str(clusters), "--max-per-cluster", "1", "--min-complexity", "0.5"]
    words += ["--source", "family", "--mixture", "f0=3,f1=1", "--out", str(tmp_path / "coreset")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "beyond 1 of a cluster" in printed
    assert "f0" in printed
    rows = pq.read_table(tmp_path / "coreset/selection.parquet")["row"].to_numpy()
    assert len(set(cluster[rows])) == len(rows) == 20
    assert complexity[rows].min() >= 0.5
    assert np.bincount(rows % 7).tolist() == [15, 5]
    manifest = read_manifest(tmp_path / "coreset")
    assert set(manifest["inputs"]) == {"scores", "shards", "clusters"}
    assert manifest["summary"]["composition"]["sources"]["f0"]["chosen"] == 15
    words[words.index("20")] = "400"
    assert main([*words[:-1], str(tmp_path / "more")]) == 2
    assert "choose at most" in capsys.readouterr().err


def test_sources_from_a_table(tmp_path, data, scores):
    table = tmp_path / "groups.tsv"
    table.write_text("id\tkind\n" + "".join(f"s{i}\t{'ab'[i % 2]}\n" for i in range(SIZE)))
    options = {"budget": "30", "strategy": "random", "out": tmp_path / "coreset"}
    with pytest.raises(InputError, match="--groups needs --source"):
        frugalfm.select(scores, **options, groups=table)
    with pytest.raises(InputError, match="no column 'kind'; there are: id, sequence, length"):
        frugalfm.select(scores, **options, source="kind")
    with pytest.raises(InputError, match="no such file"):
        frugalfm.select(scores, **options, source="kind", groups=tmp_path / "no.tsv")
    out = frugalfm.select(scores, **options, source="kind", groups=table, mixture="equal")
    rows = pq.read_table(out / "selection.parquet")["row"].to_numpy()
    assert (rows % 2).sum() == 15


def test_clusters_of_other_shards_are_refused(tmp_path, data, scores):
    other = frugalfm.select(scores, budget="9", strategy="random", out=tmp_path / "other")
    options = {"budget": "5", "strategy": "random", "out": tmp_path / "coreset"}
    clusters = make_clusters(tmp_path / "clusters", other, np.zeros(9))
    with pytest.raises(InputError, match="not made from the shards that were scored"):
        frugalfm.select(scores, **options, clusters=clusters, max_per_cluster=1)
    with pytest.raises(InputError, match="not \\(clusters\\)"):
        frugalfm.select(scores, **options, clusters=scores)
    assert not (tmp_path / "coreset").exists()


def test_shards_that_have_moved(tmp_path, data, scores):
    moved = data.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="--data"):
        frugalfm.select(scores, budget="9", strategy="random", out=tmp_path / "coreset")
    out = frugalfm.select(
        scores, budget="9", strategy="random", out=tmp_path / "coreset", data=moved
    )
    assert open_shards(out).n_sequences == 9


def test_other_shards_are_refused(tmp_path, data, scores):
    other = frugalfm.select(scores, budget="9", strategy="random", out=tmp_path / "coreset")
    with pytest.raises(InputError, match="not the shards that"):
        frugalfm.select(scores, budget="3", strategy="random", out=tmp_path / "c", data=other)
    assert not (tmp_path / "c").exists()


def test_scores_of_other_sequences_are_refused(tmp_path, data):
    ids = [f"x{i}" for i in range(SIZE)]
    for influence, ids_of, words in (
        (np.ones(SIZE), ids, "other ids"),
        (np.ones(SIZE - 1), None, "holds 499 scores for the 500 sequences"),
    ):
        scores = make_scores(tmp_path / f"scores{len(influence)}", data, influence, ids_of)
        with pytest.raises(InputError, match=words):
            frugalfm.select(scores, budget="9", strategy="random", out=tmp_path / "coreset")
    assert not (tmp_path / "coreset").exists()


def test_not_finite_scores_are_refused(tmp_path, data):
    scores = make_scores(tmp_path / "scores", data, [np.nan] + [1.0] * (SIZE - 1))
    with pytest.raises(InputError, match=r"part-00000\.parquet: row 0 \(id s0\)"):
        frugalfm.select(scores, budget="9", strategy="random", out=tmp_path / "coreset")


def test_a_changed_bit_in_the_scores_is_found(tmp_path, scores):
    part = scores / "part-00001.parquet"
    damaged = bytearray(part.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    part.write_bytes(damaged)
    with pytest.raises(InputError, match=r"part-00001\.parquet: changed"):
        frugalfm.select(scores, budget="9", strategy="random", out=tmp_path / "coreset")
    part.write_bytes(damaged[:-9])
    with pytest.raises(InputError, match=r"part-00001\.parquet: has \d+ bytes"):
        frugalfm.select(scores, budget="9", strategy="random", out=tmp_path / "coreset")


@pytest.mark.parametrize(
    "moment", ["frugalfm.coreset.copy_rows", "frugalfm.verbs.select.write_json"]
)
def test_an_interrupted_run_is_taken_up(tmp_path, scores, monkeypatch, moment):
    """Before any part is written, and when all are."""

    def fail(*_):
        raise FrugalError("the disk is full")

    options = {"budget": "60", "strategy": "coverage"}
    whole = frugalfm.select(scores, **options, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(moment, fail)
        with pytest.raises(FrugalError, match="disk"):
            frugalfm.select(scores, **options, out=tmp_path / "coreset")
    partial = tmp_path / ".coreset.partial"
    if moment.endswith("write_json"):
        part = next(partial.glob("part-*.parquet"))
        part.write_bytes(part.read_bytes()[:10])
    (partial / ".scratch" / "spilled").write_text("x")
    out = frugalfm.select(scores, **options, out=tmp_path / "coreset")
    assert read_manifest(out)["files"] == read_manifest(whole)["files"]
