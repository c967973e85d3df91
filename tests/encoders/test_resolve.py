"""What a user may name as a model, and what is refused."""

import json

import pytest
import torch

from frugalfm.encoders import create_encoder, open_model, save_encoder
from frugalfm.errors import InputError
from frugalfm.tokens.codec import Codec


def write_config(folder, **changes):
    model, _ = create_encoder("rna-fm-nano")
    config = model.config.to_dict() | {"num_hidden_layers": 2, "attention": None} | changes
    path = folder / "mine.json"
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "attn_implementation"}))
    return path


def test_named_size():
    model, tokenizer, path = open_model("rna-fm-nano", attention="softmax1", seed=3)
    assert path is None
    assert model.config.attention == "softmax1"
    other, _ = create_encoder("rna-fm-nano", attention="softmax1", seed=3)
    assert torch.equal(model.lm_head.dense.weight, other.lm_head.dense.weight)
    assert Codec.from_tokenizer(tokenizer).max_residues == 1022


def test_config_file(tmp_path):
    path = write_config(
        tmp_path, hidden_size=32, num_attention_heads=2, max_position_embeddings=104
    )
    model, tokenizer, found = open_model(str(path), attention="softmax1", seed=1)
    assert found == path
    assert len(model.esm.encoder.layer) == 2
    assert model.config.attention == model.config._attn_implementation == "softmax1"
    assert Codec.from_tokenizer(tokenizer).max_residues == 100
    ids = tokenizer("ACGU" * 25, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert model(input_ids=ids).logits.shape == (1, 102, 25)


def test_checkpoint_keeps_its_attention(tmp_path):
    model, tokenizer = create_encoder("rna-fm-nano", attention="softmax1", seed=1)
    save_encoder(model, tokenizer, tmp_path / "model")
    again, _, path = open_model(str(tmp_path / "model"))
    assert path == tmp_path / "model"
    assert again.config.attention == "softmax1"
    with pytest.raises(InputError, match=r"was trained with attention 'softmax1'.*leave --att"):
        open_model(str(tmp_path / "model"), attention="softmax")


def test_foreign_checkpoint_without_the_field_is_softmax(tmp_path):
    model, tokenizer = create_encoder("rna-fm-nano", seed=1)
    save_encoder(model, tokenizer, tmp_path / "model")
    path = tmp_path / "model/config.json"
    config = json.loads(path.read_text())
    del config["attention"], config["attn_implementation"]
    path.write_text(json.dumps(config))
    again, _, _ = open_model(str(tmp_path / "model"))
    assert again.config.attention == "softmax"
    with pytest.raises(InputError, match=r"softmax.*`frugalfm convert --attention softmax1`"):
        open_model(str(tmp_path / "model"), attention="softmax1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"model_type": "bert"}, "model_type must be 'esm'"), ({"vocab_size": 40}, "vocab_size 25")],
)
def test_other_configs_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        open_model(str(write_config(tmp_path, **changes)))


def test_what_is_nothing_lists_what_could_be(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"rna-fm-tiny.*config\.json.*checkpoint folder"):
        open_model("rna-fm-enormous")
    with pytest.raises(InputError, match="hf download org/model"):
        open_model("org/model")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match="not a transformers config"):
        open_model(str(tmp_path / "broken.json"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rna-fm-tiny").mkdir()
    with pytest.raises(InputError, match=r"\./rna-fm-tiny"):
        open_model("rna-fm-tiny")
