"""Every linear is quantized or listed with a reason."""

import torch
from torch import nn
from transformers import EsmForSequenceClassification

from frugalfm.encoders import create_encoder
from frugalfm.quantization.sites import abbreviate, survey_sites


def check_complete(model):
    survey = survey_sites(model)
    quantized = [site.name for site in survey.sites]
    others = {place.name: place.reason for place in survey.left_out}
    assert len(set(quantized)) == len(quantized)
    assert not set(quantized) & set(others)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert (name in quantized) != (name in others)
        elif isinstance(module, nn.Embedding | nn.LayerNorm):
            assert name in others
    assert all(others.values())
    return quantized, others


def test_masked_language_model_is_complete():
    model, _ = create_encoder("rna-fm-tiny")
    quantized, others = check_complete(model)
    assert len(quantized) == 4 * 6 + 1
    assert quantized[-1] == "lm_head.dense"
    assert "token embeddings" in others["lm_head.decoder"]
    for place in ("queries x keys", "probabilities", "probabilities x values", "residual sums"):
        assert f"esm.encoder.layer.3.({place})" in others


def test_untied_decoder_is_quantized():
    model, _ = create_encoder("rna-fm-tiny")
    model.lm_head.decoder.weight = nn.Parameter(torch.zeros(25, 128))
    quantized, _ = check_complete(model)
    assert quantized[-2:] == ["lm_head.dense", "lm_head.decoder"]


def test_classifier_is_complete():
    model, _ = create_encoder("rna-fm-tiny")
    quantized, _ = check_complete(EsmForSequenceClassification(model.config))
    assert quantized[-2:] == ["classifier.dense", "classifier.out_proj"]


def test_abbreviate():
    names = ["a.0.b", "a.0.c", "a.1.b", "a.1.c", "a.3.c", "head"]
    assert abbreviate(names) == ["a.{0..1}.b", "a.{0,1,3}.c", "head"]
    assert abbreviate(["a.7.b"]) == ["a.7.b"]
