"""Encode residues by table look-up, for tokenizers with one token a residue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from frugalfm.errors import InputError
from frugalfm.sequences.alphabets import get_alphabet

__all__ = ["Codec"]


@dataclass(frozen=True)
class Codec:
    """What batches need to know of a tokenizer.

    Attributes
    ----------
    alphabet
        ``dna``, ``rna`` or ``protein``, told by the letters of the vocabulary.
    table
        Shape ``(256,)``, uint8: byte of a residue to token id.
    cls_id, eos_id, pad_id, mask_id
        The special tokens around, beside and instead of residues.
    residue_ids
        uint8: the ids that a random replacement is drawn from: the canonical residues. Ambiguity
        codes would give replacements away in a pool that has none.
    max_residues
        Longest sequence that the model takes.
    """

    alphabet: str
    table: np.ndarray
    cls_id: int
    eos_id: int
    pad_id: int
    mask_id: int
    residue_ids: np.ndarray
    max_residues: int

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> Codec:
        """Read the table off a tokenizer.

        Raises
        ------
        InputError
            The tokenizer is not of the form ``<cls> one token a residue <eos>``.
        """
        vocabulary = tokenizer.get_vocab()
        letters = {token: i for token, i in vocabulary.items() if len(token) == 1}
        specials = (
            tokenizer.cls_token_id,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
            tokenizer.mask_token_id,
            tokenizer.unk_token_id,
        )
        probe = "".join(sorted(letters))
        expected = [specials[0], *(letters[c] for c in probe), specials[1]]
        if None in specials or len(vocabulary) > 256 or tokenizer(probe)["input_ids"] != expected:
            raise InputError(
                f"{tokenizer.name_or_path or 'tokenizer'}: not of the form <cls> residues <eos> "
                "with one token a residue; such tokenizers only are supported so far"
            )
        table = np.full(256, tokenizer.unk_token_id, dtype=np.uint8)
        for letter, index in letters.items():
            table[ord(letter)] = index
        alphabet = "protein" if "L" in letters else "rna" if "U" in letters else "dna"
        canonical = get_alphabet(alphabet).canonical.decode()
        residues = sorted(letters[letter] for letter in canonical if letter in letters)
        return cls(
            alphabet=alphabet,
            table=table,
            cls_id=specials[0],
            eos_id=specials[1],
            pad_id=specials[2],
            mask_id=specials[3],
            residue_ids=np.array(residues, dtype=np.uint8),
            max_residues=int(tokenizer.model_max_length) - 2,
        )

    def encode(self, sequences: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Encode a column of sequences.

        Parameters
        ----------
        sequences
            Arrow strings, without nulls, ASCII.

        Returns
        -------
        tokens : ndarray
            uint8, all residues one after the other, without special tokens.
        lengths : ndarray
            int32, residues of each sequence.
        """
        if isinstance(sequences, pa.ChunkedArray):
            sequences = sequences.combine_chunks()
        if isinstance(sequences, pa.ChunkedArray):  # several chunks when over 2 GB
            parts = [self.encode(chunk) for chunk in sequences.chunks]
            return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        sequences = sequences.cast(pa.large_string())
        offsets = np.frombuffer(sequences.buffers()[1], dtype=np.int64)[
            sequences.offset : sequences.offset + len(sequences) + 1
        ]
        if len(sequences) == 0:
            return np.empty(0, np.uint8), np.empty(0, np.int32)
        data = np.frombuffer(sequences.buffers()[2], dtype=np.uint8)[offsets[0] : offsets[-1]]
        return self.table[data], np.diff(offsets).astype(np.int32)

    def collate(self, sequences: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Pad encoded sequences to one rectangle, with special tokens.

        Parameters
        ----------
        sequences
            uint8 residue ids of each sequence.

        Returns
        -------
        input_ids : ndarray
            int64, shape ``(batch, longest + 2)``.
        lengths : ndarray
            int64, shape ``(batch,)``: residues of each sequence.
        """
        lengths = np.array([len(s) for s in sequences], dtype=np.int64)
        ids = np.full((len(sequences), lengths.max() + 2), self.pad_id, dtype=np.int64)
        ids[:, 0] = self.cls_id
        for row, sequence in zip(ids, sequences, strict=True):
            row[1 : len(sequence) + 1] = sequence
            row[len(sequence) + 1] = self.eos_id
        return ids, lengths
