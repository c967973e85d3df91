"""Protein models as published: ESM-2, ESM-C in both layouts, and BERT over amino acids."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertForMaskedLM, EsmcTokenizer, PreTrainedTokenizerFast

from frugalfm import import_checkpoint
from frugalfm.artifacts import read_manifest
from frugalfm.encoders import create_encoder, load_encoder, save_encoder
from frugalfm.errors import InputError
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.vocabulary import ESM_TOKENS, ESMC_TOKENS

sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
from architectures import make_mlm

SEQUENCES = ["MKTAYIAKQR<mask>ISFVK", "ACDW"]


def read(folder):
    return {
        name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()
    }


def write(folder, weights):
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def make_batch(tokenizer):
    batch = tokenizer(SEQUENCES, padding=True, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


def run(model, tokenizer):
    ids, mask = make_batch(tokenizer)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits[mask == 1]


@pytest.fixture
def esm2(tmp_path):
    """As published: what an old transformers saved along, tables in vocab.txt, a slow tokenizer."""
    folder = tmp_path / "published"
    model = make_mlm("esm2")
    model.save_pretrained(folder)
    weights = read(folder)
    weights.pop("esm.rotary_embeddings.inv_freq", None)
    weights.pop("lm_head.decoder.weight", None)
    weights["esm.embeddings.position_ids"] = torch.arange(130)[None]
    weights["esm.embeddings.position_embeddings.weight"] = torch.randn(130, 32)
    for layer in range(3):
        name = f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"
        weights[name] = 1.0 / 10_000 ** (torch.arange(0, 8, 2) / 8)
    write(folder, weights)
    (folder / "vocab.txt").write_text("\n".join(ESM_TOKENS))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "EsmTokenizer"}')
    return folder, weights, model


def test_esm2(tmp_path, esm2):
    folder, _, model = esm2
    out = import_checkpoint(folder, out=tmp_path / "out")
    again, tokenizer = load_encoder(out)
    ids, mask = make_batch(tokenizer)
    assert ids[0].tolist() == [0, *(ESM_TOKENS.index(c) for c in "MKTAYIAKQR"), 32,
                               *(ESM_TOKENS.index(c) for c in "ISFVK"), 2]  # fmt: skip
    assert ids[1, mask[1] == 0].eq(1).all()
    torch.testing.assert_close(run(again, tokenizer), run(model, tokenizer))
    codec = Codec.from_tokenizer(tokenizer)
    assert (codec.alphabet, codec.per_residue) == ("protein", True)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("esm.encoder.layer.1.output.dense.bias", None, r"1 missing keys: .*output\.dense\.bias"),
        ("esm.stranger.weight", torch.zeros(2), r"1 unexpected keys: esm\.stranger\.weight"),
        ("lm_head.bias", torch.zeros(9), r"1 mismatched keys: .*lm_head\.bias"),
        ("esm.embeddings.position_ids", torch.zeros(1, 130).long(), "position_ids: does not count"),
    ],
)
def test_every_key_of_esm2_must_match(tmp_path, esm2, name, tensor, message):
    folder, weights, _ = esm2
    changed = {key: value for key, value in weights.items() if key != name}
    write(folder, changed | ({} if tensor is None else {name: tensor}))
    with pytest.raises(InputError, match=message):
        import_checkpoint(folder, out=tmp_path / "out")


def test_esmc(tmp_path):
    """transformers' layout and its own tokenizer: 64 rows, 33 tokens."""
    model, _ = create_encoder("esmc-nano", seed=3)
    folder = tmp_path / "published"
    save_encoder(model, EsmcTokenizer(), folder)
    out = import_checkpoint(folder, out=tmp_path / "out")
    again, tokenizer = load_encoder(out)
    assert torch.equal(run(again, tokenizer), run(model, EsmcTokenizer()))
    assert Codec.from_tokenizer(tokenizer).table[ord("K")] == ESMC_TOKENS.index("K")
    weights = read(folder)
    del weights["esmc.layers.2.self_attn.q_norm.weight"]
    write(folder, weights)
    with pytest.raises(InputError, match=r"1 missing keys: .*layers\.2\.self_attn\.q_norm"):
        import_checkpoint(folder, out=tmp_path / "other")


# ESM-C's first files, with the forward pass written from the model's description.
WIDTH, HEADS, INNER, LAYERS = 128, 2, 96, 2


def make_esmc():
    random = torch.Generator().manual_seed(0)
    shapes = {"embed.weight": (64, WIDTH), "transformer.norm.weight": (WIDTH,)}
    for i in range(LAYERS):
        p = f"transformer.blocks.{i}."
        shapes |= {
            f"{p}attn.layernorm_qkv.0.weight": (WIDTH,),
            f"{p}attn.layernorm_qkv.0.bias": (WIDTH,),
            f"{p}attn.layernorm_qkv.1.weight": (3 * WIDTH, WIDTH),
            f"{p}attn.q_ln.weight": (WIDTH,),
            f"{p}attn.k_ln.weight": (WIDTH,),
            f"{p}attn.out_proj.weight": (WIDTH, WIDTH),
            f"{p}ffn.0.weight": (WIDTH,),
            f"{p}ffn.0.bias": (WIDTH,),
            f"{p}ffn.1.weight": (2 * INNER, WIDTH),
            f"{p}ffn.3.weight": (WIDTH, INNER),
        }
    for i, shape in ((0, (WIDTH, WIDTH)), (2, (WIDTH,)), (3, (64, WIDTH))):
        shapes |= {f"sequence_head.{i}.weight": shape, f"sequence_head.{i}.bias": shape[:1]}
    return {
        name: torch.randn(shape, generator=random) * (0.1 if len(shape) == 2 else 0.5)
        for name, shape in shapes.items()
    }


def forward_esmc(weights, ids, mask):
    w = {name: tensor.double() for name, tensor in weights.items()}

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w.get(f"{name}.bias", 0)

    def rotate(x):
        half = x.shape[-1] // 2
        angles = torch.arange(x.shape[2])[:, None] * 10_000.0 ** -(torch.arange(half) / half)
        first, second = x[..., :half], x[..., half:]
        cos, sin = angles.double().cos(), angles.double().sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def split(x):
        return x.reshape(*ids.shape, HEADS, WIDTH // HEADS).transpose(1, 2)

    x = w["embed.weight"][ids]
    for i in range(LAYERS):
        p, scale = f"transformer.blocks.{i}.", (LAYERS / 36) ** 0.5
        y = norm(x, f"{p}attn.layernorm_qkv.0") @ w[f"{p}attn.layernorm_qkv.1.weight"].T
        q, k, v = y.split(WIDTH, -1)
        q, k = rotate(split(norm(q, f"{p}attn.q_ln"))), rotate(split(norm(k, f"{p}attn.k_ln")))
        scores = q @ k.mT / (WIDTH // HEADS) ** 0.5
        scores = scores.masked_fill(mask[:, None, None, :] == 0, -torch.inf)
        y = (scores.softmax(-1) @ split(v)).transpose(1, 2).reshape(*ids.shape, WIDTH)
        x = x + y @ w[f"{p}attn.out_proj.weight"].T / scale
        gate, y = (norm(x, f"{p}ffn.0") @ w[f"{p}ffn.1.weight"].T).split(INNER, -1)
        x = x + (gate * gate.sigmoid() * y) @ w[f"{p}ffn.3.weight"].T / scale
    x = norm(x, "transformer.norm") @ w["sequence_head.0.weight"].T + w["sequence_head.0.bias"]
    x = norm(x * 0.5 * (1 + torch.erf(x / 2**0.5)), "sequence_head.2")
    return x @ w["sequence_head.3.weight"].T + w["sequence_head.3.bias"]


def test_esmc_in_its_first_layout(tmp_path):
    weights, path = make_esmc(), tmp_path / "esmc_300m_2024_12_v0.pth"
    torch.save(weights | {"transformer.blocks.0.attn.rotary.inv_freq": torch.zeros(32)}, path)
    with pytest.raises(InputError, match="--allow-pickle"):
        import_checkpoint(path, out=tmp_path / "out")
    out = import_checkpoint(path, out=tmp_path / "out", allow_pickle=True)
    model, tokenizer = load_encoder(out)
    ids, mask = make_batch(tokenizer)
    expected = forward_esmc(weights, ids, mask)[mask == 1]
    assert (run(model, tokenizer) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert read_manifest(out)["summary"]["architecture"] == "esm-c"


def test_esmc_in_its_first_layout_is_refused_where_it_does_not_match(tmp_path):
    path, weights = tmp_path / "esmc.safetensors", make_esmc()
    save_file(weights | {"surprise.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"1 names are not ESM-C's: surprise\.weight"):
        import_checkpoint(path, out=tmp_path / "out")
    del weights["transformer.blocks.1.ffn.3.weight"]
    save_file(weights, path)
    with pytest.raises(InputError, match=r"1 missing keys: .*layers\.1\.mlp\.down_proj"):
        import_checkpoint(path, out=tmp_path / "out")
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="does not have ESM-C's names"):
        import_checkpoint(path, out=tmp_path / "out")


BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"ACDEFGHIKLMNPQRSTVWY")


@pytest.fixture
def antiberty(tmp_path):
    """AntiBERTy's layout: a pickle with further heads, a vocabulary in the folder above."""
    folder = tmp_path / "trained_models/AntiBERTy"
    config = BertConfig(
        vocab_size=25, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=40, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForMaskedLM(config).eval()
    model.save_pretrained(folder)
    weights = read(folder)
    weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"]
    weights["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"]
    weights["bert.embeddings.position_ids"] = torch.arange(40)[None]
    for name, rows in (("bert.pooler.dense", 16), ("cls.species", 6), ("cls.chain", 2)):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.ones(rows, 16), torch.ones(rows)
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    torch.save({"seed": 1}, folder / "training_args.bin")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": ["AntiBERTy"]}))
    (folder.parent / "vocab.txt").write_text("\n".join(BERT_TOKENS))
    return folder, model


def test_antiberty(tmp_path, antiberty):
    folder, model = antiberty
    out = import_checkpoint(folder, out=tmp_path / "out", allow_pickle=True)
    again, tokenizer = load_encoder(out)
    assert tokenizer("EVQl[MASK]X")["input_ids"] == [2, 8, 22, 18, 14, 4, 1, 3]
    assert tokenizer.model_max_length == 40
    ids = torch.tensor([[2, 8, 22, 4, 3]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    notes = " ".join(read_manifest(out)["summary"]["notes"])
    assert "left out heads" in notes
    assert "bert.pooler.dense, cls.chain, cls.species" in notes
    codec = Codec.from_tokenizer(tokenizer)
    assert (codec.alphabet, codec.max_residues, len(codec.residue_ids)) == ("protein", 38, 20)


def test_a_tokenizer_must_be_there_and_fit(tmp_path, antiberty):
    folder, model = antiberty
    model.save_pretrained(folder)
    (folder.parent / "vocab.txt").write_text("\n".join([*BERT_TOKENS, "X"]))
    with pytest.raises(InputError, match="has 26 tokens, the model 25"):
        import_checkpoint(folder, out=tmp_path / "out")
    (folder.parent / "vocab.txt").unlink()
    with pytest.raises(InputError, match="--tokenizer"):
        import_checkpoint(folder, out=tmp_path / "out")
    (tmp_path / "words").mkdir()
    (tmp_path / "words/vocab.txt").write_text("\n".join(BERT_TOKENS))
    import_checkpoint(folder, out=tmp_path / "out", tokenizer=tmp_path / "words")


def test_a_tokenizer_that_reads_words_is_made_to_spell(tmp_path, antiberty):
    """ProtBERT's: "M K T" is three tokens, "MKT" was an unknown one."""
    folder, model = antiberty
    model.save_pretrained(folder)
    (folder.parent / "vocab.txt").unlink()
    words = Tokenizer(
        models.WordLevel({t: i for i, t in enumerate(BERT_TOKENS)}, unk_token="[UNK]")
    )
    specials = {f"{n}_token": f"[{n.upper()}]" for n in ("unk", "cls", "sep", "pad", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=words, **specials).save_pretrained(folder)
    out = import_checkpoint(folder, out=tmp_path / "out")
    tokenizer = load_encoder(out)[1]
    assert tokenizer("MKT")["input_ids"] == [2, 15, 13, 21, 3]
