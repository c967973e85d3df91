"""MinHash sketches: a few dozen k-mers of a sequence, chosen so that kin choose the same ones.

Every k-mer gets a pseudorandom number, the same wherever it occurs, and a sequence is sketched by
those of its k-mers that have the smallest numbers (Broder 1997), as in linclust (Steinegger &
Söding 2018).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from frugalfm.sequences.complexity import UNKNOWN, code_letters
from frugalfm.sequences.records import Offsets

__all__ = ["EMPTY", "Sketcher", "Sketches", "choose_k"]

EMPTY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
"""Fills the sketch of a sequence that has fewer k-mers than a sketch holds."""

Sketches = np.ndarray[Any, np.dtype[np.uint64]]
"""Shape ``(n, size)``: number of the k-mer (upper half) and where it first occurs, ascending."""

# Residues that replace each other often (Murphy, Wallqvist & Levy 2000), ten classes; U and O
# are with the residues that they resemble, B and Z with what they stand for.
_CLASSES = (b"LVIM", b"CU", b"A", b"G", b"ST", b"P", b"FYW", b"EDNQBZ", b"KRO", b"H")
_LETTERS = 1 << 22  # that are handled at a time
_SPARE = 1.5  # how many times too many k-mers are looked at, so that enough differ
_HALF = np.uint64(32)


def choose_k(alphabet: str, residues: int) -> int:
    """Choose how long k-mers are: few in a pool of this size should repeat by chance.

    Shorter ones survive more mutations, but strangers then have some in common, and are compared.
    The number of possible k-mers is about that of the pool's residues; in proteins, whose classes
    are of unequal size, it is the next power below.
    """
    if alphabet == "protein":
        return min(max(int(math.log10(max(residues, 1))), 5), 9)
    return min(max(math.ceil(math.log(max(residues, 1), 4)), 8), 16)


@dataclass(frozen=True)
class Sketcher:
    """Makes sketches of one alphabet's sequences.

    Attributes
    ----------
    alphabet
        ``dna``, ``rna``, or ``protein`` (in ten classes of residues).
    k
        Letters of a k-mer; its number fits into 32 bits, so k is at most 16, or 9 in proteins.
    size
        K-mers of a sketch, at most.
    seed
        Decides which.
    """

    alphabet: str
    k: int
    size: int = 64
    seed: int = 0

    @property
    def letters(self) -> int:
        """Letters that k-mers are made of."""
        return len(_CLASSES) if self.alphabet == "protein" else 4

    def sketch(self, data: bytes, offsets: Offsets) -> Sketches:
        """Sketch every sequence of a batch.

        Parameters
        ----------
        data, offsets
            Sequences end to end in upper case, and where each begins (``(n + 1,)``).

        Returns
        -------
        ndarray
            Filled up with :data:`EMPTY`. K-mers with an ambiguous letter are left out.
        """
        bounds = np.asarray(offsets, np.int64)
        sketches = np.full((len(bounds) - 1, self.size), EMPTY)
        codes = _codes(self.alphabet)[np.frombuffer(data, np.uint8)]
        for first, last in _pieces(bounds):
            piece = codes[bounds[first] : bounds[last]]
            self._sketch(piece, bounds[first : last + 1] - bounds[first], sketches[first:last])
        return sketches

    def _sketch(self, codes: np.ndarray, bounds: np.ndarray, out: Sketches) -> None:
        count = len(codes) - self.k + 1
        if count <= 0:
            return
        hashes = _scatter(_pack(codes, self.k, self.letters), self.seed)
        lengths = np.diff(bounds)
        # Only numbers this small have a chance to be among the smallest of their sequence.
        limits = np.minimum(_SPARE * self.size / np.maximum(lengths - self.k + 1, 1), 1) * 2**32
        chosen = hashes <= np.repeat((limits - 1).astype(np.uint32), lengths)[:count]
        chosen &= _inside(bounds, len(codes), self.k) & _known(codes, self.k)
        places = np.flatnonzero(chosen)
        rows = np.searchsorted(bounds, places, side="right") - 1
        keys = rows.astype(np.uint64) << _HALF | hashes[places]
        order = np.argsort(keys, kind="stable")
        keys, places, rows = keys[order], places[order], rows[order]
        fresh = np.ones(len(keys), np.bool_)
        np.not_equal(keys[1:], keys[:-1], out=fresh[1:])
        keys, places, rows = keys[fresh], places[fresh], rows[fresh]
        column = np.arange(len(keys)) - np.searchsorted(rows, np.arange(len(lengths)))[rows]
        keep = column < self.size
        rows, within = rows[keep], (places - bounds[rows])[keep].astype(np.uint64)
        out[rows, column[keep]] = keys[keep] << _HALF | within


def _pieces(bounds: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of rows with a limited number of letters."""
    first, n = 0, len(bounds) - 1
    while first < n:
        last = int(np.searchsorted(bounds, bounds[first] + _LETTERS, side="right")) - 1
        last = min(max(first + 1, last), n)
        yield first, last
        first = last


def _codes(alphabet: str) -> np.ndarray:
    if alphabet != "protein":
        return code_letters(alphabet)
    classes = np.full(256, UNKNOWN, np.uint8)
    for number, group in enumerate(_CLASSES):
        classes[list(group)] = number
    return classes


def _inside(bounds: np.ndarray, total: int, k: int) -> np.ndarray:
    """Tell for each position whether the k-mer that begins there ends in the same sequence."""
    inside = np.ones(total, np.bool_)
    for back in range(1, k):
        # The k-mers that begin in a sequence's last k - 1 letters run over its end.
        inside[np.maximum(bounds[1:] - back, bounds[:-1])[bounds[1:] > bounds[:-1]]] = False
    return inside[: total - k + 1]


def _known(codes: np.ndarray, k: int) -> np.ndarray:
    unknown = np.concatenate([np.zeros(1, np.int32), np.cumsum(codes == UNKNOWN, dtype=np.int32)])
    known: np.ndarray = unknown[k:] == unknown[:-k]
    return known


def _pack(codes: np.ndarray, k: int, letters: int) -> np.ndarray:
    """Find the number of the k-mer at each position, uint32, by joining ever longer words."""
    words, done = codes.astype(np.uint32), 1
    for bit in bin(k)[3:]:
        words = words[:-done] * np.uint32(letters**done % 2**32) + words[done:]
        done *= 2
        if bit == "1":
            words = words[:-1] * np.uint32(letters) + codes[done:].astype(np.uint32)
            done += 1
    return words


def _scatter(words: np.ndarray, seed: int) -> np.ndarray:
    """Map 32 bits to 32 bits one to one, as if at random (MurmurHash3's finalizer)."""
    hashes = words ^ np.uint32((seed * 0x9E3779B1 + 0x85EBCA6B) & 0xFFFFFFFF)
    hashes ^= hashes >> np.uint32(16)
    hashes *= np.uint32(0x85EBCA6B)
    hashes ^= hashes >> np.uint32(13)
    hashes *= np.uint32(0xC2B2AE35)
    hashes ^= hashes >> np.uint32(16)
    return hashes
