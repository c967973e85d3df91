"""How varied the letters of a sequence are: 0 for a run of one letter, 1 for no repetition.

Nucleotides: Shannon entropy of the overlapping triplets in windows of 64, the window and the
words of DUST (Morgulis et al. 2006), as entropy rather than as a count (Schmieder & Edwards
2011). Proteins: Shannon entropy of the residues in windows of 12, as in SEG (Wootton & Federhen
1993). A window's entropy is divided by the largest that it could have; a sequence's complexity is
the mean over its windows.
"""

from __future__ import annotations

import numpy as np

from frugalfm.errors import InputError
from frugalfm.sequences.alphabets import get_alphabet
from frugalfm.sequences.records import Offsets

__all__ = ["code_letters", "measure_complexity"]

UNKNOWN = 255  # the code of a letter that stands for several residues, or for none
_ROWS = 1 << 13  # sequences at a time; few, so that counts stay in the processor's cache
_WINDOWS = 1 << 15


def code_letters(alphabet: str) -> np.ndarray:
    """Return the codes of all 256 bytes: 0, 1, ... for residues, :data:`UNKNOWN` for the rest.

    U and O count as the residues that they resemble, C and K.
    """
    if alphabet == "protein":
        letters, alike = b"ACDEFGHIKLMNPQRSTVWY", {b"U": b"C", b"O": b"K"}
    else:
        letters, alike = b"ACGT", {b"U": b"T"}
    table = np.full(256, UNKNOWN, np.uint8)
    table[list(letters)] = np.arange(len(letters))
    for old, new in alike.items():
        table[old[0]] = table[new[0]]
    return table


def measure_complexity(data: bytes, offsets: Offsets, alphabet: str) -> np.ndarray:
    """Measure every sequence of a batch.

    A sequence of ``L`` letters gets ``ceil(L / width)`` windows, evenly spread from its first to
    its last letter. With ``c_w`` the counts of the words of a window, ``n`` their sum and ``W``
    the number of possible words, the window has ``-sum(c_w/n log(c_w/n)) / log(min(n, W))``.
    Words with an ambiguous letter do not count; a window with fewer than two words has 0.

    Parameters
    ----------
    data, offsets
        Sequences end to end in upper case, and where each begins (``(n + 1,)``).
    alphabet
        ``dna``, ``rna`` or ``protein``.

    Returns
    -------
    ndarray
        float32 in 0..1, shape ``(n,)``.
    """
    codes = code_letters(get_alphabet(alphabet).name)[np.frombuffer(data, np.uint8)]
    width, word, letters = (12, 1, 20) if alphabet == "protein" else (64, 3, 4)
    if len(offsets) and int(offsets[-1]) != len(data):
        raise InputError("offsets do not end where the sequences do")
    starts = np.asarray(offsets, np.int64)
    found = np.zeros(len(offsets) - 1, np.float32)
    for first in range(0, len(found), _ROWS):
        rows = slice(first, min(first + _ROWS, len(found)))
        bounds = starts[rows.start : rows.stop + 1]
        piece = codes[bounds[0] : bounds[-1]]
        words = _words(piece, word, letters)
        found[rows] = _mean_entropy(words, bounds - bounds[0], width, word, letters**word)
    return found


def _words(codes: np.ndarray, size: int, letters: int) -> np.ndarray:
    """Find the number of the word at each position; -1 where it holds an unknown letter."""
    count = max(0, len(codes) - size + 1)
    numbers = np.zeros(count, np.int16)
    known = np.ones(count, np.bool_)
    for shift in range(size):
        column = codes[shift : shift + count]
        numbers = numbers * np.int16(letters) + column
        known &= column != UNKNOWN
    return np.where(known, numbers, -1)


def _mean_entropy(
    words: np.ndarray, bounds: np.ndarray, width: int, size: int, kinds: int
) -> np.ndarray:
    lengths = np.diff(bounds)
    per_row = np.maximum(1, -(-lengths // width))
    rows = np.repeat(np.arange(len(lengths)), per_row)
    number = np.arange(len(rows)) - np.repeat(np.cumsum(per_row) - per_row, per_row)
    spare = np.maximum(lengths - width, 0)
    begin = bounds[:-1][rows] + number * spare[rows] // np.maximum(per_row[rows] - 1, 1)
    fits = np.clip(lengths - size + 1, 0, width - size + 1)[rows]  # words of each window
    total = np.empty(len(rows))
    for first in range(0, len(rows), _WINDOWS):
        part = slice(first, first + _WINDOWS)
        total[part] = _entropy(words, begin[part], fits[part], width - size + 1, kinds)
    mean: np.ndarray = np.bincount(rows, total, len(lengths)) / per_row
    return mean


def _entropy(
    words: np.ndarray, begin: np.ndarray, fits: np.ndarray, most: int, kinds: int
) -> np.ndarray:
    """Entropy of the words in each window, as a share of the largest possible."""
    if not len(words):
        return np.zeros(len(begin))
    place = np.arange(most)
    found = words[np.minimum(begin[:, None] + place, len(words) - 1)]
    valid = (place < fits[:, None]) & (found >= 0)
    # The last column takes what does not count.
    slot = np.where(valid, found, kinds) + (np.arange(len(begin)) * (kinds + 1))[:, None]
    counts = np.bincount(slot.ravel(), minlength=len(begin) * (kinds + 1))
    counts = counts.reshape(len(begin), kinds + 1)[:, :kinds]
    n = valid.sum(1)
    steps = np.arange(most + 1, dtype=np.float64)
    steps[1:] *= np.log(steps[1:])  # c log c, with 0 log 0 = 0
    entropy = np.log(np.maximum(n, 1)) - steps[counts].sum(1) / np.maximum(n, 1)
    largest = np.log(np.clip(n, 1, kinds))
    share = np.divide(entropy, largest, out=np.zeros_like(entropy), where=largest > 0)
    bounded: np.ndarray = np.clip(share, 0.0, 1.0)
    return bounded
