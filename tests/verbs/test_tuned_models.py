"""Tuned models where an encoder is wanted: their states where a head is no matter, or a message."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from frugalfm.artifacts import read_manifest
from frugalfm.encoders import load_encoder, save_encoder
from frugalfm.encoders.heads import add_head
from frugalfm.errors import InputError
from frugalfm.training.trunks import load_trunk
from frugalfm.training.tuned import load_tuned
from frugalfm.verbs.convert import convert
from frugalfm.verbs.embed import embed
from frugalfm.verbs.evaluate import evaluate
from frugalfm.verbs.outliers import outliers
from frugalfm.verbs.predict import predict
from frugalfm.verbs.pretrain import pretrain
from frugalfm.verbs.quantize import quantize
from frugalfm.verbs.score import score
from frugalfm.verbs.tune import tune

sys.path.append(str(Path(__file__).parent))
from predict_models import Models, write_fasta

WAYS = [
    pytest.param({"kind": kind, **options}, id="-".join([kind, *map(str, options.values())]),
                 marks=pytest.mark.skipif(
                     any(importlib.util.find_spec(name) is None for name in needed),
                     reason="optional"))
    for kind, options, needed in [
        ("classification", {"method": "full"}, []),
        ("classification", {"method": "lora"}, ["peft"]),
        ("classification", {"method": "lora", "merge": True}, ["peft"]),
        ("classification", {"method": "loftq"}, ["peft", "bitsandbytes"]),
        ("token", {"method": "full"}, []),
        ("contact", {"method": "full"}, []),
        ("contact", {"method": "lora"}, ["peft"]),
    ]
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def fasta(tmp_path_factory):
    return write_fasta(tmp_path_factory.mktemp("input") / "x.fa", 12)


def read_states(model, tokenizer, fasta):
    """Mean of the residues' states before the head, one sequence at a time, by a hook alone."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    inner = getattr(inner, "encoder", inner) if not hasattr(inner, "base_model_prefix") else inner
    seen = []
    hook = getattr(inner, inner.base_model_prefix).register_forward_hook(
        lambda _, __, out: seen.append(out.last_hidden_state[0, 1:-1].mean(0))
    )
    for text in fasta.read_text().split()[1::2]:
        words = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            model(input_ids=words["input_ids"], attention_mask=words["attention_mask"])
    hook.remove()
    return torch.stack(seen).numpy()


@pytest.mark.parametrize("way", WAYS)
def test_embed_and_outliers_take_it(models, fasta, tmp_path, way):
    tuned, _ = models(**way)
    out = embed(tuned, fasta, out=tmp_path / "e.parquet", device="cpu")
    found = np.stack(pq.read_table(out)["embedding"].to_numpy())
    np.testing.assert_allclose(found, read_states(*load_tuned(tuned), fasta), atol=1e-5)
    plain = read_states(*load_encoder(models.checkpoint), fasta)
    assert np.abs(found - plain).max() > 1e-4  # the tuned states, not those before
    report = outliers(tuned, data=fasta, out=tmp_path / "o", device="cpu")
    assert read_manifest(report, "outliers")["summary"]["sequences"] == 12


def test_a_model_with_a_head_from_elsewhere(models, fasta, tmp_path):
    encoder, tokenizer = load_encoder(models.checkpoint)
    save_encoder(add_head(encoder, "token", ["a", "b"]), tokenizer, tmp_path / "foreign")
    out = embed(tmp_path / "foreign", fasta, out=tmp_path / "e.parquet", device="cpu")
    found = np.stack(pq.read_table(out)["embedding"].to_numpy())
    np.testing.assert_allclose(found, read_states(encoder, tokenizer, fasta), atol=1e-5)
    outliers(tmp_path / "foreign", data=fasta, device="cpu")


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="optional")
def test_an_adapter_whose_checkpoint_moved_takes_base(tmp_path, fasta):
    models = Models(tmp_path)
    adapter, _ = models(method="lora")
    before = load_trunk(adapter)[0].state_dict()
    with pytest.raises(InputError, match="inside the input"):  # the recorded checkpoint
        embed(adapter, fasta, out=models.checkpoint / "e.parquet", device="cpu")
    moved = models.checkpoint.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="--base"):
        embed(adapter, fasta, out=tmp_path / "e.parquet", device="cpu")
    embed(adapter, fasta, out=tmp_path / "e.parquet", base=moved, device="cpu")
    outliers(adapter, data=fasta, base=moved, device="cpu")
    for verb in (embed, predict):
        with pytest.raises(InputError, match="inside the input"):
            verb(adapter, fasta, out=moved / "e.parquet", base=moved, device="cpu")
    for verb in (outliers, quantize):
        with pytest.raises(InputError, match="inside the input"):
            verb(adapter, data=fasta, out=moved, base=moved, overwrite=True, device="cpu")
        with pytest.raises(InputError, match="is a whole model"):
            verb(moved, data=fasta, out=tmp_path / "o", base=moved, device="cpu")
    after = load_trunk(adapter, base=moved)[0].state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_damaged_one_is_refused_before_anything_is_read(models, fasta, tmp_path):
    tuned, _ = models()
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tuned.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "model.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="is damaged"):
        embed(copy, fasta, out=tmp_path / "e.parquet", device="cpu")


@pytest.mark.parametrize("way", WAYS[:3])
@pytest.mark.parametrize("verb", ["tune", "evaluate", "score", "convert", "pretrain"])
def test_others_say_what_it_is_and_what_to_give(models, fasta, shards, tmp_path, way, verb):
    tuned, test = models(**way)
    task, out = test.parent, tmp_path / "out"
    calls = {
        "tune": lambda: tune(tuned, task=task, out=out, method="full", device="cpu"),
        "evaluate": lambda: evaluate(tuned, task=task, out=out, device="cpu"),
        "score": lambda: score(shards, model=tuned, out=out, device="cpu"),
        "convert": lambda: convert(
            tuned, attention="softmax1", data=shards, steps=1, out=out, device="cpu"
        ),
        "pretrain": lambda: pretrain(shards, model=str(tuned), steps=1, out=out, device="cpu"),
    }
    with pytest.raises(InputError, match="is a tuned model") as raised:
        calls[verb]()
    assert str(models.checkpoint) in str(raised.value)
    assert not out.exists()


@pytest.fixture(scope="module")
def shards(tmp_path_factory, fasta):
    from frugalfm.verbs.build import build

    return build(fasta, alphabet="rna", out=tmp_path_factory.mktemp("built") / "shards")
