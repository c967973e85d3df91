"""Every verb works on DNABERT-2, whose tokens are byte pairs, from random weights on."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from frugalfm.artifacts import read_manifest
from frugalfm.encoders import create_encoder, load_encoder, open_model
from frugalfm.encoders.dnabert2.modeling import DnaBert2ForMaskedLM
from frugalfm.errors import InputError
from frugalfm.influence import HeadGradients, MaskScheme
from frugalfm.tokens.codec import Codec, PieceCodec
from frugalfm.verbs.build import build
from frugalfm.verbs.embed import embed
from frugalfm.verbs.outliers import outliers
from frugalfm.verbs.pretrain import pretrain
from frugalfm.verbs.quantize import quantize
from frugalfm.verbs.score import score

sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
from dnabert2_oracle import make_dna_tokenizer

SIZE = {
    "model_type": "dnabert2",
    "vocab_size": len(make_dna_tokenizer()),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


def write_blank(folder, **changes):
    """A folder with config and tokenizer, but without weights."""
    folder.mkdir()
    make_dna_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(SIZE | changes))
    return folder


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dna")
    random = np.random.default_rng(0)
    texts = ("".join(random.choice(list("ACGT"), random.integers(20, 200))) for _ in range(60))
    (folder / "pool.fasta").write_text("".join(f">s{i}\n{t}\n" for i, t in enumerate(texts)))
    build(folder / "pool.fasta", alphabet="dna", out=folder / "shards")
    blank = write_blank(folder / "blank")
    pretrain(
        folder / "shards",
        model=str(blank),
        out=folder / "model",
        attention="softmax1",
        steps=4,
        batch_tokens=1024,
        optimizer="muon",
        device="cpu",
    )
    return folder


def test_pretraining_from_a_folder_without_weights(setting):
    summary = read_manifest(setting / "model", "checkpoint")["summary"]
    assert summary["steps"] == 4
    model, tokenizer = load_encoder(setting / "model")
    assert type(model) is DnaBert2ForMaskedLM
    assert model.config.attention == model.config._attn_implementation == "softmax1"
    assert (model.config.pad_token_id, model.config.mask_token_id) == (3, 4)
    assert type(Codec.from_tokenizer(tokenizer)) is PieceCodec
    start, _, _ = open_model(str(setting / "blank"), attention="softmax1", seed=0)
    name = "encoder.layer.0.attention.self.Wqkv.weight"
    assert not torch.equal(start.bert.get_parameter(name), model.bert.get_parameter(name))


def test_scores(setting, tmp_path):
    out = score(setting / "shards", model=setting / "model", out=tmp_path / "s", subset=20)
    table = pq.read_table(out / "part-00000.parquet")
    assert table.num_rows == 60
    assert np.isfinite(table["influence"].to_numpy()).all()
    # Every token is masked once, so that there are as many targets as tokens.
    codec = Codec.from_tokenizer(load_encoder(setting / "model")[1])
    column = pq.read_table(next((setting / "shards").glob("*.parquet")))["sequence"]
    assert sorted(table["n_tokens"].to_pylist()) == sorted(codec.encode(column)[1].tolist())


def test_head_gradients_equal_autograd(setting):
    model, tokenizer = load_encoder(setting / "model")
    codec = Codec.from_tokenizer(tokenizer)
    gradients = HeadGradients(model, codec, masks=MaskScheme(groups=1))
    assert gradients.dense is model.cls.predictions.transform.dense
    sequence = np.array([5, 6, 7, 12, 9], np.uint16)
    found = {}

    def visit(layer, inputs, deltas):
        found[layer] = deltas[0].T @ inputs[0]

    gradients([sequence], "sum", visit)
    ids = torch.tensor([[1, 4, 4, 4, 4, 4, 2]])
    labels = torch.tensor([[-100, *sequence.tolist(), -100]])
    model.zero_grad()
    (5 * model(ids, labels=labels).loss).backward()
    expected = model.cls.predictions.transform.dense.weight.grad
    torch.testing.assert_close(
        found["cls.predictions.transform.dense"], expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embeddings(setting, tmp_path, pooling):
    out = embed(
        setting / "model", setting / "pool.fasta", out=tmp_path / "e.parquet", pooling=pooling
    )
    table = pq.read_table(out)
    assert table["id"].to_pylist() == [f"s{i}" for i in range(60)]
    model, tokenizer = load_encoder(setting / "model")
    text = (setting / "pool.fasta").read_text().splitlines()[7]
    with torch.no_grad():
        states = model.bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    expected = states[0] if pooling == "cls" else states[1:-1].mean(0)
    np.testing.assert_allclose(table["embedding"][3].as_py(), expected, rtol=1e-3, atol=1e-5)


def test_outliers(setting, tmp_path):
    out = outliers(setting / "model", data=setting / "pool.fasta", out=tmp_path / "o", device="cpu")
    sites = json.loads((out / "outliers.json").read_text())["sites"]
    assert len(sites) == 4
    assert any("mlp.wo" in json.dumps(site) for site in sites)


def test_quantization(setting, tmp_path):
    out = quantize(
        setting / "model",
        data=setting / "pool.fasta",
        out=tmp_path / "q",
        calibration_batches=2,
        device="cpu",
    )
    assert "attention.self.Wqkv" in (out / "quantization.json").read_text()


def test_named_sizes(tmp_path):
    blank = write_blank(tmp_path / "words")
    model, tokenizer = create_encoder(
        "dnabert2-tiny", attention="softmax1", seed=1, tokenizer=blank
    )
    assert type(model) is DnaBert2ForMaskedLM
    assert model.config.vocab_size == len(tokenizer) == SIZE["vocab_size"]
    assert tokenizer("acgu")["input_ids"] == tokenizer("ACGT")["input_ids"]
    same, _, path = open_model("dnabert2-tiny", attention="softmax1", seed=1, tokenizer=blank)
    assert path is None
    for a, b in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    with torch.device("meta"):
        large, _ = create_encoder("dnabert2", tokenizer=blank)
    assert sum(p.numel() for p in large.bert.encoder.parameters()) == 113_329_152
    with pytest.raises(InputError, match="needs a tokenizer"):
        create_encoder("dnabert2-tiny")
    with pytest.raises(InputError, match="takes no other"):
        create_encoder("rna-fm-nano", tokenizer=blank)
    with pytest.raises(InputError, match="brings its own tokenizer"):
        open_model(str(blank), tokenizer=blank)


def test_folder_without_weights_that_does_not_fit(tmp_path):
    with pytest.raises(InputError, match="vocab_size 99, the tokenizer has 15"):
        open_model(str(write_blank(tmp_path / "a", vocab_size=99)))
    blank = write_blank(tmp_path / "b")
    (blank / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="is no tokenizer"):
        open_model(str(blank))
    blank = write_blank(tmp_path / "c", model_type="klingon")
    with pytest.raises(InputError, match="holds no weights"):
        open_model(str(blank))


@pytest.mark.parametrize("attention", ["gated", "sink", "clipped"])
def test_other_attentions(tmp_path, attention):
    model, _, _ = open_model(str(write_blank(tmp_path / "a")), attention=attention, seed=1)
    ids = torch.randint(5, SIZE["vocab_size"], (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with torch.no_grad():
        together = model(ids, attention_mask=mask).logits
        alone = model(ids[1:, :5]).logits
    torch.testing.assert_close(together[1:, :5], alone, rtol=1e-4, atol=1e-5)
