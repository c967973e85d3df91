"""Scoring by several processes: the same scores, whoever joins, dies or comes late."""

import os
import re
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frugalfm.artifacts import read_manifest
from frugalfm.cli import _make_app
from frugalfm.encoders import create_encoder, save_encoder
from frugalfm.influence import pool as pool_module
from frugalfm.sequences import shards as shards_module
from frugalfm.sequences.shards import open_shards
from frugalfm.verbs.build import build
from frugalfm.verbs.score import score

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

# A process that stands still at a chosen call, until it is killed.
STOPPING = """
import sys, time
from frugalfm.influence import pool
name, calls, data, model, out = sys.argv[1:]
original, left = getattr(pool, name), int(calls)

def stop(*args):
    global left
    left -= 1
    if left < 0:
        print("stopped", flush=True)
        time.sleep(600)
    return original(*args)

setattr(pool, name, stop)
import frugalfm
frugalfm.score(data, model=model, out=out, subset=20)
"""


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A pool of 60 sequences in six parts, a checkpoint, and the scores of one process."""
    folder = tmp_path_factory.mktemp("distributed")
    random = np.random.default_rng(0)
    with (folder / "x.fasta").open("w") as handle:
        for i in range(60):
            letters = "".join(random.choice(list("ACGU"), random.integers(5, 90)))
            handle.write(f">s{i}\n{letters}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards_module, "GROUP_RESIDUES", 200)
        patch.setattr(shards_module, "PART_RESIDUES", 500)
        build(folder / "x.fasta", alphabet="rna", out=folder / "pool")
    model, tokenizer = create_encoder("rna-fm-nano", seed=1)
    save_encoder(model, tokenizer, folder / "model")
    run(folder, folder / "alone")
    return folder


def run(setting, out):
    return score(setting / "pool", model=setting / "model", out=out, subset=20, device="cpu")


def start(setting, out, name, calls):
    words = [name, str(calls), setting / "pool", setting / "model", out]
    return subprocess.Popen(
        [sys.executable, "-c", STOPPING, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def assert_same(setting, out, workers):
    """The very same, as all processes have one thread; and nothing is left lying about."""
    ours, alone = (
        pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))
        for folder in (out, setting / "alone")
    )
    assert ours.equals(alone)
    manifest = read_manifest(out, "scores")
    assert manifest["summary"]["workers"] in workers
    assert manifest["files"] == read_manifest(setting / "alone")["files"]
    assert {path.name for path in out.iterdir()} == {*manifest["files"], "manifest.json"}
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_the_pool_is_as_meant(setting):
    shards = open_shards(setting / "pool")
    assert len(shards.parts) > 3
    assert sum(map(shards.count_groups, shards.parts)) > len(shards.parts)
    assert read_manifest(setting / "alone")["summary"]["workers"] == 1


def test_torchrun_gives_the_scores_of_one_process(setting, tmp_path):
    words = ["--nproc-per-node", "2", "-m", "frugalfm", "score", setting / "pool"]
    words += ["--model", setting / "model", "--subset", "20", "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *map(str, words)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert_same(setting, tmp_path / "out", workers={1, 2})
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stdout
    # One commits; the other was there while it did, or came when all was done.
    assert sum(": scored, 60 sequences, influence" in line for line in lines) == 1
    assert "seq/s" not in done.stderr


def test_the_dead_are_replaced(setting, tmp_path):
    """One dies while it prepares, the next one at a piece; the third one ends it all."""
    out = tmp_path / "out"
    with start(setting, out, "estimate_fisher", 0) as first:
        assert first.stdout.readline() == "stopped\n", first.stderr.read()
        with start(setting, out, "score_sequences", 2) as second:
            try:
                # It waits, because the first is alive.
                line = next(line for line in second.stderr if line.startswith("waiting"))
                assert line == (
                    "waiting for other processes to prepare (adaptation and Fisher matrix)\n"
                )
                first.kill()
                first.wait()  # Until then it is not gone from the list of processes.
                assert second.stdout.readline() == "stopped\n", second.stderr.read()
                third = threading.Thread(target=run, args=(setting, out), daemon=True)
                third.start()
                # It does all but the piece that the second has, and what depends on it.
                parts = len(open_shards(setting / "pool").parts)
                deadline = time.monotonic() + 60
                while len(list(tmp_path.glob(".out.partial/part-*"))) < parts - 1:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                assert third.is_alive()
                assert not out.exists()
            finally:
                first.kill()
                second.kill()
        third.join(60)
    assert_same(setting, out, workers={2})


def test_what_was_done_is_not_done_again(setting, tmp_path, monkeypatch):
    """Killed at a piece, the next one redoes just that one."""
    out, sizes = tmp_path / "out", []
    pieces = sum(
        map(open_shards(setting / "pool").count_groups, open_shards(setting / "pool").parts)
    )
    original = pool_module.score_sequences

    def fail_at_fifth(*args):
        if len(sizes) == 4:
            raise KeyboardInterrupt
        sizes.append(len(args[2]))
        return original(*args)

    monkeypatch.setattr(pool_module, "score_sequences", fail_at_fifth)
    with pytest.raises(KeyboardInterrupt):
        run(setting, out)
    monkeypatch.setattr(
        pool_module, "score_sequences", lambda *args: sizes.append(len(args[2])) or original(*args)
    )
    run(setting, out)
    assert len(sizes) == pieces
    assert sum(sizes) == 60
    assert_same(setting, out, workers={2})


def test_pieces_may_be_any(setting, tmp_path, monkeypatch):
    """Rows of a group are cut by residues, and put together in their order."""
    monkeypatch.setattr(pool_module, "_PIECE", 90)
    run(setting, tmp_path / "out")
    ours, alone = (
        pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))
        for folder in (tmp_path / "out", setting / "alone")
    )
    for name in ("id", "row", "n_tokens", "length"):
        assert ours[name] == alone[name]
    for name in ("influence", "loss"):
        np.testing.assert_allclose(ours[name].to_numpy(), alone[name].to_numpy(), rtol=1e-5)


def test_too_many_processes_are_told(setting, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "500")
    monkeypatch.setenv("RANK", "0")
    run(setting, tmp_path / "out")
    assert "500 processes share" in capsys.readouterr().err


@pytest.mark.gpu
def test_processes_spread_over_gpus(setting, tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count() - 1))
    out = score(setting / "pool", model=setting / "model", out=tmp_path / "out", subset=20)
    device = read_manifest(out)["summary"]["device"]
    assert device == f"cuda:{torch.cuda.device_count() - 1}"


def test_the_commands_in_the_docs_are_right():
    text = (Path(__file__).parents[2] / "docs/scaling.md").read_text()
    commands = re.findall(r"^(?:torchrun .* -m )?(frugalfm .*)$", text, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        _, bound, _ = _make_app().parse_args(shlex.split(command)[1:])
        assert "out" in bound.arguments
