"""The name is registered, stored, honoured and enforced; pads are never attended."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig, BertModel

from frugalfm.attention.interface import install
from frugalfm.encoders import create_encoder, load_encoder, save_encoder
from frugalfm.errors import InputError

SEQUENCES = ["ACGUACGUAGGCUA", "ACG", "GGGCUAUUCG", "A"]


def logits(model, tokenizer, sequences):
    batch = tokenizer(sequences, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("attention", ["softmax", "softmax1"])
def test_batched_equals_single(attention):
    model, tokenizer = create_encoder("rna-fm-tiny", attention=attention, seed=1)
    together = logits(model, tokenizer, SEQUENCES)
    for row, sequence in zip(together, SEQUENCES, strict=True):
        alone = logits(model, tokenizer, [sequence])[0]
        torch.testing.assert_close(row[: len(alone)], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["softmax", "softmax1"])
def test_pad_content_does_not_matter(attention):
    model, tokenizer = create_encoder("rna-fm-tiny", attention=attention, seed=1)
    batch = tokenizer(SEQUENCES, padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    positions = (mask.cumsum(1) * mask + 1).clamp_max(1000)
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        other = torch.where(mask == 1, ids, 5)
        after = model(input_ids=other, attention_mask=mask, position_ids=positions).logits
    assert torch.equal(before[mask == 1], after[mask == 1])


def test_softmax1_differs_from_softmax():
    plain, tokenizer = create_encoder("rna-fm-tiny", attention="softmax", seed=1)
    other, _ = create_encoder("rna-fm-tiny", attention="softmax1", seed=1)
    assert torch.equal(plain.lm_head.dense.weight, other.lm_head.dense.weight)
    difference = logits(plain, tokenizer, SEQUENCES) - logits(other, tokenizer, SEQUENCES)
    assert difference.abs().max() > 1e-3


def test_name_survives_saving_and_binds_on_loading(tmp_path):
    model, tokenizer = create_encoder("rna-fm-tiny", attention="softmax1")
    save_encoder(model, tokenizer, tmp_path / "a")
    assert json.loads((tmp_path / "a/config.json").read_text())["attention"] == "softmax1"

    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "a")
    assert again.config._attn_implementation == "softmax1"
    again.save_pretrained(tmp_path / "b")  # even without a forward pass in between
    loaded, _ = load_encoder_with_tokenizer_of(tmp_path / "b", tokenizer)
    assert loaded.config._attn_implementation == "softmax1"
    torch.testing.assert_close(
        logits(loaded, tokenizer, SEQUENCES), logits(model, tokenizer, SEQUENCES)
    )


def load_encoder_with_tokenizer_of(folder, tokenizer):
    tokenizer.save_pretrained(folder)
    return load_encoder(folder)


@pytest.mark.parametrize("other", ["sdpa", "eager", "softmax"])
def test_another_attention_is_refused(tmp_path, other):
    model, tokenizer = create_encoder("rna-fm-tiny", attention="softmax1")
    save_encoder(model, tokenizer, tmp_path / "a")
    with pytest.raises(InputError, match="trained with attention 'softmax1'"):
        AutoModel.from_pretrained(tmp_path / "a", attn_implementation=other)


def test_softmax_checkpoint_runs_with_any_softmax_but_not_softmax1(tmp_path):
    model, tokenizer = create_encoder("rna-fm-tiny", attention="softmax")
    save_encoder(model, tokenizer, tmp_path / "a")
    eager = AutoModelForMaskedLM.from_pretrained(tmp_path / "a", attn_implementation="eager")
    torch.testing.assert_close(
        logits(eager, tokenizer, SEQUENCES),
        logits(model, tokenizer, SEQUENCES),
        rtol=1e-4,
        atol=1e-5,
    )
    with pytest.raises(InputError, match="trained with attention 'softmax'"):
        AutoModel.from_pretrained(tmp_path / "a", attn_implementation="softmax1")


def test_transformers_alone_refuses_a_softmax1_checkpoint(tmp_path):
    """Without FrugalFM the checkpoint must not load as a softmax model without a word."""
    model, tokenizer = create_encoder("rna-fm-tiny", attention="softmax1")
    save_encoder(model, tokenizer, tmp_path / "a")
    code = f"from transformers import AutoModel; AutoModel.from_pretrained({str(tmp_path / 'a')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "softmax1" in done.stderr


@pytest.mark.parametrize("order", ["frugalfm, transformers", "transformers, frugalfm"])
def test_import_order_does_not_matter(tmp_path, order):
    model, tokenizer = create_encoder("rna-fm-tiny", attention="softmax1")
    save_encoder(model, tokenizer, tmp_path / "a")
    code = (
        f"import {order}; from transformers import AutoModel; "
        f"m = AutoModel.from_pretrained({str(tmp_path / 'a')!r}); "
        "print(m.config._attn_implementation)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "softmax1"


def test_other_models_take_it_too():
    install()  # A second call changes nothing.
    config = BertConfig(
        vocab_size=30,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        attn_implementation="softmax1",
    )
    torch.manual_seed(0)
    model = BertModel(config).eval()
    ids = torch.randint(5, 30, (2, 9))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 5:] = 0
    with torch.no_grad():
        batched = model(ids, attention_mask=mask).last_hidden_state
        single = model(ids[1:, :5]).last_hidden_state
    torch.testing.assert_close(batched[1:, :5], single, rtol=1e-4, atol=1e-5)
