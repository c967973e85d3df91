"""From residues to token ids: by table look-up, or by byte pairs.

Tokenizers with one token a residue need a table of 256 entries only. All others run as they are,
in their fast implementation, and give fewer tokens than residues.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from frugalfm.errors import InputError, warn
from frugalfm.sequences.alphabets import get_alphabet

__all__ = ["Codec", "PieceCodec", "Tally"]

_UNLIMITED = 2**31 - 1
_ROWS = 4096  # sequences that are encoded at a time
_HIGH = 0.02  # share of unknown tokens that is worth a warning ...
_ENOUGH = 1000  # ... in at least so many tokens


@dataclass(frozen=True)
class Codec:
    """What batches need to know of a tokenizer with one token a residue.

    Attributes
    ----------
    alphabet
        ``dna``, ``rna`` or ``protein``, told by the letters of the vocabulary.
    table
        Shape ``(256,)``, uint8: byte of a residue to token id.
    cls_id, eos_id, pad_id, mask_id
        The special tokens around, beside and instead of residues.
    residue_ids
        The ids that a random replacement is drawn from: the canonical residues (ambiguity codes
        would give replacements away in a pool that has none), or all pieces.
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
        """Make the codec that fits a tokenizer.

        Raises
        ------
        InputError
            The tokenizer has neither the form ``<cls> one token a residue <eos>``, nor is it a
            fast one of the form ``<cls> pieces <eos>`` that knows the residues of its alphabet.
        """
        vocabulary = tokenizer.get_vocab()
        letters = {token: i for token, i in vocabulary.items() if len(token) == 1}
        specials = (
            tokenizer.cls_token_id,
            tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id,
            tokenizer.pad_token_id,
            tokenizer.mask_token_id,
            tokenizer.unk_token_id,
        )
        alphabet = _tell_alphabet(letters)
        canonical = get_alphabet(alphabet).canonical.decode()
        residues = sorted(letters[letter] for letter in canonical if letter in letters)
        probe = "".join(sorted(letters))
        expected = [specials[0], *(letters[c] for c in probe), specials[1]]
        joined = any(len(token) > 1 and set(token) <= letters.keys() for token in vocabulary)
        small = len(vocabulary) <= 256 and len(residues) >= 4 and not joined
        if None in specials or not small or _encode(tokenizer, probe) != expected:
            return PieceCodec.from_pieces(tokenizer, letters, specials)
        table = np.full(256, tokenizer.unk_token_id, dtype=np.uint8)
        for letter, index in letters.items():
            table[ord(letter)] = index
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

    @property
    def dtype(self) -> np.dtype:
        """Of encoded sequences."""
        return self.residue_ids.dtype

    @property
    def per_residue(self) -> bool:
        """Whether every residue is one token."""
        return True

    def encode(self, sequences: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Encode a column of sequences.

        Parameters
        ----------
        sequences
            Arrow strings, without nulls, ASCII.

        Returns
        -------
        tokens : ndarray
            Of :attr:`dtype`, all sequences one after the other, without special tokens.
        lengths : ndarray
            int32, tokens of each sequence.
        """
        if isinstance(sequences, pa.ChunkedArray):
            sequences = sequences.combine_chunks()
        if isinstance(sequences, pa.ChunkedArray):  # several chunks when over 2 GB
            parts = [self.encode(chunk) for chunk in sequences.chunks]
            return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        if len(sequences) == 0:
            return np.empty(0, self.dtype), np.empty(0, np.int32)
        return self._encode(sequences)

    def _encode(self, sequences: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        sequences = sequences.cast(pa.large_string())
        offsets = np.frombuffer(sequences.buffers()[1], dtype=np.int64)[
            sequences.offset : sequences.offset + len(sequences) + 1
        ]
        data = np.frombuffer(sequences.buffers()[2], dtype=np.uint8)[offsets[0] : offsets[-1]]
        return self.table[data], np.diff(offsets).astype(np.int32)

    def collate(self, sequences: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Pad encoded sequences to one rectangle, with special tokens.

        Parameters
        ----------
        sequences
            Token ids of each sequence.

        Returns
        -------
        input_ids : ndarray
            int64, shape ``(batch, longest + 2)``.
        lengths : ndarray
            int64, shape ``(batch,)``: tokens of each sequence.
        """
        lengths = np.array([len(s) for s in sequences], dtype=np.int64)
        ids = np.full((len(sequences), lengths.max() + 2), self.pad_id, dtype=np.int64)
        ids[:, 0] = self.cls_id
        for row, sequence in zip(ids, sequences, strict=True):
            row[1 : len(sequence) + 1] = sequence
            row[len(sequence) + 1] = self.eos_id
        return ids, lengths


@dataclass
class Tally:
    """How many tokens a codec has made so far, and how many of them are unknown."""

    tokens: int = 0
    unknown: int = 0
    warned: bool = False

    @property
    def share(self) -> float:
        """Share of unknown tokens."""
        return self.unknown / max(1, self.tokens)


@dataclass(frozen=True)
class PieceCodec(Codec):
    """A codec whose tokens are pieces of several residues (byte pairs).

    What the vocabulary does not hold, such as N in DNABERT-2's, becomes one unknown token a
    letter. It is counted, and a high share is warned about once.

    Attributes
    ----------
    tokenizer
        The fast tokenizer, without padding and truncation.
    unknown_id
        Of the unknown token.
    max_tokens
        Longest sequence that the model takes, in tokens; `max_residues` sets no limit.
    tally
        Counts what has been encoded.
    """

    tokenizer: Tokenizer
    unknown_id: int
    max_tokens: int
    tally: Tally = field(default_factory=Tally)

    @classmethod
    def from_pieces(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        letters: dict[str, int],
        specials: tuple[int | None, ...],
    ) -> PieceCodec:
        """Make the codec; arguments as :meth:`Codec.from_tokenizer` finds them."""
        start, end, pad, mask, unknown = specials
        alphabet = _tell_alphabet(letters)
        probe = get_alphabet(alphabet).canonical.decode()
        found = _encode(tokenizer, probe) if None not in specials else []
        fits = [*found[:1], *found[-1:]] == [start, end] and unknown not in found
        if not (tokenizer.is_fast and fits):
            raise InputError(
                f"{tokenizer.name_or_path or 'tokenizer'}: has neither one token a residue "
                f"between <cls> and <eos>, nor pieces that spell all of {probe}; `frugalfm "
                "import-checkpoint` makes one that wants blanks between residues read them as "
                "they are"
            )
        vocabulary = tokenizer.get_vocab()
        pieces = sorted(set(vocabulary.values()) - set(tokenizer.all_special_ids))
        copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        copy.no_padding()
        copy.no_truncation()
        assert start is not None
        assert end is not None
        assert pad is not None
        assert mask is not None
        assert unknown is not None
        return cls(
            alphabet=alphabet,
            table=np.empty(0, np.uint8),
            cls_id=start,
            eos_id=end,
            pad_id=pad,
            mask_id=mask,
            residue_ids=np.array(pieces, np.min_scalar_type(max(*vocabulary.values(), 256))),
            max_residues=_UNLIMITED,
            tokenizer=copy,
            unknown_id=unknown,
            max_tokens=min(int(tokenizer.model_max_length) - 2, _UNLIMITED),
        )

    @property
    def per_residue(self) -> bool:
        """Whether every residue is one token."""
        return False

    def _encode(self, sequences: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        rows: list[np.ndarray] = []
        for start in range(0, len(sequences), _ROWS):
            texts = sequences.slice(start, _ROWS).to_pylist()
            encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            rows += [np.array(found.ids, dtype=self.dtype) for found in encoded]
        lengths = np.array([len(row) for row in rows], dtype=np.int32)
        if lengths.max() > self.max_tokens:
            raise InputError(
                f"a sequence of {len(sequences[int(lengths.argmax())].as_py())} residues has "
                f"{lengths.max()} tokens, the model takes at most {self.max_tokens}; "
                "`frugalfm build --max-length` windows or crops"
            )
        tokens = np.concatenate(rows)
        self._count(tokens)
        return tokens, lengths

    def _count(self, tokens: np.ndarray) -> None:
        tally = self.tally
        tally.tokens += len(tokens)
        tally.unknown += int((tokens == self.unknown_id).sum())
        if not tally.warned and tally.tokens >= _ENOUGH and tally.share > _HIGH:
            tally.warned = True
            warn(
                f"{tally.share:.1%} of the first {tally.tokens:,} tokens are unknown to the "
                "tokenizer (it has no ambiguity codes, such as N); "
                "`frugalfm build --ambiguous drop` leaves such sequences out"
            )


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a text; to nothing where the tokenizer cannot."""
    try:
        found: list[int] = tokenizer(text)["input_ids"]
    except Exception:  # noqa: BLE001 - tokenizers raises nothing more special, for want of [UNK]
        return []
    return found


def _tell_alphabet(letters: dict[str, int]) -> str:
    return "protein" if "L" in letters else "rna" if "U" in letters else "dna"
