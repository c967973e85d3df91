"""Killed at any step and resumed, tuning ends bit by bit as if it had not been (CPU, fp32)."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from tuning_tasks import make_maps, make_task

from frugalfm.encoders import create_encoder, save_encoder
from frugalfm.tasks import read_task
from frugalfm.tokens.codec import Codec
from frugalfm.training import tuning
from frugalfm.training.tuned import make_tunable
from frugalfm.training.tuning import TuningRecipe, tune
from frugalfm.verbs.tune import tune as tune_verb

METHODS = [
    pytest.param(name, marks=pytest.mark.skipif(
        importlib.util.find_spec(needed) is None, reason="optional"
    ))
    for name, needed in (("full", "torch"), ("lora", "peft"), ("loftq", "bitsandbytes"))
]  # fmt: skip


class Killed(Exception):
    pass


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def compare(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kill_at", [0, 2, 5, 8])
def test_resumed_weights_are_bitwise_the_same(tmp_path, monkeypatch, method, kill_at):
    encoder, words = create_encoder("rna-fm-nano", seed=0)
    encoder.config.hidden_dropout_prob = 0.1  # of the head
    codec = Codec.from_tokenizer(words)
    task = read_task(make_task(tmp_path / "t", sizes=(40, 12, 4), classes=4), "rna")
    recipe = TuningRecipe(
        epochs=3, batch_size=12, learning_rate=2e-3, head_learning_rate=5e-3, warmup_steps=2,
        validate_every=3, save_every=2,
    )  # fmt: skip
    whole = make_tunable(encoder, task, method, recipe)
    expected = tune(whole, task, recipe, codec)

    step = tuning._Run.step

    def fail(self, number, *given):
        if number == kill_at:
            raise Killed
        step(self, number, *given)

    monkeypatch.setattr(tuning._Run, "step", fail)
    cut = make_tunable(encoder, task, method, recipe)
    with pytest.raises(Killed):
        tune(cut, task, recipe, codec, state=tmp_path)
    monkeypatch.undo()
    saved = [path.name for path in tmp_path.glob("state-*")]
    assert saved == [f"state-{kill_at // 2 * 2:09d}"]

    resumed = make_tunable(encoder, task, method, recipe)
    monkeypatch.setattr(tuning, "start_from_probe", lambda *a, **k: pytest.fail("probed again"))
    found = tune(resumed, task, recipe, codec, state=tmp_path)
    compare(weights(whole), weights(resumed))
    assert found.start["setting"] == expected.start["setting"]
    for name in ("history", "best", "best_step", "steps", "stopped", "since_reached", "reached"):
        assert getattr(found, name) == getattr(expected, name), name


def test_maps_resume_too(tmp_path, monkeypatch):
    encoder, words = create_encoder("rna-fm-nano", seed=0)
    task = read_task(make_maps(tmp_path / "t", "distance"), "rna", kind="distance")
    recipe = TuningRecipe(epochs=2, learning_rate=2e-3, save_every=1)
    codec = Codec.from_tokenizer(words)
    whole = make_tunable(encoder, task, "full", recipe)
    tune(whole, task, recipe, codec)
    validate = tuning._Run.validate

    def fail(self, epoch):
        if self.tuned.steps == 4:
            raise Killed
        return validate(self, epoch)

    monkeypatch.setattr(tuning._Run, "validate", fail)
    with pytest.raises(Killed):
        tune(make_tunable(encoder, task, "full", recipe), task, recipe, codec, state=tmp_path)
    monkeypatch.undo()
    resumed = make_tunable(encoder, task, "full", recipe)
    tune(resumed, task, recipe, codec, state=tmp_path)
    compare(weights(whole), weights(resumed))


def test_a_killed_process_resumes_to_the_same_model(tmp_path):
    """The verb itself, killed by SIGKILL at whatever step it happens to be."""
    save_encoder(*create_encoder("rna-fm-nano", seed=0), tmp_path / "model")
    task = make_task(tmp_path / "t", sizes=(160, 16, 16))
    options = {"method": "full", "epochs": 8, "learning_rate": 1e-3, "save_every": 2}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    script = "import torch; torch.set_num_threads(1); from frugalfm.cli import main; main()"
    command = [sys.executable, "-c", script, "tune", str(tmp_path / "model"), "--task", str(task)]
    with subprocess.Popen([*command, *words, "--out", str(tmp_path / "killed")]) as process:
        deadline = time.monotonic() + 120
        while not list((tmp_path / ".killed.partial/.scratch").glob("state-*[1-9]*")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "killed").exists()
    for name in ("killed", "whole"):
        tune_verb(tmp_path / "model", task=task, out=tmp_path / name, **options)
    killed, whole = (load_file(tmp_path / n / "model.safetensors") for n in ("killed", "whole"))
    compare(killed, whole)
    for name in ("log.jsonl", "predictions.parquet"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    summaries = [
        json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("killed", "whole")
    ]
    assert summaries[0]["test"] == summaries[1]["test"]
    assert not (tmp_path / "killed" / ".scratch").exists()
