"""Published layouts are read to the last key, equal an oracle, and run no code unasked."""

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM

from frugalfm import import_checkpoint
from frugalfm.artifacts import read_manifest
from frugalfm.encoders import create_encoder, load_encoder, save_encoder
from frugalfm.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
from dnabert2_oracle import forward, make_config, make_dna_tokenizer, make_weights

VOCABULARY = len(make_dna_tokenizer())


def clone(weights):
    return {name: tensor.clone() for name, tensor in weights.items()}


@pytest.fixture
def dnabert2(tmp_path):
    """A folder as published, in safetensors; and its weights."""
    folder = tmp_path / "published"
    folder.mkdir()
    weights = make_weights(vocabulary=VOCABULARY)
    make_dna_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(make_config(vocabulary=VOCABULARY)))
    save_file(clone(weights), folder / "model.safetensors", metadata={"format": "pt"})
    return folder, weights


def change(folder, weights):
    save_file(clone(weights), folder / "model.safetensors", metadata={"format": "pt"})


def check_logits(out, weights):
    model, tokenizer = load_encoder(out)
    batch = tokenizer(["ACGTAATTTGCA", "AC"], padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    expected = forward(weights, ids, mask, 4)
    assert (logits - expected)[mask == 1].abs().max() < 1e-5 * expected.abs().max()
    return model, tokenizer


@pytest.mark.parametrize("pickled", [False, True])
def test_dnabert2(tmp_path, dnabert2, capsys, pickled):
    folder, weights = dnabert2
    if pickled:
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")
        with pytest.raises(InputError, match="--allow-pickle"):
            import_checkpoint(folder, out=tmp_path / "out")
    out = import_checkpoint(folder, out=tmp_path / "out", allow_pickle=pickled)
    model, tokenizer = check_logits(out, weights)
    assert model.config.attention == "softmax"
    assert (model.config.pad_token_id, model.config.mask_token_id) == (3, 4)
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (3, 0)
    manifest = read_manifest(out, "checkpoint")
    assert manifest["summary"]["architecture"] == "dnabert2"
    assert manifest["summary"]["tensors"] == len(weights)
    assert "imported, dnabert2" in capsys.readouterr().out
    import_checkpoint(folder, out=tmp_path / "out", allow_pickle=pickled)
    assert "already imported" in capsys.readouterr().out


def test_tokenizer_reads_lower_case_and_u_and_gives_unknown_for_n(tmp_path, dnabert2):
    out = import_checkpoint(dnabert2[0], out=tmp_path / "out")
    _, tokenizer = load_encoder(out)
    assert tokenizer("acgtaatt")["input_ids"] == tokenizer("ACGTAATT")["input_ids"]
    assert tokenizer("ACGUAAUU")["input_ids"] == tokenizer("ACGTAATT")["input_ids"]
    ids = tokenizer("ANNn")["input_ids"]
    assert ids.count(tokenizer.unk_token_id) == 3
    assert tokenizer("A[MASK]C")["input_ids"][2] == tokenizer.mask_token_id


@pytest.mark.parametrize(
    "absent", ["cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"]
)
def test_one_tied_copy_may_be_absent(tmp_path, dnabert2, absent):
    folder, weights = dnabert2
    change(folder, {k: v for k, v in weights.items() if k != absent})
    out = import_checkpoint(folder, out=tmp_path / "out")
    check_logits(out, weights)
    assert "tied" in read_manifest(out)["summary"]["notes"][0]


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("bert.encoder.layer.1.mlp.wo.bias", None, r"1 missing keys: .*layer\.1\.mlp\.wo\.bias"),
        (
            "bert.pooler.dense.bias",
            torch.zeros(32),
            r"1 unexpected keys: bert\.pooler\.dense\.bias",
        ),
        ("bert.encoder.layer.0.mlp.wo.bias", torch.zeros(9), r"mismatched keys.*mlp\.wo\.bias"),
        ("cls.predictions.decoder.weight", torch.zeros(VOCABULARY, 32), "differ"),
    ],
)
def test_every_key_must_match(tmp_path, dnabert2, name, tensor, message):
    folder, weights = dnabert2
    changed = {k: v for k, v in weights.items() if k != name}
    change(folder, changed | ({} if tensor is None else {name: tensor}))
    with pytest.raises(InputError, match=message):
        import_checkpoint(folder, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tokenizer_from_elsewhere(tmp_path, dnabert2):
    folder, weights = dnabert2
    (tmp_path / "words").mkdir()
    (folder / "tokenizer.json").rename(tmp_path / "words/tokenizer.json")
    with pytest.raises(InputError, match="--tokenizer"):
        import_checkpoint(folder, out=tmp_path / "out")
    out = import_checkpoint(folder, out=tmp_path / "out", tokenizer=tmp_path / "words")
    check_logits(out, weights)
    (folder / "config.json").write_text(json.dumps(make_config(vocabulary=40)))
    with pytest.raises(InputError, match=r"has 15 tokens, the model 40"):
        import_checkpoint(folder, out=tmp_path / "other", tokenizer=tmp_path / "words")


# RNA-FM, with ESM-1b's forward pass written from its description.
WIDTH, HEADS, FFN, LAYERS, PLACES = 24, 3, 40, 2, 30
STACK = "encoder.sentence_encoder."


def make_rna_fm(contact=True, seed=0):
    random = torch.Generator().manual_seed(seed)
    shapes = {f"{STACK}embed_tokens": [(25, WIDTH)], f"{STACK}embed_positions": [(PLACES, WIDTH)]}
    norms = [f"{STACK}emb_layer_norm_before", f"{STACK}emb_layer_norm_after"]
    for i in range(LAYERS):
        p = f"{STACK}layers.{i}."
        for part in "qkv":
            shapes[f"{p}self_attn.{part}_proj"] = [(WIDTH, WIDTH), (WIDTH,)]
        shapes[f"{p}self_attn.out_proj"] = [(WIDTH, WIDTH), (WIDTH,)]
        shapes |= {f"{p}fc1": [(FFN, WIDTH), (FFN,)], f"{p}fc2": [(WIDTH, FFN), (WIDTH,)]}
        norms += [f"{p}self_attn_layer_norm", f"{p}final_layer_norm"]
    shapes["encoder.lm_head.dense"] = [(WIDTH, WIDTH), (WIDTH,)]
    norms.append("encoder.lm_head.layer_norm")
    shapes |= {name: [(WIDTH,), (WIDTH,)] for name in norms}
    if contact:
        shapes["encoder.contact_head.regression"] = [(1, LAYERS * HEADS), (1,)]
    weights = {
        f"{name}.{kind}": 0.3 * torch.randn(shape, generator=random)
        for name, both in shapes.items()
        for kind, shape in zip(("weight", "bias"), both, strict=False)
    }
    weights["encoder.lm_head.weight"] = weights[f"{STACK}embed_tokens.weight"]
    weights["encoder.lm_head.bias"] = torch.randn(25, generator=random)
    return weights


def forward_rna_fm(weights, ids, mask):
    w = {name: tensor.double() for name, tensor in weights.items()}

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def gelu(x):
        return x * 0.5 * (1 + torch.erf(x / 2**0.5))

    x = w[f"{STACK}embed_tokens.weight"][ids]
    hidden = ids == 24
    x = x * ~hidden[..., None]
    share = hidden.sum(1) / mask.sum(1)  # token dropout: training masked 80 % of 15 %
    x = x * ((1 - 0.15 * 0.8) / (1 - share))[:, None, None]
    places = torch.where(mask == 1, mask.cumsum(1) + 1, 1)
    x = norm(x + w[f"{STACK}embed_positions.weight"][places], f"{STACK}emb_layer_norm_before")
    x = x * mask[..., None]
    size = WIDTH // HEADS
    for i in range(LAYERS):
        p = f"{STACK}layers.{i}."
        y = norm(x, f"{p}self_attn_layer_norm")
        q, k, v = (
            linear(y, f"{p}self_attn.{part}_proj").reshape(*ids.shape, HEADS, size).transpose(1, 2)
            for part in "qkv"
        )
        scores = (q @ k.mT / size**0.5).masked_fill(mask[:, None, None, :] == 0, -torch.inf)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(*ids.shape, WIDTH)
        x = x + linear(y, f"{p}self_attn.out_proj")
        y = norm(x, f"{p}final_layer_norm")
        x = x + linear(gelu(linear(y, f"{p}fc1")), f"{p}fc2")
    x = norm(x, f"{STACK}emb_layer_norm_after")
    x = norm(gelu(linear(x, "encoder.lm_head.dense")), "encoder.lm_head.layer_norm")
    return x @ w["encoder.lm_head.weight"].T + w["encoder.lm_head.bias"]


def save_rna_fm(path, weights, **arguments):
    args = argparse.Namespace(arch="roberta_large", **arguments)
    torch.save({"args": args, "model": weights}, path)


@pytest.mark.parametrize("contact", [True, False])
def test_rna_fm(tmp_path, contact):
    weights = make_rna_fm(contact)
    path = tmp_path / "RNA-FM_pretrained.pth"
    save_rna_fm(path, weights, encoder_attention_heads=HEADS, encoder_layers=LAYERS)
    with pytest.raises(InputError, match="--allow-pickle"):
        import_checkpoint(path, out=tmp_path / "out")
    out = import_checkpoint(path, out=tmp_path / "out", allow_pickle=True)
    model, tokenizer = load_encoder(out)
    batch = tokenizer(["ACGU<mask>NACGU", "GG<mask>"], padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    expected = forward_rna_fm(weights, ids, mask)
    assert (logits - expected)[mask == 1].abs().max() < 1e-5 * expected.abs().max()
    assert tokenizer.model_max_length == PLACES - 2
    notes = read_manifest(out)["summary"]["notes"]
    assert notes == ([] if contact else ["the contact head is not in the file; it is zero here"])
    found = model.esm.contact_head.regression.weight
    if contact:
        assert torch.equal(found, weights["encoder.contact_head.regression.weight"])
    else:
        assert not found.any()


def test_rna_fm_is_refused_where_it_does_not_match(tmp_path):
    path = tmp_path / "RNA-FM_pretrained.pth"
    weights = make_rna_fm() | {"encoder.surprise.weight": torch.zeros(1)}
    save_rna_fm(path, weights, encoder_attention_heads=HEADS)
    with pytest.raises(InputError, match=r"1 names are not RNA-FM's: encoder\.surprise\.weight"):
        import_checkpoint(path, out=tmp_path / "out", allow_pickle=True)
    weights = make_rna_fm()
    save_rna_fm(path, weights)
    with pytest.raises(InputError, match="encoder_attention_heads"):
        import_checkpoint(path, out=tmp_path / "out", allow_pickle=True)
    del weights[f"{STACK}layers.1.fc2.bias"]
    save_rna_fm(path, weights, encoder_attention_heads=HEADS)
    with pytest.raises(InputError, match=r"1 missing keys: .*layer\.1\.output\.dense\.bias"):
        import_checkpoint(path, out=tmp_path / "out", allow_pickle=True)
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match=r"does not have RNA-FM's names"):
        import_checkpoint(path, out=tmp_path / "out", allow_pickle=True)
    path.write_bytes(b"PK\x03\x04 and nothing of the kind")
    with pytest.raises(InputError, match="cannot be opened"):
        import_checkpoint(path, out=tmp_path / "out", allow_pickle=True)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="is no checkpoint, neither safetensors nor"):
        import_checkpoint(path, out=tmp_path / "out", allow_pickle=True)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_runs_no_code_unasked(tmp_path):
    path, fuse = tmp_path / "model.pth", tmp_path / "ran"
    torch.save({"model": make_rna_fm(), "args": Bomb(fuse)}, path)
    with pytest.raises(InputError, match="is a pickle"):
        import_checkpoint(path, out=tmp_path / "out")
    assert not fuse.exists()


@pytest.mark.parametrize("kind", ["esm", "bert"])
def test_native_folders_are_validated(tmp_path, kind):
    tokenizer = make_dna_tokenizer()
    if kind == "esm":
        model, tokenizer = create_encoder("rna-fm-nano", attention="softmax1")
    else:
        model = BertForMaskedLM(
            BertConfig(
                vocab_size=15,
                hidden_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=8,
            )
        )
    save_encoder(model, tokenizer, tmp_path / "model")
    out = import_checkpoint(tmp_path / "model", out=tmp_path / "out")
    again, _ = load_encoder(out)
    for (name, a), (other, b) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(a, b)
    if kind == "esm":
        assert again.config.attention == "softmax1"
    save_file({"stranger": torch.zeros(1)}, tmp_path / "model/more.safetensors")
    with pytest.raises(InputError, match="stranger"):
        import_checkpoint(tmp_path / "model", out=tmp_path / "other")


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        import_checkpoint(tmp_path / "nowhere", out=tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"neither a config\.json nor"):
        import_checkpoint(tmp_path / "empty", out=tmp_path / "out")
    (tmp_path / "empty/a.safetensors").touch()
    with pytest.raises(InputError, match=r"a\.safetensors: damaged"):
        import_checkpoint(tmp_path / "empty", out=tmp_path / "out", architecture="rna-fm")
    save_file({"a": torch.zeros(1)}, tmp_path / "empty/a.safetensors")
    make_dna_tokenizer().save_pretrained(tmp_path / "empty")
    with pytest.raises(InputError, match=r"no folder with a config\.json"):
        import_checkpoint(tmp_path / "empty", out=tmp_path / "out", architecture="dnabert2")
    (tmp_path / "empty/config.json").write_text("[1]")
    with pytest.raises(InputError, match="holds no settings"):
        import_checkpoint(tmp_path / "empty", out=tmp_path / "out")


@pytest.mark.parametrize("architecture", ["auto", "dnabert2"])
def test_a_name_on_the_hub_is_to_be_downloaded_first(tmp_path, monkeypatch, architecture):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="hf download zhihan1996/DNABERT-2-117M --local-dir"):
        import_checkpoint("zhihan1996/DNABERT-2-117M", out="x", architecture=architecture)
    assert not [*tmp_path.iterdir()]


def test_the_card_names_where_it_came_from(tmp_path, dnabert2):
    card = (import_checkpoint(dnabert2[0], out=tmp_path / "out") / "README.md").read_text()
    assert "imported from `published`" in card
    assert "AutoModelForMaskedLM" in card
