"""Labels of residues from tokens of several: laid out by residue, learnt, and reloaded."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoConfig, AutoModelForTokenClassification

from frugalfm.encoders import create_encoder
from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
from frugalfm.encoders.dnabert2.modeling import DnaBert2ForMaskedLM
from frugalfm.encoders.heads import add_head, load_head
from frugalfm.encoders.pieces import PieceClassifier
from frugalfm.errors import InputError
from frugalfm.tasks import read_task
from frugalfm.tokens.codec import Codec
from frugalfm.training.labelled import TuningData, piece_sizes
from frugalfm.training.tuned import evaluate_tuned, make_tunable
from frugalfm.training.tuning import TuningRecipe, predict, tune

sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
from dnabert2_oracle import make_dna_tokenizer


@pytest.fixture(scope="module")
def encoder():
    tokenizer = make_dna_tokenizer()
    torch.manual_seed(0)
    config = DnaBert2Config(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64,
    )  # fmt: skip
    return DnaBert2ForMaskedLM(config).eval(), tokenizer


@pytest.fixture
def task(tmp_path):
    """Each residue's ring."""
    random = np.random.default_rng(0)
    folder = tmp_path / "t"
    folder.mkdir()
    for name, size in (("train", 120), ("dev", 20), ("test", 20)):
        lines = ["sequence,structure"]
        for _ in range(size):
            sequence = "".join(random.choice(list("ACGT"), int(random.integers(12, 40))))
            lines.append(f"{sequence},{sequence.translate(str.maketrans('ACGT', 'RYRY'))}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return read_task(folder, "dna")


def test_logits_by_hand():
    torch.manual_seed(0)
    head = PieceClassifier(width=6, classes=2, longest=3, vocabulary=5)
    head.sizes.copy_(torch.tensor([0, 0, 1, 2, 3]))
    ids = torch.tensor([[0, 4, 2, 1], [0, 3, 1, 1]])
    states = torch.randn(2, 4, 6)
    found = head(states, ids)
    weight, bias = head.places.weight.view(3, 2, 6), head.places.bias.view(3, 2)
    assert found.shape == (2, 6, 2)
    expected = torch.zeros(2, 6, 2)
    for row, place, token, at in [(0, 1, 1, 0), (0, 2, 1, 1), (0, 3, 1, 2), (0, 4, 2, 0),
                                  (1, 1, 1, 0), (1, 2, 1, 1)]:  # fmt: skip
        expected[row, place] = weight[at] @ states[row, token] + bias[at]
    torch.testing.assert_close(found, expected)


def test_sizes_are_those_of_the_pieces(encoder):
    codec = Codec.from_tokenizer(encoder[1])
    sizes = np.array(piece_sizes(codec))
    texts = ["ACGTNNACCA", "GGGGGATTA"]
    tokens, lengths = codec.encode(pa.array(texts))
    for text, row in zip(texts, np.split(tokens, np.cumsum(lengths)[:-1]), strict=True):
        assert sizes[row].sum() == len(text)
    assert sizes[[codec.cls_id, codec.eos_id, codec.pad_id, codec.mask_id]].sum() == 0
    assert sizes.max() > 1


@pytest.mark.parametrize("method", ["full", "lora"])
def test_learns_reloads_and_ignores_pads(tmp_path, encoder, task, method):
    if method == "lora":
        peft = pytest.importorskip("peft")
    codec = Codec.from_tokenizer(encoder[1])
    recipe = TuningRecipe(epochs=8, learning_rate=1e-2, warmup_steps=2)
    model = make_tunable(encoder[0], task, method, recipe, codec=codec)
    tuned = tune(model, task, recipe, codec)
    assert tuned.start is None  # there is no probe for it
    result = evaluate_tuned(model, task, recipe, codec, max_tokens=None, how={}, resamples=0)
    assert result.metrics["test"]["mcc"]["value"] > 0.9
    data = TuningData.encode(task.test, "token", codec, None)
    expected = predict(model, data, recipe)
    assert len(expected) == task.test.lengths.sum()
    alone = predict(model, data, replace(recipe, batch_tokens=1))
    np.testing.assert_allclose(alone, expected, atol=1e-5)
    model.save_pretrained(tmp_path / "m")
    if method == "full":
        again = load_head(tmp_path / "m")
    else:
        fresh = make_tunable(encoder[0], task, "full", replace(recipe, seed=5), codec=codec)
        again = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "m")).eval()
    assert np.array_equal(predict(again, data, recipe), expected)


def test_without_sizes_it_says_so(encoder):
    with pytest.raises(InputError, match="pieces"):
        add_head(encoder[0], "token", ["a", "b"])


@pytest.mark.parametrize("longest", [1, 9])
def test_a_head_that_knows_no_pieces_says_so(tmp_path, encoder, longest):
    """Made by transformers of a checkpoint without a head, as PEFT and pipelines do."""
    codec = Codec.from_tokenizer(encoder[1])
    sizes = piece_sizes(codec)
    assert 1 < max(sizes) <= 9
    encoder[0].save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.longest_piece = longest
    model = AutoModelForTokenClassification.from_pretrained(tmp_path, config=config).eval()
    assert not model.classifier.sizes.any()
    ids = encoder[1]("ACGTAATTTGCA", return_tensors="pt")["input_ids"]
    with pytest.raises(InputError, match="set_pieces"):
        model(ids)
    if longest == 1:
        with pytest.raises(InputError, match="longest_piece"):
            model.set_pieces(sizes)
        return
    model.set_pieces(sizes)
    with torch.no_grad():
        assert model(ids).logits.shape == (1, 12 + 2, 2)
    model.save_pretrained(tmp_path / "again")  # and what is known stays known
    again = AutoModelForTokenClassification.from_pretrained(tmp_path / "again")
    assert again.classifier.sizes.tolist() == sizes


def test_another_architecture_of_pieces_is_refused(encoder):
    with pytest.raises(InputError, match="one token a residue"):
        add_head(create_encoder("rna-fm-nano")[0], "token", ["a", "b"], pieces=[0, 1, 2])
