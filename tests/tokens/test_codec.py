"""The fast table agrees with the tokenizer that is saved beside the model."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from frugalfm.errors import InputError
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.store import TokenStore
from frugalfm.tokens.vocabulary import RNA_TOKENS, make_rna_tokenizer

TOKENIZER = make_rna_tokenizer()
CODEC = Codec.from_tokenizer(TOKENIZER)
SEQUENCES = st.lists(st.text("ACGUNRYKM-", min_size=1, max_size=40), min_size=1, max_size=8)


def test_vocabulary_is_rna_fms():
    """Order and ids as published (arXiv 2204.00300)."""
    ids = TOKENIZER.get_vocab()
    assert [ids[t] for t in RNA_TOKENS] == list(range(25))
    assert (ids["<cls>"], ids["<pad>"], ids["<eos>"], ids["<unk>"], ids["<mask>"]) == (
        0,
        1,
        2,
        3,
        24,
    )
    assert [ids[c] for c in "ACGU"] == [4, 5, 6, 7]
    assert (ids["N"], ids["-"]) == (18, 19)


def test_tokenizer_normalises_and_survives_saving(tmp_path):
    from transformers import AutoTokenizer

    TOKENIZER.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("acgtACGTNn-", "ACGU", "GXZ"):
        assert again(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert TOKENIZER("acgt")["input_ids"] == TOKENIZER("ACGU")["input_ids"]
    assert TOKENIZER("GX")["input_ids"] == [0, 6, 3, 2]


@given(SEQUENCES)
def test_collated_batch_equals_the_tokenizers(sequences):
    tokens, lengths = CODEC.encode(pa.chunked_array([pa.array(sequences)]))
    parts = np.split(tokens, np.cumsum(lengths)[:-1])
    ids, counts = CODEC.collate(parts)
    expected = TOKENIZER(sequences, padding=True, return_tensors="np")
    assert np.array_equal(ids, expected["input_ids"])
    assert np.array_equal(ids != CODEC.pad_id, expected["attention_mask"] == 1)
    assert counts.tolist() == [len(s) for s in sequences]


@given(SEQUENCES, st.integers(0, 7), st.integers(1, 8))
def test_encoding_a_slice(sequences, start, count):
    """Arrow slices share their parent's buffers: offsets must be honoured."""
    column = pa.array(sequences).slice(start, count)
    tokens, lengths = CODEC.encode(column)
    expected = [
        i for s in sequences[start : start + count] for i in TOKENIZER(s)["input_ids"][1:-1]
    ]
    assert tokens.tolist() == expected
    assert lengths.sum() == len(tokens)


def test_other_tokenizers_are_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nab\n")
    with pytest.raises(InputError, match="one token a residue"):
        Codec.from_tokenizer(BertTokenizerFast(str(tmp_path / "vocab.txt")))


def test_an_empty_vocabulary_is_refused(tmp_path):
    (tmp_path / "vocab.txt").touch()
    with pytest.raises(InputError, match=r"neither one token a residue .* `frugalfm import-check"):
        Codec.from_tokenizer(BertTokenizerFast(str(tmp_path / "vocab.txt")))


def test_store_gives_back_every_row_and_survives_a_cut_write(tmp_path):
    sequences = ["ACGU", "G", "NNACG", "UUUUUUUU"]
    tables = [pa.table({"sequence": sequences[:3]}), pa.table({"sequence": sequences[3:]})]
    (tmp_path / "tokens.bin").write_bytes(b"cut short")  # no offsets: not finished
    store = TokenStore.write(tables, CODEC, tmp_path)
    assert len(store) == 4
    assert store.lengths.tolist() == [4, 1, 5, 8]
    for row, sequence in enumerate(sequences):
        assert store[row].tolist() == TOKENIZER(sequence)["input_ids"][1:-1]
    again = TokenStore.write(iter(()), CODEC, tmp_path)
    assert again.lengths.tolist() == [4, 1, 5, 8]
