"""``pretrain --pack``: rows shared, the artifact as ever, errors before any work."""

import json

import numpy as np
import pytest

from frugalfm.artifacts import read_manifest
from frugalfm.errors import InputError
from frugalfm.verbs.build import build
from frugalfm.verbs.pretrain import pretrain


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    random = np.random.default_rng(1)
    with (folder / "x.fasta").open("w") as handle:
        for i in range(120):
            length = random.integers(10, 60)
            handle.write(f">s{i}\n{''.join(random.choice(list('ACGU'), length))}\n")
    build(folder / "x.fasta", alphabet="rna", out=folder / "shards")
    return folder / "shards"


def test_one_epoch_takes_fewer_steps_than_padded(shards, tmp_path):
    options = {"model": "rna-fm-nano", "epochs": 1, "batch_tokens": 256}
    steps = {}
    for pack in (None, 128):
        out = pretrain(shards, out=tmp_path / str(pack), pack=pack, **options)
        manifest = read_manifest(out)
        steps[pack] = manifest["summary"]["steps"]
        assert manifest["config"].get("pack") == pack
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        assert lines[-1]["validation_loss"] > 0
    assert steps[128] < steps[None]


def test_finished_work_of_a_version_without_packing_is_still_known(shards, tmp_path, capsys):
    options = {"model": "rna-fm-nano", "steps": 1, "batch_tokens": 256}
    out = pretrain(shards, out=tmp_path / "out", **options)
    assert not {"pack", "compiled"} & read_manifest(out)["config"].keys()
    pretrain(shards, out=out, **options)
    assert "already pretrained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pack": 40}, "--pack 40: the longest sequence has"),
        ({"pack": 512}, "--pack 512 is more than --batch-tokens 256"),
        ({"pack": 0}, "--pack must be positive"),
        ({"compiled": True, "flatten": 0.1}, "--compiled layers cannot be watched"),
    ],
)
def test_what_cannot_be_is_an_error(shards, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        pretrain(
            shards, out=tmp_path / "out", model="rna-fm-nano", steps=1, batch_tokens=256, **options
        )
    assert not (tmp_path / "out").exists()
