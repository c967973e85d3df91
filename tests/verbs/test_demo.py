"""The whole chain on a small stand-in for the bundled data: runs, resumes, and is then done."""

import csv
import json

import dnaio
import numpy as np
import pytest

from frugalfm.artifacts import read_manifest
from frugalfm.verbs import demo as module
from frugalfm.verbs.demo import STRATEGIES, demo, find_data


@pytest.fixture
def small_data(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    folder = tmp_path / "data"
    (folder / "families").mkdir(parents=True)
    bases = {"hairpin": "GGGCAUC", "CDS": "AUGGCUUAA", "rRNA": "CCGAUACG"}

    def make(name):
        return "".join(random.choice(list(bases[name] + "ACGU"), random.integers(30, 90)))

    for file, count in (("pool", 90), ("validation", 80)):
        with dnaio.open(folder / f"{file}.fasta.gz", mode="w") as writer:
            for i in range(count):
                name = list(bases)[i % 3]
                writer.write(dnaio.SequenceRecord(f"{name}|{file}{i}", make(name)))
    for split in ("train", "dev", "test"):
        with (folder / f"families/{split}.csv").open("w", newline="") as handle:
            rows = [(make(name), name) for name in list(bases) * 12]
            csv.writer(handle).writerows([("sequence", "label"), *rows])
    monkeypatch.setattr(module, "find_data", lambda: folder)
    monkeypatch.chdir(tmp_path)


def stamps(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("manifest.json")}


def test_runs_resumes_and_is_done(small_data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    options = {"out": out, "steps": 3, "budget": "20%"}

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module._Chain, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            demo(**options)
    before = stamps(out)
    assert out / "models/coverage/manifest.json" in before
    assert not (out / "report.html").exists()

    assert demo(**options) == out
    printed = capsys.readouterr().out
    after = stamps(out)
    assert {path: after[path] for path in before} == before  # nothing was made twice
    for name in (*STRATEGIES, "full-softmax", "full-softmax1", "untrained"):
        assert read_manifest(out / "models" / name, "checkpoint")
        assert read_manifest(out / "evaluations" / name, "evaluation")
    for name in STRATEGIES:
        assert read_manifest(out / "coresets" / name, "coreset")["summary"]["n_sequences"] == 18
    assert (out / "report.html").read_text().startswith("<!DOCTYPE html>")
    numbers = json.loads((out / "results.json").read_text())
    assert numbers
    for word in ("random", "Top I", "Top I by length", "CCI", "untrained", "softmax1", "W4A4"):
        assert word in printed

    table = printed[printed.index("\n\n") :]
    demo(**options)
    again = capsys.readouterr().out
    assert stamps(out) == after
    assert again[again.index("\n\n") :].splitlines()[:-2] == table.splitlines()[:-2]


def test_bundled_data_are_as_described():
    """Names carry the family; how many fragments also occur in the pool is stated."""
    folder = find_data()
    with dnaio.open(folder / "pool.fasta.gz") as reader:
        pool = [(record.name, record.sequence) for record in reader]
    with dnaio.open(folder / "validation.fasta.gz") as reader:
        held_out = [(record.name, record.sequence) for record in reader]
    assert len(pool) == 3310
    assert len(held_out) == 299
    assert not {s for _, s in pool} & {s for _, s in held_out}
    families = {name.split("|")[0].replace("_", " ") for name, _ in pool}
    text = "\n".join(sequence for _, sequence in pool)
    for split, count in (("train", 1200), ("dev", 420), ("test", 900)):
        rows = list(csv.DictReader((folder / f"families/{split}.csv").open()))
        assert len(rows) == count
        assert {row["label"] for row in rows} == families
        shared = sum(row["sequence"] in text for row in rows)
        if split == "test":
            assert f"{shared} of the {count} test fragments" in (folder / "README.md").read_text()
    assert sum(f.stat().st_size for f in folder.rglob("*")) < 3_000_000
