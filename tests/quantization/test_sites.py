"""Every linear is quantized or listed with a reason."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    EsmForSequenceClassification,
)

from frugalfm.attention.binding import find_attentions
from frugalfm.encoders import create_encoder
from frugalfm.encoders.anatomy import describe_encoder
from frugalfm.errors import InputError
from frugalfm.quantization.sites import abbreviate, survey_sites
from frugalfm.training.pairs import make_pair_model

sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
from architectures import DESCRIBED, MLM, make_mlm


def check_complete(model, extent="linears", *, tables=False):
    survey = survey_sites(model, extent, tables=tables)
    quantized = [site.name for site in survey.linears]
    others = {place.name: place.reason for place in survey.left_out}
    assert len(set(quantized)) == len(quantized)
    assert not set(quantized) & set(others)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert (name in quantized) != (name in others)
        elif isinstance(module, nn.LayerNorm):
            assert name in others
        elif isinstance(module, nn.Embedding):
            assert name in others or name in {site.module for site in survey.places}
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
    tuned = EsmForSequenceClassification(model.config)
    head = ["classifier.dense", "classifier.out_proj"]
    quantized, others = check_complete(tuned)
    assert not set(quantized) & set(head)
    assert all(others[name].startswith("the task's head") for name in head)
    assert check_complete(tuned, "all")[0][-2:] == head


@pytest.mark.parametrize("kind", DESCRIBED)
@pytest.mark.parametrize(
    "auto", [AutoModelForSequenceClassification, AutoModelForTokenClassification]
)
def test_a_head_with_as_many_classes_as_the_vocabulary_is_no_masked_language_head(kind, auto):
    config = MLM[kind]()
    config.num_labels = config.vocab_size
    model = auto.from_config(config).eval()
    quantized, others = check_complete(model)
    head = [name for name, reason in others.items() if reason.startswith("the task's head")]
    assert head
    assert not any(name.startswith(("classifier", "score")) for name in quantized)
    assert set(head) <= set(check_complete(model, "all")[0])


@pytest.mark.parametrize("kind", DESCRIBED)
def test_the_heads_of_masked_language_models_and_of_none(kind):
    """A bare encoder as wide as its vocabulary is one, too."""
    model = make_mlm(kind)
    survey = survey_sites(model)
    head = set(describe_encoder(model).head)
    assert head - survey.tied.keys() <= {site.name for site in survey.linears}
    assert not any("task's head" in place.reason for place in survey.left_out)
    config = MLM[kind]()
    config.vocab_size = config.hidden_size
    bare = AutoModel.from_config(config).eval()
    quantized, _ = check_complete(bare)
    assert not set(quantized) & set(describe_encoder(bare).head)


def test_abbreviate():
    names = ["a.0.b", "a.0.c", "a.1.b", "a.1.c", "a.3.c", "head"]
    assert abbreviate(names) == ["a.{0..1}.b", "a.{0,1,3}.c", "head"]
    assert abbreviate(["a.7.b"]) == ["a.7.b"]


@pytest.mark.parametrize("kind", DESCRIBED)
def test_every_extent_is_complete_and_holds_the_smaller_one(kind):
    model = make_mlm(kind)
    found = {}
    for extent in ("linears", "attention", "all"):
        for tables in (False, True):
            check_complete(model, extent, tables=tables)
        found[extent] = {site.name: site for site in survey_sites(model, extent).sites}
    assert found["linears"].items() <= found["attention"].items() <= found["all"].items()
    roles = [site.role for site in found["attention"].values() if site.kind == "attention"]
    assert sorted(roles) == sorted(["query", "key", "probabilities", "value"] * 3)
    for name, site in found["all"].items():
        assert isinstance(model.get_submodule(site.module), nn.Module), name
        if site.kind == "attention":
            assert site.module in {
                n for n, m in model.named_modules() if m in find_attentions(model)
            }


def test_what_is_read_has_its_name():
    reads = {site.role: site.reads for site in survey_sites(make_mlm("dnabert2")).sites}
    assert reads["attention_out"] == "context"
    assert reads["ffn_out"] == "gated product"
    assert reads["query+key+value"] == reads["head"] == "states"
    for kind, product in (("bert", "hidden activation"), ("esmc", "gated product")):
        reads = {site.role: site.reads for site in survey_sites(make_mlm(kind)).sites}
        assert reads["ffn_out"] == product


def test_norms_feed_the_linears_after_them():
    """Post-LN: two linears' worth of readers; pre-LN: rounded only as what linears read."""
    bert = {s.name: s.feeds for s in survey_sites(make_mlm("bert"), "all").sites}
    layer = "bert.encoder.layer.{}."
    qkv = tuple(layer.format(1) + f"attention.self.{x}" for x in ("query", "key", "value"))
    assert bert[layer.format(0) + "output.LayerNorm.(output)"] == qkv
    first = tuple(name.replace("layer.1", "layer.0") for name in qkv)
    assert bert["bert.embeddings.LayerNorm.(output)"] == first
    inside = (layer.format(0) + "intermediate.dense",)
    assert bert[layer.format(0) + "attention.output.LayerNorm.(output)"] == inside
    head = ("cls.predictions.transform.dense",)
    assert bert[layer.format(2) + "output.LayerNorm.(output)"] == head
    survey = survey_sites(make_mlm("esm2"), "all")
    names = [site.name for site in survey.sites]
    assert "esm.encoder.layer.1.LayerNorm.(output)" not in names
    assert "esm.encoder.layer.1.LayerNorm.(input)" in names
    others = {place.name: place.reason for place in survey.left_out}
    assert "linears that read it" in others["esm.encoder.layer.1.LayerNorm.(output)"]
    assert "esm.encoder.layer.1.(running residual sum)" in others


def test_a_tied_decoder_is_quantized_if_asked_for():
    model = make_mlm("bert")
    decoder = "cls.predictions.decoder"
    assert decoder not in [s.name for s in survey_sites(model, "attention").linears]
    assert decoder in [s.name for s in survey_sites(model, "all").linears]
    others = {place.name for place in survey_sites(model, "all").left_out}
    assert {f"{decoder}.(weight)", "bert.embeddings.word_embeddings"} <= others
    survey = survey_sites(model, tables=True)
    assert not others & {f"{decoder}.(weight)"} & {p.name for p in survey.left_out}
    assert decoder in [s.name for s in survey.linears]
    table = "bert.embeddings.word_embeddings"
    assert survey.tied == {decoder: table}
    assert f"{table}.(table)" in [s.name for s in survey.places]


def test_models_for_pairs_are_surveyed_by_what_they_run():
    encoder, _ = create_encoder("rna-fm-nano")
    for what in ("sequences", "positions"):
        model = make_pair_model(encoder, what)
        survey = survey_sites(model, "all", tables=True)
        names = [site.name for site in survey.linears]
        assert all(name.startswith(("encoder.esm.", "head.")) for name in names)
        assert any(name.startswith("head.") for name in names)
        others = {place.name: place.reason for place in survey.left_out}
        assert "does not run" in others["encoder.lm_head.dense"]
        assert not any("lm_head" in site.name for site in survey.sites)


def test_unknown_extents_are_refused():
    with pytest.raises(InputError, match="use linears, attention, all"):
        survey_sites(make_mlm("bert"), "everything")
