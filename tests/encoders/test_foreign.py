"""What cannot be imported is refused with the name that the user gave, and what it is instead."""

import json

import pytest
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from frugalfm.encoders.foreign import load_translated, recognise, translate
from frugalfm.errors import FrugalWarning, InputError

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


@pytest.fixture
def bert(tmp_path):
    """Write a tiny BERT with the tokens that are given."""

    def write(*tokens, made=BertForMaskedLM):
        config = BertConfig(
            vocab_size=30,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=40,
        )
        folder = tmp_path / "published"
        made(config).save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(tokens))
        return folder

    return write


def take(source, tmp_path):
    native = tmp_path / ".out.partial/native"
    translate(source, recognise(source), native, tokenizer=None, allow_pickle=False)
    return load_translated(native, source)


@pytest.mark.parametrize(
    "tokens",
    [
        (),
        (*SPECIALS, "hello", "world"),
        (*SPECIALS, "ACG", "CCG"),
        (*SPECIALS, *"acgt"),
    ],
)
def test_a_model_that_no_verb_could_use_is_refused(tmp_path, bert, tokens):
    source = bert(*tokens)
    message = rf"^{source}: its tokenizer has neither one token a residue .* with --tokenizer$"
    with pytest.raises(InputError, match=message):
        take(source, tmp_path)


def test_letters_that_a_model_lacks_are_told(tmp_path, bert):
    source = bert(*SPECIALS, *AMINO_ACIDS.replace("M", ""))
    with pytest.warns(FrugalWarning, match=rf"^{source}: its tokenizer has no token for M;"):
        take(source, tmp_path)


def test_errors_name_what_was_given(tmp_path, bert):
    source = bert(*SPECIALS, *AMINO_ACIDS, made=BertForSequenceClassification)
    with pytest.raises(InputError, match=rf"^{source}: is a model with a head") as error:
        take(source, tmp_path)
    assert ".partial" not in str(error.value)


@pytest.mark.parametrize("name", ["prot.fa", "model.bin"])
def test_a_file_that_is_no_checkpoint_is_not_called_a_pickle(tmp_path, name):
    (tmp_path / name).write_bytes(b">a\nMKT\n")
    with pytest.raises(InputError, match=rf"{name}: is no checkpoint, neither safetensors nor"):
        take(tmp_path / name, tmp_path)


def test_other_artifacts_are_recognised(tmp_path):
    folder = tmp_path / "deployed"
    folder.mkdir()
    (folder / "model.bin").write_bytes(bytes(9))
    (folder / "deployment.json").write_text("{}")
    manifest = {"kind": "quantization", "inputs": {"checkpoint": {"path": "base"}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    message = r"deployed: is a deployed model, .*was made of \(base\)"
    with pytest.raises(InputError, match=message):
        recognise(folder)
    with pytest.raises(InputError, match=message):
        translate(folder, "rna-fm", tmp_path / "o", tokenizer=None, allow_pickle=True)
