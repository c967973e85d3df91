"""Invariant 6: killed at any step and resumed, the run ends bit by bit as if it had not been."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from frugalfm.encoders import create_encoder
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.store import TokenList
from frugalfm.training import Recipe, TrainingData, train
from frugalfm.training.optimizers import make_optimizers
from frugalfm.training.resume import load_state, save_state
from frugalfm.verbs.build import build
from frugalfm.verbs.pretrain import pretrain

CPU = torch.device("cpu")


def make_data(codec, count=40):
    random = np.random.default_rng(0)
    rows = [random.integers(4, 8, random.integers(5, 40)).astype(np.uint8) for _ in range(count)]
    return TrainingData.split(TokenList(rows), codec, 0.1)


class Killed(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kill_at", [1, 3, 4, 9])
def test_resumed_weights_are_bitwise_the_same(tmp_path, monkeypatch, optimizer, kill_at):
    recipe = Recipe(
        steps=10, batch_tokens=200, optimizer=optimizer, learning_rate=1e-3, seed=4,
        save_every=3, validate_every=5, log_every=2,
    )  # fmt: skip
    whole, _ = create_encoder("rna-fm-nano", attention="softmax1", seed=1)
    whole.config.hidden_dropout_prob = 0.1
    data = make_data(Codec.from_tokenizer(_))
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    with_dropout(whole)
    expected = train(whole, data, recipe, tmp_path / "whole", state=tmp_path / "whole", device=CPU)

    cut, _ = create_encoder("rna-fm-nano", attention="softmax1", seed=1)
    with_dropout(cut)

    def fail(step):
        if step == kill_at:
            raise Killed

    place = tmp_path / "cut"
    with pytest.raises(Killed):
        train(cut, data, recipe, place, state=place, device=CPU, before_step=fail)

    resumed, _ = create_encoder("rna-fm-nano", attention="softmax1", seed=99)  # other weights
    if kill_at < 3:  # nothing saved yet: begins anew, from the same initial weights
        resumed, _ = create_encoder("rna-fm-nano", attention="softmax1", seed=1)
    with_dropout(resumed)
    found = train(resumed, data, recipe, tmp_path / "cut", state=tmp_path / "cut", device=CPU)
    for (name, a), (_, b) in zip(
        whole.state_dict().items(), resumed.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    for key in ("loss", "validation_loss", "steps", "epochs"):
        assert found[key] == expected[key]
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def with_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1


def test_a_state_cut_while_being_written_is_ignored(tmp_path):
    model, _ = create_encoder("rna-fm-nano", seed=1)
    optimizers = make_optimizers(model, "adamw", learning_rate=1e-3, weight_decay=0.0)
    save_state(tmp_path, 5, model, optimizers)
    (tmp_path / ".state-000000010").mkdir()  # killed before its rename
    (tmp_path / ".state-000000010/model.safetensors").write_bytes(b"cut")
    other, _ = create_encoder("rna-fm-nano", seed=2)
    fresh = make_optimizers(other, "adamw", learning_rate=1e-3, weight_decay=0.0)
    assert load_state(tmp_path, other, fresh) == 5
    assert torch.equal(other.lm_head.dense.weight, model.lm_head.dense.weight)
    save_state(tmp_path, 10, model, optimizers)
    assert [p.name for p in tmp_path.iterdir()] == ["state-000000010"]


def test_killed_process_resumes_to_the_same_checkpoint(tmp_path):
    """The verb itself, killed by SIGKILL at whatever step it happens to be."""
    random = np.random.default_rng(1)
    with (tmp_path / "x.fasta").open("w") as handle:
        for i in range(200):
            handle.write(f">s{i}\n{''.join(random.choice(list('ACGU'), 60))}\n")
    build(tmp_path / "x.fasta", alphabet="rna", out=tmp_path / "shards")
    options = {"model": "rna-fm-nano", "steps": 60, "batch_tokens": 600, "save_every": 2}
    words = [
        "--model",
        "rna-fm-nano",
        "--steps",
        "60",
        "--batch-tokens",
        "600",
        "--save-every",
        "2",
    ]
    script = "import torch; torch.set_num_threads(1); from frugalfm.cli import main; main()"
    command = [sys.executable, "-c", script, "pretrain", str(tmp_path / "shards"), *words]
    with subprocess.Popen([*command, "--out", str(tmp_path / "killed")]) as process:
        deadline = time.monotonic() + 120
        while not list((tmp_path / ".killed.partial/.scratch").glob("state-*")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "killed").exists()
    pretrain(tmp_path / "shards", out=tmp_path / "killed", **options)
    pretrain(tmp_path / "shards", out=tmp_path / "whole", **options)
    killed, whole = (load_file(tmp_path / n / "model.safetensors") for n in ("killed", "whole"))
    assert all(torch.equal(killed[name], whole[name]) for name in whole)
    lines = [(tmp_path / n / "log.jsonl").read_text() for n in ("killed", "whole")]
    assert lines[0] == lines[1]
    assert json.loads(lines[0].splitlines()[-1])["step"] == 60
