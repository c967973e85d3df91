"""The verb: a real, very short probe, and what it prints and writes."""

import json

import numpy as np
import pytest

import frugalfm
from frugalfm.artifacts import read_manifest
from frugalfm.cli import main


@pytest.fixture
def pool(tmp_path):
    rng = np.random.default_rng(0)
    lines = []
    for number in range(120):
        lines += [f">s{number}", "".join(rng.choice(list("ACGU"), rng.integers(20, 120)))]
    (tmp_path / "pool.fasta").write_text("\n".join(lines))
    return frugalfm.build(tmp_path / "pool.fasta", alphabet="rna", out=tmp_path / "pool")


def test_a_plan_is_printed_and_written(tmp_path, pool, capsys):
    options = {
        "model": "rna-fm-nano",
        "budget": "20%",
        "steps": 700,
        "subset": 50,
        "batch_tokens": 1000,
        "price_per_hour": 4.0,
        "seconds": 0.1,
        "device": "cpu",
    }
    out = frugalfm.estimate(pool, out=tmp_path / "e", sequences=10_000, **options)
    text = capsys.readouterr().out
    assert "10,000 sequences through rna-fm-nano on cpu" in text
    assert "select 2,000" in text
    assert "GPU" not in text
    stages = json.loads((out / "estimate.json").read_text())["stages"]
    names = [stage["stage"] for stage in stages]
    assert names[3] == "pretrain on the coreset, 700 steps"
    assert names[5] == "or on the full pool, 700 steps"
    for stage in stages:
        assert stage["seconds"] > 0
        assert stage["cost"] == pytest.approx(4 * stage["hours"])
        assert stage["disk"] > 0
    together = stages[4]
    assert together["seconds"] == pytest.approx(sum(stage["seconds"] for stage in stages[1:4]))
    assert 1e8 < together["memory"] < 1e11
    assert read_manifest(out, "estimate")["config"]["budget"] == 2000
    frugalfm.estimate(pool, out=out, sequences=10_000, **options)
    assert "already estimated" in capsys.readouterr().out


def test_without_out_nothing_is_left(tmp_path, pool, capsys):
    before = sorted(tmp_path.iterdir())
    found = frugalfm.estimate(
        pool,
        model="rna-fm-nano",
        layers="all",
        pack=256,
        batch_tokens=512,
        seconds=0.01,
        budget="50%",
    )
    assert found is None
    assert "10 epochs" not in capsys.readouterr().out  # steps are what is said
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "5", "--epochs", "5"], "--steps or --epochs"),
        (["--seconds", "0"], "--seconds must be positive"),
        (["--pack", "99", "--batch-tokens", "50"], "--pack 99"),
        (["--budget", "1"], "too few"),
        (["--budget", "900"], "900"),
        (["--passes", "9"], "--mask-groups 7"),
        (["--model", "esmc-nano"], "protein"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_bad_options_are_one_line_and_status_2(words, message, pool, capsys):
    model = [] if "--model" in words else ["--model", "rna-fm-nano"]
    capsys.readouterr()
    budget = [] if "--budget" in words else ["--budget", "50%"]
    assert main(["estimate", str(pool), *model, *budget, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
