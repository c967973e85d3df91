"""PEFT without our loader predicts the same, or says what to load an adapter with; and the card."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from frugalfm.encoders.heads import add_head
from frugalfm.training.adapters import ADAPTERS, add_adapter, find_misreading, save_adapter
from frugalfm.training.pairs import make_pair_model

sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
from architectures import DESCRIBED, make_mlm

peft = pytest.importorskip("peft")
NEEDS_4_BITS = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="optional"
)
MEAN = {"rna-fm", "esm2", "esmc", "dnabert2", "modernbert"}


def run(model):
    ids = torch.tensor([[0, 5, 6, 7, 8, 2], [0, 9, 8, 2, 1, 1]])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=(ids != 1).long()).logits


def adapt(encoder, problem, pooling="auto", method="lora", pieces=None):
    """An adapter and a head far from where they started."""
    head = add_head(encoder, problem, ["a", "b", "c"], 1, pooling, pieces)
    task = "TOKEN_CLS" if problem == "token" else "SEQ_CLS"
    adapted = add_adapter(head, ADAPTERS[method], task_type=task).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return adapted


def load_alone(problem, base, folder):
    """As PEFT's own documentation has it."""
    auto = (
        AutoModelForTokenClassification
        if problem == "token"
        else AutoModelForSequenceClassification
    )
    plain = auto.from_pretrained(base, num_labels=3)
    return peft.PeftModel.from_pretrained(plain, str(folder)).eval()


@pytest.mark.parametrize("kind", DESCRIBED)
@pytest.mark.parametrize(
    ("problem", "pooling"), [("single_label", "auto"), ("single_label", "cls"), ("token", "auto")]
)
def test_the_same_or_refused(kind, problem, pooling, tmp_path):
    pieces = [0, 0, 0, *[1, 2] * 15] if (kind, problem) == ("dnabert2", "token") else None
    make_mlm(kind).save_pretrained(tmp_path / "base")
    encoder = AutoModelForMaskedLM.from_pretrained(tmp_path / "base")
    adapted = adapt(encoder, problem, pooling, pieces=pieces)
    misreading = find_misreading(adapted, encoder.config, "lora")
    save_adapter(adapted, tmp_path / "adapter", "lora", misreading)
    over_mean = problem != "token" and pooling == "auto" and kind in MEAN
    assert (misreading is not None) == (over_mean or pieces is not None)
    if misreading is None:
        again = load_alone(problem, tmp_path / "base", tmp_path / "adapter")
        torch.testing.assert_close(run(again), run(adapted), rtol=0, atol=1e-6)
        return
    with pytest.raises(ValueError, match=r"head .*; load it with .*load_tuned.*--merge"):
        load_alone(problem, tmp_path / "base", tmp_path / "adapter")
    auto = AutoModelForSequenceClassification
    with pytest.raises(ValueError, match="load_tuned"):  # transformers reads adapters, too
        auto.from_pretrained(tmp_path / "adapter", local_files_only=True)


@NEEDS_4_BITS
@pytest.mark.parametrize("method", ["qlora", "loftq"])
def test_four_bits_are_refused_whatever_the_head(method, tmp_path):
    encoder = make_mlm("bert")
    encoder.save_pretrained(tmp_path / "base")
    adapted = adapt(encoder, "single_label", method=method)
    save_adapter(adapted, tmp_path, method, find_misreading(adapted, encoder.config, method))
    with pytest.raises(ValueError, match=r"4 bits; load it with .*load_tuned"):
        load_alone("single_label", tmp_path / "base", tmp_path)


def test_pairs_are_refused_by_name(tmp_path):
    encoder = make_mlm("bert")
    adapted = add_adapter(
        make_pair_model(encoder, "sequences", 2), ADAPTERS["lora"], task_type=None
    )
    save_adapter(adapted, tmp_path, "lora", find_misreading(adapted, encoder.config, "lora"))
    stored = json.loads((tmp_path / "adapter_config.json").read_text())["task_type"]
    assert stored.startswith("that PEFT alone would misread, as its head for pairs")
    with pytest.raises(ValueError, match="load_tuned"):
        peft.PeftModel.from_pretrained(encoder, str(tmp_path))
