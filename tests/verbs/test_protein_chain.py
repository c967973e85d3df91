"""The whole chain on proteins: ESM-C and ESM-2 from random weights, with any attention."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from frugalfm.artifacts import read_manifest
from frugalfm.attention import NAMES
from frugalfm.attention.binding import require_attention
from frugalfm.encoders import create_encoder, load_encoder, open_model, save_encoder
from frugalfm.encoders.catalogue import PROTEIN_PRESETS
from frugalfm.errors import InputError
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.vocabulary import ESMC_TOKENS, make_protein_tokenizer
from frugalfm.verbs.build import build
from frugalfm.verbs.embed import embed
from frugalfm.verbs.evaluate import evaluate
from frugalfm.verbs.outliers import outliers
from frugalfm.verbs.pretrain import pretrain
from frugalfm.verbs.quantize import quantize
from frugalfm.verbs.score import score
from frugalfm.verbs.select import select
from frugalfm.verbs.tune import tune

sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
from architectures import make_mlm

LETTERS = list("ACDEFGHIKLMNPQRSTVWY")


def make_sequences(count, seed=0):
    random = np.random.default_rng(seed)
    return ["".join(random.choice(LETTERS, random.integers(12, 70))) for _ in range(count)]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("protein")
    texts = make_sequences(60)
    texts[3] = texts[3].lower() + "*"  # as files have it
    texts[4] = "BJOUXZ" + texts[4]
    (folder / "pool.fasta").write_text("".join(f">s{i}\n{t}\n" for i, t in enumerate(texts)))
    build(folder / "pool.fasta", alphabet="protein", out=folder / "shards")
    for name, model, attention in (("esmc", "esmc-nano", "softmax1"), ("esm2", "esm2-tiny", None)):
        pretrain(
            folder / "shards",
            model=model,
            out=folder / name,
            attention=attention,
            steps=3,
            batch_tokens=1024,
            optimizer="muon",
            device="cpu",
        )
    (folder / "task").mkdir()
    for part, seed, count in (("train", 1, 60), ("dev", 2, 30), ("test", 3, 30)):
        rows = (f"{s},{int('W' in s[:25])}\n" for s in make_sequences(count, seed))
        (folder / "task" / f"{part}.csv").write_text("sequence,label\n" + "".join(rows))
    return folder


@pytest.mark.parametrize("name", ["esmc", "esm2"])
def test_checkpoint(setting, name):
    """Plain transformers folders: AutoModel and AutoTokenizer load them."""
    model = AutoModelForMaskedLM.from_pretrained(setting / name)
    tokenizer = AutoTokenizer.from_pretrained(setting / name)
    require_attention(model, "softmax1" if name == "esmc" else "softmax")
    assert tokenizer("MKw")["input_ids"] == [0, 20, 15, 22, 2]
    assert tokenizer.model_max_length == (2048 if name == "esmc" else 1024)
    assert read_manifest(setting / name)["summary"]["steps"] == 3
    prefix = model.base_model_prefix
    start, _, _ = open_model("esmc-nano" if name == "esmc" else "esm2-tiny", seed=0)
    for parameter, trained in zip(start.parameters(), model.parameters(), strict=True):
        if parameter.ndim == 2 and prefix == "esmc":
            assert not torch.equal(parameter, trained)


@pytest.mark.parametrize("name", ["esmc", "esm2"])
def test_scores_and_coreset(setting, tmp_path, name):
    scores = score(setting / "shards", model=setting / name, out=tmp_path / "s", subset=20)
    table = pq.read_table(scores / "part-00000.parquet")
    assert table.num_rows == 60
    assert table["n_tokens"].to_pylist() == table["length"].to_pylist()
    assert (table["influence"].to_numpy() > 0).all()
    coreset = select(scores, budget="10", strategy="coverage", out=tmp_path / "c")
    assert pq.read_table(next(coreset.glob("part-*.parquet"))).num_rows == 10


def test_embeddings_do_not_see_pads(setting, tmp_path):
    out = embed(setting / "esmc", setting / "pool.fasta", out=tmp_path / "e.parquet")
    table = pq.read_table(out)
    assert table["id"].to_pylist() == [f"s{i}" for i in range(60)]
    model, tokenizer = load_encoder(setting / "esmc")
    for row in (0, 3, 7):
        text = (setting / "pool.fasta").read_text().splitlines()[2 * row + 1].rstrip("*")
        with torch.no_grad():
            states = model.esmc(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected = states[1:-1].mean(0)
        np.testing.assert_allclose(table["embedding"][row].as_py(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["esmc", "esm2"])
def test_outliers_and_quantization(setting, tmp_path, name):
    out = outliers(setting / name, data=setting / "pool.fasta", out=tmp_path / "o", device="cpu")
    sites = json.loads((out / "outliers.json").read_text())["sites"]
    assert len(sites) == 2 * len(load_encoder(setting / name)[0].get_submodule(
        "esmc.layers" if name == "esmc" else "esm.encoder.layer"))  # fmt: skip
    out = quantize(
        setting / name, data=setting / "pool.fasta", out=tmp_path / "q", calibration_batches=2,
        device="cpu",
    )  # fmt: skip
    text = (out / "quantization.json").read_text()
    assert ("mlp.gate_proj" if name == "esmc" else "intermediate.dense") in text


def test_evaluate(setting, tmp_path):
    out = evaluate(setting / "esmc", task=setting / "task", out=tmp_path / "e", device="cpu")
    assert (out / "metrics.json").is_file()


@pytest.mark.parametrize(("name", "method"), [("esmc", "full"), ("esmc", "lora"), ("esm2", "lora")])
def test_tune(setting, tmp_path, name, method):
    pytest.importorskip("peft")
    out = tune(
        setting / name, task=setting / "task", method=method, out=tmp_path / "t", epochs=1,
        device="cpu",
    )  # fmt: skip
    assert read_manifest(out, "tuned")["summary"]


@pytest.mark.parametrize("kind", ["bert", "modernbert", "roberta", "nomic_bert"])
def test_other_architectures(setting, tmp_path, kind):
    """Whatever transformers has a masked-language model for runs through the same commands."""
    model = tmp_path / "model"
    save_encoder(make_mlm(kind), make_protein_tokenizer(), model)
    shards, fasta = setting / "shards", setting / "pool.fasta"
    for layers in ("head", "all"):
        out = score(shards, model=model, out=tmp_path / layers, layers=layers, subset=6, passes=1)
        assert np.isfinite(pq.read_table(out / "part-00000.parquet")["influence"]).all()
    embed(model, fasta, out=tmp_path / "e.parquet")
    outliers(model, data=fasta, out=tmp_path / "o", device="cpu")
    quantize(model, data=fasta, out=tmp_path / "q", calibration_batches=2, device="cpu")
    pytest.importorskip("peft")
    tune(
        model, task=setting / "task", method="lora", out=tmp_path / "t", epochs=1, device="cpu"
    )  # fmt: skip


@pytest.mark.parametrize("attention", NAMES)
@pytest.mark.parametrize("name", ["esmc-nano", "esm2-tiny"])
def test_pads_are_never_attended(name, attention):
    model, tokenizer = create_encoder(name, attention=attention, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    batch = tokenizer(["MKTAYIAKQRW", "ACD"], padding=True, return_tensors="pt")
    with torch.no_grad():
        together = model(**batch).logits[1, :5]
        alone = model(**tokenizer("ACD", return_tensors="pt")).logits[0]
        batch["input_ids"][1, 5:] = 7  # whatever stands in a pad
        other = model(**batch).logits[1, :5]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other, alone, rtol=1e-4, atol=1e-5)


def test_named_sizes():
    """Widths and depths as published; parameters as ESM-2's paper counts them."""
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in create_encoder(name)[0].parameters())
            for name in ("esmc-300m", "esm2-8m", "esm2-35m", "esmc-tiny", "esmc-nano")
        }
    assert counts["esmc-300m"] == pytest.approx(333e6, rel=0.01)
    assert counts["esm2-8m"] == pytest.approx(7.5e6, rel=0.01)
    assert counts["esm2-35m"] == pytest.approx(33.5e6, rel=0.01)
    assert counts["esmc-tiny"] == pytest.approx(0.9e6, rel=0.02)
    assert counts["esmc-nano"] == pytest.approx(0.17e6, rel=0.05)
    for name, preset in PROTEIN_PRESETS.items():
        assert preset.width % preset.heads == 0, name


def test_from_config_files(tmp_path):
    for name, longest in (("esmc-nano", 2046), ("esm2-tiny", 1022)):
        made, tokenizer = create_encoder(name, attention="softmax1", seed=2)
        made.config.save_pretrained(tmp_path / name)
        again, words, _ = open_model(str(tmp_path / name / "config.json"), seed=2)
        assert words.get_vocab() == tokenizer.get_vocab()
        assert Codec.from_tokenizer(words).max_residues == longest
        for (key, a), b in zip(made.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(a, b), key
    made, tokenizer = create_encoder("esmc-nano", seed=2)
    made.config.save_pretrained(tmp_path / "blank")
    tokenizer.save_pretrained(tmp_path / "blank")
    again, words, _ = open_model(str(tmp_path / "blank"), attention="sink", seed=2)
    assert len(words) == len(ESMC_TOKENS) < again.config.vocab_size
    require_attention(again, "sink")
    save_encoder(again, words, tmp_path / "whole")
    load_encoder(tmp_path / "whole")
    with pytest.raises(InputError, match=r"there are: rna-fm, .*esmc-tiny"):
        create_encoder("esmc-giant")
