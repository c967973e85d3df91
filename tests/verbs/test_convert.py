"""Conversion from checkpoint to checkpoint: measured, resumable, and what it says it is."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import frugalfm
from frugalfm.artifacts import read_manifest
from frugalfm.attention.binding import require_attention
from frugalfm.encoders import create_encoder, load_encoder, save_encoder
from frugalfm.errors import InputError
from frugalfm.training import loop
from frugalfm.verbs.build import build
from frugalfm.verbs.convert import convert

MOMENTS = ["before", "swapped", "start", "middle", "after"]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("convert")
    random = np.random.default_rng(0)
    texts = ("".join(random.choice(list("ACGU"), random.integers(10, 40))) for _ in range(80))
    (folder / "pool.fasta").write_text("".join(f">s{i}\n{t}\n" for i, t in enumerate(texts)))
    build(folder / "pool.fasta", alphabet="rna", out=folder / "shards")
    model, words = create_encoder("rna-fm-nano", seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    save_encoder(model, words, folder / "model")
    return folder


def options(setting, **more):
    return {
        "data": setting / "shards",
        "steps": 6,
        "batch_tokens": 300,
        "validation_fraction": 0.3,
        "device": "cpu",
    } | more


def test_annealed_conversion(setting, tmp_path, capsys):
    out = frugalfm.convert(
        setting / "model", attention="softmax1", out=tmp_path / "out", **options(setting)
    )
    printed = capsys.readouterr().out
    assert "softmax to softmax1, 6 steps" in printed
    assert "attention to the null" in printed
    summary = read_manifest(out, "checkpoint")["summary"]
    measures = summary["measures"]
    assert list(measures) == MOMENTS
    assert measures == json.loads((out / "conversion.json").read_text())
    assert measures["start"]["loss"] == pytest.approx(measures["before"]["loss"], abs=1e-5)
    assert measures["start"]["null"] == 0.0
    assert measures["after"]["null"] > 0
    assert measures["swapped"]["loss"] != pytest.approx(measures["before"]["loss"], abs=1e-5)
    for moment in ("before", "middle", "after"):
        assert set(measures[moment]["increase"]) == {
            f"W{bits}A{bits} {grid}" for bits in (8, 4) for grid in ("coarse", "fine")
        }
        assert measures[moment]["max_inf_norm"] > 0
    assert measures["after"]["loss"] == pytest.approx(summary["validation_loss"], abs=1e-6)
    model, _ = load_encoder(out)
    require_attention(model, "softmax1")
    assert "softmax1" in (out / "README.md").read_text()

    frugalfm.convert(
        setting / "model", attention="softmax1", out=tmp_path / "out", **options(setting)
    )
    assert "already converted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("attention", "start"),
    [("softmax", None), ("softmax1", "rescale"), ("sink", "shift"), ("gated", None)],
)
def test_other_attentions_and_starts(setting, tmp_path, attention, start):
    more = options(setting, steps=2, optimizer="muon", limit=8)
    out = convert(setting / "model", attention=attention, start=start, out=tmp_path / "o", **more)
    manifest = read_manifest(out, "checkpoint")
    assert "anneal" not in manifest["config"]
    measures = manifest["summary"]["measures"]
    assert list(measures) == [moment for moment in MOMENTS if moment != "swapped"]
    if attention in {"softmax", "gated"}:
        assert measures["start"]["loss"] == pytest.approx(measures["before"]["loss"], abs=1e-5)
    require_attention(load_encoder(out)[0], attention)


class Killed(Exception):
    pass


@pytest.mark.parametrize("kill_at", [1, 5])
def test_killed_conversion_ends_with_the_same_weights(setting, tmp_path, monkeypatch, kill_at):
    """At step 5 the saved state is later than the measures of the start and of half way."""
    more = options(setting, save_every=2, attention="softmax1", anneal=0.8)
    whole = convert(setting / "model", out=tmp_path / "whole", **more)
    scale = loop.scale_learning_rate

    def fail(step, *others):
        if step == kill_at:
            raise Killed
        return scale(step, *others)

    monkeypatch.setattr(loop, "scale_learning_rate", fail)
    with pytest.raises(Killed):
        convert(setting / "model", out=tmp_path / "cut", **more)
    monkeypatch.undo()
    cut = convert(setting / "model", out=tmp_path / "cut", **more)
    expected, found = (load_file(out / "model.safetensors") for out in (whole, cut))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for name in ("log.jsonl", "conversion.json"):
        assert (cut / name).read_text() == (whole / name).read_text()


def test_flattening_is_part_of_the_settings(setting, tmp_path):
    more = options(setting, steps=2, attention="softmax", learning_rate=1e-2)
    plain, flat = (
        convert(setting / "model", out=tmp_path / f"o{weight}", flatten=weight, **more)
        for weight in (0.0, 5.0)
    )
    assert "flatten" not in read_manifest(plain)["config"]
    assert read_manifest(flat)["config"]["flatten"] == 5.0
    first, second = (load_file(out / "model.safetensors") for out in (plain, flat))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(InputError, match="--flatten"):
        frugalfm.pretrain(
            setting / "shards", model="rna-fm-nano", steps=1, out=tmp_path / "p", flatten=-1.0
        )


def test_control_is_plain_continued_pretraining(setting, tmp_path):
    """The same steps on the same batches, so that a comparison is at equal compute."""
    more = options(setting, learning_rate=1e-3)
    control = convert(setting / "model", attention="softmax", out=tmp_path / "control", **more)
    same = frugalfm.pretrain(
        setting / "shards", model=str(setting / "model"), out=tmp_path / "same",
        **{k: v for k, v in more.items() if k != "data"},
    )  # fmt: skip
    expected, found = (load_file(out / "model.safetensors") for out in (same, control))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_bad_options_are_refused(setting, tmp_path):
    for changes, words in (
        ({"steps": 0}, "--steps"),
        ({"anneal": 1.5}, "--anneal"),
        ({"flatten": -1.0}, "--flatten"),
        ({"start": "anneal", "attention": "gated"}, "gated starts from rescale"),
        ({"data": tmp_path / "none"}, "none"),
        ({"validation_fraction": 0.01}, "held-out sequences are too few"),
    ):
        more = {"attention": "softmax1", **options(setting), **changes}
        with pytest.raises(InputError, match=words):
            convert(setting / "model", out=tmp_path / "out", **more)
    save_encoder(*create_encoder("rna-fm-nano", attention="sink"), tmp_path / "sink")
    more = options(setting, attention="softmax1")
    with pytest.raises(InputError, match="only softmax"):
        convert(tmp_path / "sink", out=tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()
