"""Byte pairs: the codec gives what the tokenizer gives, counts what is unknown, stores 16 bits."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalfm.errors import InputError
from frugalfm.tokens.codec import Codec, PieceCodec
from frugalfm.tokens.inputs import stream_encoded
from frugalfm.tokens.masking import IGNORED, mask_randomly
from frugalfm.tokens.store import TokenStore
from frugalfm.tokens.vocabulary import make_rna_tokenizer, prepare_dna_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
from dnabert2_oracle import make_dna_tokenizer

TOKENIZER = make_dna_tokenizer()
CODEC = Codec.from_tokenizer(TOKENIZER)
SEQUENCES = st.lists(st.text("ACGTN", min_size=1, max_size=40), min_size=1, max_size=8)


def test_which_codec():
    assert type(CODEC) is PieceCodec
    assert (CODEC.alphabet, CODEC.dtype, CODEC.per_residue) == ("dna", np.uint16, False)
    assert (CODEC.cls_id, CODEC.eos_id, CODEC.pad_id, CODEC.mask_id) == (1, 2, 3, 4)
    assert CODEC.residue_ids.tolist() == list(range(5, len(TOKENIZER)))
    plain = Codec.from_tokenizer(make_rna_tokenizer())
    assert type(plain) is Codec
    assert (plain.dtype, plain.per_residue) == (np.uint8, True)


@given(SEQUENCES)
def test_collated_batch_equals_the_tokenizers(sequences):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokens, lengths = CODEC.encode(pa.chunked_array([pa.array(sequences)]))
    ids, counts = CODEC.collate(np.split(tokens, np.cumsum(lengths)[:-1]))
    expected = TOKENIZER(sequences, padding=True, return_tensors="np")
    assert np.array_equal(ids, expected["input_ids"])
    assert np.array_equal(ids != CODEC.pad_id, expected["attention_mask"] == 1)
    assert np.array_equal(counts, expected["attention_mask"].sum(1) - 2)


def test_many_rows_and_slices():
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("ACGT"), 9)) for _ in range(5000)]
    tokens, lengths = CODEC.encode(pa.array(texts).slice(10, 4500))
    expected = [TOKENIZER(text)["input_ids"][1:-1] for text in texts[10:4510]]
    assert tokens.tolist() == [i for row in expected for i in row]
    assert lengths.tolist() == [len(row) for row in expected]
    assert CODEC.encode(pa.array([], pa.string()))[0].dtype == np.uint16


def test_unknown_is_counted_and_warned_about_once():
    codec = Codec.from_tokenizer(make_dna_tokenizer())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codec.encode(pa.array(["ACGN" * 10]))
        assert codec.tally.unknown == 10
    with pytest.warns(UserWarning, match=r"\d+\.\d% of the first 1,\d+ tokens are unknown"):
        codec.encode(pa.array(["G" * 900 + "N" * 100]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codec.encode(pa.array(["N" * 1000]))
    assert codec.tally.unknown == 1110
    clean = Codec.from_tokenizer(make_dna_tokenizer())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clean.encode(pa.array(["ACGT" * 1000]))
    assert clean.tally.share == 0


def test_token_limit(tmp_path):
    codec = Codec.from_tokenizer(make_dna_tokenizer(model_max_length=12))
    codec.encode(pa.array(["TGCA" * 10]))  # 40 residues, but 10 tokens
    path = tmp_path / "long.fasta"
    path.write_text(">a\n" + "TGCA" * 11 + "\n")
    with pytest.raises(InputError, match=r"long\.fasta.*44 residues has 11 tokens.*at most 10"):
        list(stream_encoded(path, codec))


def test_store_keeps_sixteen_bits(tmp_path):
    sequences = ["ACGTAATT", "TGCA", "G"]
    store = TokenStore.write([pa.table({"sequence": sequences})], CODEC, tmp_path)
    assert store[0].dtype == np.uint16
    for row, sequence in enumerate(sequences):
        assert store[row].tolist() == TOKENIZER(sequence)["input_ids"][1:-1]


def test_masking_draws_pieces():
    ids, lengths = CODEC.collate([np.full(2000, 5, np.uint16)])
    masked, labels = mask_randomly(ids, lengths, np.arange(1), CODEC, seed=0, epoch=0)
    target = labels[0] != IGNORED
    assert 240 < target.sum() < 360
    replaced = masked[0][target & (masked[0] != CODEC.mask_id)]
    assert set(replaced) <= set(CODEC.residue_ids.tolist())
    assert len(set(replaced)) > 3


def test_tokenizer_that_cannot_spell_dna_is_refused(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.WordLevel({"[UNK]": 0, "A": 1, "AC": 2}, unk_token="[UNK]"))
    with pytest.raises(InputError, match="spell all of ACGT"):
        Codec.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="[UNK]"))
    (tmp_path / "tokenizer.json").write_text(bare.to_str())
    with pytest.raises(InputError, match=r"lacks \[CLS\], \[SEP\]"):
        prepare_dna_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="is no tokenizer"):
        prepare_dna_tokenizer(tmp_path)
