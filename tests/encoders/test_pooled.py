"""The head over the mean of the residues, and transformers' own beside it."""

import copy

import numpy as np
import pytest
import torch
from architectures import make_mlm
from transformers import AutoModelForSequenceClassification, EsmForSequenceClassification

from frugalfm.encoders import create_encoder
from frugalfm.encoders.heads import add_head, load_head
from frugalfm.encoders.pooled import mean_of_residues
from frugalfm.errors import InputError


def test_mean_is_of_residues_alone():
    random = np.random.default_rng(0)
    states = random.normal(size=(3, 7, 4))
    lengths = [5, 1, 3]  # residues
    mask = np.array([[1] * (n + 2) + [0] * (5 - n) for n in lengths])
    expected = np.stack([row[1 : n + 1].mean(0) for row, n in zip(states, lengths, strict=True)])
    states[mask == 0] = np.nan
    found = mean_of_residues(torch.from_numpy(states), torch.from_numpy(mask))
    np.testing.assert_allclose(found, expected)


def test_without_pooling_it_is_transformers_own():
    encoder, tokenizer = create_encoder("rna-fm-nano")
    model = add_head(encoder, "single_label", ["a", "b"], seed=1, pooling="cls")
    own = EsmForSequenceClassification(copy.deepcopy(model.config)).eval()
    own.load_state_dict(model.state_dict())
    batch = tokenizer(["ACGU", "GGGGGAA"], padding=True, return_tensors="pt")
    labels = torch.tensor([0, 1])
    with torch.no_grad():
        ours, theirs = model(**batch, labels=labels), own(**batch, labels=labels)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.loss, theirs.loss)


@pytest.mark.parametrize(
    ("problem", "classes", "labels"),
    [
        ("single_label", ["a", "b", "c"], torch.tensor([2, 0])),
        ("multi_label", ["a", "b", "c"], torch.tensor([[1.0, 0, 1], [0, 0, 1]])),
        ("regression", [], torch.tensor([0.3, -1.0])),
    ],
)
def test_pooled_round_trip_and_loss(tmp_path, problem, classes, labels):
    encoder, tokenizer = create_encoder("rna-fm-nano")
    model = add_head(encoder, problem, classes, seed=1)
    model.save_pretrained(tmp_path)
    batch = tokenizer(["ACGU", "GGGGGAA"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch, labels=labels)
        for again in (
            load_head(tmp_path),
            AutoModelForSequenceClassification.from_pretrained(tmp_path),
        ):
            torch.testing.assert_close(again.eval()(**batch).logits, expected.logits)
        loss, logits = model(**batch, labels=labels, return_dict=False)
    torch.testing.assert_close(logits, expected.logits)
    z, y = logits.double().numpy(), labels.numpy()
    if problem == "single_label":
        truth = np.mean([np.log(np.exp(row).sum()) - row[i] for row, i in zip(z, y, strict=True)])
    elif problem == "multi_label":
        truth = np.mean(np.log1p(np.exp(z)) - y * z)
    else:
        truth = np.mean((z[:, 0] - y) ** 2)
    assert float(loss) == pytest.approx(truth, rel=1e-5)


def test_no_mean_for_residues():
    with pytest.raises(InputError, match="--pooling"):
        add_head(create_encoder("rna-fm-nano")[0], "token", ["a", "b"], pooling="mean")


@pytest.mark.parametrize("kind", ["rna-fm", "esmc", "dnabert2"])
def test_every_class_of_ours_reads_the_mean_and_reloads(tmp_path, kind):
    encoder = make_mlm(kind)
    model = add_head(encoder, "single_label", ["a", "b", "c"], seed=1)
    assert model.config.pooling == "mean"
    ids = torch.randint(4, 30, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(9) < torch.tensor([[9], [5], [7]])).long()
    with torch.no_grad():
        trunk = getattr(encoder, encoder.base_model_prefix)
        states = trunk(input_ids=ids, attention_mask=mask).last_hidden_state
        means = torch.stack(
            [row[1 : n - 1].mean(0) for row, n in zip(states, (9, 5, 7), strict=True)]
        )
        expected = model.classifier(means)
        torch.testing.assert_close(model(ids, attention_mask=mask).logits, expected)
        model.save_pretrained(tmp_path)
        torch.testing.assert_close(load_head(tmp_path)(ids, attention_mask=mask).logits, expected)
    assert not any("pooler" in name for name in model.state_dict())


def test_modernbert_pools_by_a_setting_of_transformers_own():
    model = add_head(make_mlm("modernbert"), "single_label", ["a", "b"])
    assert model.config.classifier_pooling == "mean"
    assert type(model).__module__.startswith("transformers.")
    own = add_head(make_mlm("modernbert"), "single_label", ["a", "b"], pooling="cls")
    assert own.config.classifier_pooling == "cls"


def test_bert_keeps_the_head_that_transformers_knows():
    model = add_head(make_mlm("bert"), "single_label", ["a", "b"])
    assert type(model).__name__ == "BertForSequenceClassification"
    with pytest.raises(InputError, match="--pooling"):
        add_head(make_mlm("bert"), "single_label", ["a", "b"], pooling="mean")
