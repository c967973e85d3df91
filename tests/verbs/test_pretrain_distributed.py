"""Pretraining and converting by several processes: one run's losses and weights."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from frugalfm.verbs.build import build
from frugalfm.verbs.convert import convert
from frugalfm.verbs.pretrain import pretrain

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TRAINING = {"steps": 12, "batch_tokens": 400, "learning_rate": 2e-3, "save_every": 4}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("team")
    random = np.random.default_rng(0)
    with (folder / "x.fasta").open("w") as handle:
        for i in range(80):
            letters = "".join(random.choice(list("ACGU"), random.integers(20, 60)))
            handle.write(f">s{i}\n{letters}\n")
    build(folder / "x.fasta", alphabet="rna", out=folder / "pool")
    return folder


def start(*words, **options):
    named = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "frugalfm", *map(str, words), *named, "--device=cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )


def finish(process):
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out


def assert_same(found, expected):
    """Losses step by step and weights, to rounding; one process is the oracle."""
    logs = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (found, expected)
    ]
    assert len(logs[0]) == len(logs[1]) > 2
    for mine, theirs in zip(*logs, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=2e-6)
    weights = [load_file(folder / "model.safetensors") for folder in (found, expected)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        # AdamW makes whole steps of gradients that are nothing but rounding.
        assert (tensor - weights[1][name]).norm() <= 1e-2 * weights[1][name].norm() + 1e-3


def test_two_processes_pretrain_as_one(setting):
    options = TRAINING | {"model": "rna-fm-nano", "attention": "softmax1", "optimizer": "muon"}
    told = finish(start("pretrain", setting / "pool", out=setting / "two", **options))
    assert told.count("pretrained") == 1
    pretrain(setting / "pool", out=setting / "one", device="cpu", **options)
    assert_same(setting / "two", setting / "one")
    again = finish(start("pretrain", setting / "pool", out=setting / "two", **options))
    assert again.count("already pretrained") == 1


def test_two_processes_convert_as_one(setting):
    pretrain(setting / "pool", out=setting / "start", model="rna-fm-nano", steps=4, device="cpu")
    options = TRAINING | {"attention": "softmax1", "data": setting / "pool", "limit": 8}
    options["validation_fraction"] = 0.1
    told = finish(start("convert", setting / "start", out=setting / "c2", **options))
    assert told.count("masked loss") == 1
    convert(setting / "start", out=setting / "c1", device="cpu", **options)
    assert_same(setting / "c2", setting / "c1")


def test_killed_team_is_continued_by_one_process(setting):
    options = TRAINING | {"model": "rna-fm-nano", "steps": 60}
    team = start("pretrain", setting / "pool", out=setting / "killed", **options)
    deadline = time.monotonic() + 200
    while not any((setting / ".killed.partial").rglob("state-*")):
        assert team.poll() is None, team.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(team.pid, signal.SIGKILL)
    # torchrun puts its processes into sessions of their own.
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(setting / "killed").encode() in command.read_bytes():
                os.kill(int(command.parent.name), signal.SIGKILL)
    team.communicate()
    pretrain(setting / "pool", out=setting / "killed", device="cpu", **options)
    pretrain(setting / "pool", out=setting / "whole", device="cpu", **options)
    assert_same(setting / "killed", setting / "whole")


def test_bad_input_is_said_and_nobody_waits(setting):
    (setting / "taken").mkdir()
    (setting / "taken" / "mine.txt").write_text("mine")
    options = TRAINING | {"model": "rna-fm-nano"}
    process = start("pretrain", setting / "pool", out=setting / "taken", **options)
    _, error = process.communicate(timeout=200)
    assert process.returncode
    assert error.count("already exists and is no artifact") == 1
