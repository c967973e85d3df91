"""DNABERT-2 equals its description, has the published names, and works with transformers."""

import json
import subprocess
import sys

import pytest
import torch
from dnabert2_oracle import (
    SLOPES_OF_12,
    cross_entropy,
    forward,
    make_dna_tokenizer,
    make_weights,
    published_keys,
)
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    pipeline,
)

from frugalfm.encoders import load_encoder, save_encoder
from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
from frugalfm.encoders.dnabert2.layers import make_alibi, make_slopes
from frugalfm.encoders.dnabert2.modeling import (
    DnaBert2ForMaskedLM,
    DnaBert2ForSequenceClassification,
    DnaBert2Model,
)
from frugalfm.errors import InputError

HEADS = 4


def small(**changes):
    settings = {
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "intermediate_size": 48,
    }
    return DnaBert2Config(**(settings | changes))


@pytest.fixture
def batch():
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 40, (3, 11), generator=random)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    mask[2, 3:] = 0
    return torch.where(mask == 1, ids, 3), mask


def with_weights(attention=None, **changes):
    weights = make_weights()
    changes |= {} if attention is None else {"attention": attention}
    model = DnaBert2ForMaskedLM(small(**changes)).eval()
    model.load_state_dict(weights, strict=True)
    return model, weights


def test_published_size():
    with torch.device("meta"):
        model = DnaBert2ForMaskedLM(DnaBert2Config())
    assert sum(p.numel() for p in model.parameters()) == 117_074_176


def test_published_names_and_shapes():
    with torch.device("meta"):
        model = DnaBert2ForMaskedLM(DnaBert2Config())
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert found == published_keys(12, 768, 3072, 4096)


def test_slopes_and_bias():
    assert make_slopes(12).tolist() == pytest.approx(SLOPES_OF_12, rel=1e-6)
    assert make_slopes(8).tolist() == SLOPES_OF_12[:8]
    assert make_slopes(1).tolist() == [2**-8]
    assert len(make_slopes(20)) == 20
    alibi = make_alibi(12, 5)
    assert alibi.shape == (1, 12, 5, 5)
    assert alibi[0, 1, 0, 3] == alibi[0, 1, 3, 0] == -0.75


@pytest.mark.parametrize("implementation", [None, "sdpa", "eager", "softmax", "softmax1"])
def test_logits_equal_the_oracles(batch, implementation):
    ids, mask = batch
    one = implementation == "softmax1"
    model, weights = with_weights(implementation if one else None)
    if implementation and not one:
        model.set_attn_implementation(implementation)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
    expected = forward(weights, ids, mask, HEADS, one=one)
    error = (logits.double() - expected)[mask == 1].abs().max()
    assert error < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("attention", ["softmax", "softmax1"])
def test_batched_equals_single_and_pads_do_not_matter(batch, attention):
    ids, mask = batch
    model, _ = with_weights(attention)
    with torch.no_grad():
        together = model(ids, attention_mask=mask).logits
        other = model(torch.where(mask == 1, ids, 9), attention_mask=mask).logits
        assert torch.equal(together[mask == 1], other[mask == 1])
        for row, length in enumerate(mask.sum(1).tolist()):
            alone = model(ids[row : row + 1, :length]).logits[0]
            torch.testing.assert_close(together[row, :length], alone, rtol=1e-4, atol=1e-4)


def test_sequences_in_one_row_do_not_see_each_other():
    """With blocks along the diagonal: ALiBi depends on distances alone, so packing is exact."""
    model, _ = with_weights("softmax1")
    ids = torch.randint(5, 40, (1, 12))
    owner = torch.tensor([0] * 5 + [1] * 7)
    blocks = (owner[:, None] == owner[None, :])[None, None]
    with torch.no_grad():
        packed = model(ids, attention_mask=blocks).logits[0]
        apart = [model(part).logits[0] for part in (ids[:, :5], ids[:, 5:])]
    torch.testing.assert_close(packed, torch.cat(apart), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("one", [False, True])
def test_gradients_equal_the_oracles(batch, one):
    ids, mask = batch
    model, weights = with_weights("softmax1" if one else "softmax")
    labels = torch.where((mask == 1) & (torch.arange(11) % 3 == 0), ids, -100)
    model(ids, attention_mask=mask, labels=labels).loss.backward()
    leaves = {name: tensor.double().requires_grad_() for name, tensor in weights.items()}
    tied = "bert.embeddings.word_embeddings.weight"
    leaves["cls.predictions.decoder.weight"] = leaves[tied]
    cross_entropy(forward(leaves, ids, mask, HEADS, one=one), labels).backward()
    for name, parameter in model.named_parameters():
        expected = leaves[name].grad
        torch.testing.assert_close(parameter.grad.double(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("attention", ["softmax", "softmax1"])
def test_hidden_states_and_attentions(batch, attention):
    ids, mask = batch
    model, _ = with_weights(attention)
    with torch.no_grad():
        out = model(ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
        plain = model.bert(ids, attention_mask=mask)
    assert len(out.hidden_states) == 3
    assert torch.equal(out.hidden_states[-1], plain.last_hidden_state)
    assert [a.shape for a in out.attentions] == [(3, HEADS, 11, 11)] * 2
    for weights in out.attentions:
        assert (weights[2, :, :, 3:] == 0).all()
        mass = weights.sum(-1)
        if attention == "softmax":
            torch.testing.assert_close(mass, torch.ones_like(mass))
        else:
            assert (mass < 1).all()


def test_attentions_of_eager_are_those_of_fused(batch):
    ids, mask = batch
    model, _ = with_weights()
    with torch.no_grad():
        fused = model(ids, attention_mask=mask, output_attentions=True).attentions
        model.set_attn_implementation("eager")
        eager = model(ids, attention_mask=mask, output_attentions=True).attentions
    for a, b in zip(fused, eager, strict=True):
        torch.testing.assert_close(a, b)


def test_no_longest_sequence():
    model, _ = with_weights("softmax1")
    with torch.no_grad():
        assert model(torch.full((1, 1500), 7)).logits.isfinite().all()


@pytest.mark.parametrize("absent", [None, "decoder", "embeddings"])
def test_strict_loading_and_round_trip(tmp_path, batch, absent):
    ids, mask = batch
    weights = make_weights()
    expected = forward(weights, ids, mask, HEADS)
    small().save_pretrained(tmp_path)
    make_dna_tokenizer().save_pretrained(tmp_path)
    names = {
        "decoder": "cls.predictions.decoder.weight",
        "embeddings": "bert.embeddings.word_embeddings.weight",
    }
    file = {k: v.clone() for k, v in weights.items() if k != names.get(absent)}
    save_file(file, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, tokenizer = load_encoder(tmp_path)
    save_encoder(model, tokenizer, tmp_path / "again")
    again, _ = load_encoder(tmp_path / "again")
    for loaded in (model, again):
        assert type(loaded) is DnaBert2ForMaskedLM
        with torch.no_grad():
            logits = loaded(ids, attention_mask=mask).logits
        assert (logits - expected)[mask == 1].abs().max() < 1e-5 * expected.abs().max()
        embedded = loaded.bert.embeddings.word_embeddings.weight
        assert loaded.cls.predictions.decoder.weight is embedded


def test_unmatched_key_is_refused(tmp_path):
    weights = {k: v.clone() for k, v in make_weights().items()}
    weights["bert.embeddings.position_embeddings.weight"] = torch.zeros(512, 32)
    del weights["bert.encoder.layer.1.mlp.wo.bias"]
    small().save_pretrained(tmp_path)
    make_dna_tokenizer().save_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"layer\.1\.mlp\.wo\.bias.*position_embeddings"):
        load_encoder(tmp_path)


def test_auto_classes():
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = AutoConfig.for_model("dnabert2", **size)
    assert type(AutoModel.from_config(config)) is DnaBert2Model
    assert type(AutoModelForMaskedLM.from_config(config)) is DnaBert2ForMaskedLM
    labelled = AutoModelForSequenceClassification.from_config(config)
    assert isinstance(labelled, DnaBert2ForSequenceClassification)


@pytest.mark.parametrize(
    "order", ["frugalfm, transformers", "transformers.modeling_utils, frugalfm"]
)
def test_auto_classes_know_it_in_either_order_of_imports(tmp_path, order):
    save_encoder(with_weights("softmax1")[0], make_dna_tokenizer(), tmp_path)
    code = (
        f"import {order}; from transformers import AutoModelForMaskedLM; "
        f"m = AutoModelForMaskedLM.from_pretrained({str(tmp_path)!r}); "
        "print(type(m).__name__, m.config._attn_implementation)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "DnaBert2ForMaskedLM softmax1"


def test_stored_attention_binds(tmp_path):
    model, _ = with_weights("softmax1")
    save_encoder(model, make_dna_tokenizer(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["attention"] == "softmax1"
    with pytest.raises(InputError, match="trained with attention 'softmax1'"):
        AutoModel.from_pretrained(tmp_path, attn_implementation="eager")


def test_fill_mask_pipeline(tmp_path):
    tokenizer = make_dna_tokenizer()
    model = DnaBert2ForMaskedLM(small(vocab_size=len(tokenizer))).eval()
    save_encoder(model, tokenizer, tmp_path)
    fill = pipeline("fill-mask", model=str(tmp_path), device="cpu")
    found = fill("ACGT[MASK]AATT", top_k=3)
    assert len(found) == 3
    inputs = tokenizer("ACGT[MASK]AATT", return_tensors="pt")
    place = int((inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero())
    with torch.no_grad():
        chances = model(**inputs).logits[0, place].softmax(-1)
    assert found[0]["token"] == int(chances.argmax())
    assert found[0]["score"] == pytest.approx(float(chances.max()), rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (torch.tensor([0, 2, 1]), None),
        (torch.tensor([0.5, 2.0, -1.0]), "regression"),
        (torch.tensor([[0.0, 1.0, 1.0]] * 3), "multi_label_classification"),
    ],
)
def test_classifier(batch, labels, kind):
    ids, mask = batch
    outputs = 1 if kind == "regression" else 3
    config = small(num_labels=outputs, problem_type=kind)
    model = DnaBert2ForSequenceClassification(config).eval()
    out = model(ids, attention_mask=mask, labels=labels)
    first = model.bert(ids, attention_mask=mask).last_hidden_state[:, 0]
    pooled = torch.tanh(first @ model.bert.pooler.dense.weight.T + model.bert.pooler.dense.bias)
    expected = pooled @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(out.logits, expected)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_dropout_is_where_it_belongs(batch):
    ids, mask = batch
    model, _ = with_weights()
    model.train()
    torch.manual_seed(0)
    with torch.no_grad():
        a, b = (model(ids, attention_mask=mask).logits for _ in range(2))
    assert not torch.equal(a, b)
    still = DnaBert2ForMaskedLM(small(hidden_dropout_prob=0.0)).train()
    with torch.no_grad():
        a, b = (still(ids, attention_mask=mask).logits for _ in range(2))
    assert torch.equal(a, b)


def test_gradient_checkpointing_changes_nothing(batch):
    ids, mask = batch
    grads = []
    for use in (False, True):
        model, _ = with_weights("softmax1", hidden_dropout_prob=0.0)
        model.train()
        if use:
            model.gradient_checkpointing_enable()
        model(ids, attention_mask=mask, labels=ids).loss.backward()
        grads.append(model.bert.encoder.layer[0].attention.self.Wqkv.weight.grad)
    torch.testing.assert_close(*grads)


def test_bf16_autocast(batch):
    ids, mask = batch
    model, _ = with_weights("softmax1")
    with torch.no_grad():
        exact = model(ids, attention_mask=mask).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(ids, attention_mask=mask).logits
    assert (rough.float() - exact)[mask == 1].abs().mean() < 0.05 * exact.abs().mean()


def test_lora_trains_and_merges(batch):
    peft = pytest.importorskip("peft")
    ids, mask = batch
    model = DnaBert2ForSequenceClassification(small(attention="softmax1", num_labels=2))
    before = model.bert.encoder.layer[0].attention.self.Wqkv.weight.clone()
    settings = peft.LoraConfig(r=2, target_modules=["Wqkv"], task_type="SEQ_CLS")
    wrapped = peft.get_peft_model(model, settings)
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        wrapped(ids, attention_mask=mask, labels=torch.tensor([0, 1, 1])).loss.backward()
        optimizer.step()
    wrapped.eval()
    with torch.no_grad():
        tuned = wrapped(ids, attention_mask=mask).logits
        merged = wrapped.merge_and_unload()
        torch.testing.assert_close(merged(ids, attention_mask=mask).logits, tuned)
    assert not torch.equal(merged.bert.encoder.layer[0].attention.self.Wqkv.weight, before)


def test_trainer(tmp_path, batch):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    ids, mask = batch
    rows = [
        {"input_ids": i, "attention_mask": m, "labels": n % 2}
        for n, (i, m) in enumerate(zip(ids, mask, strict=True))
    ]
    model = DnaBert2ForSequenceClassification(small(attention="softmax1", num_labels=2))
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, report_to=[], disable_tqdm=True
    )
    result = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    assert result.train().global_step == 2
    assert result.evaluate()["eval_loss"] > 0
    result.save_model(str(tmp_path / "saved"))
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    assert again.config._attn_implementation == "softmax1"
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            again(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits
        )
