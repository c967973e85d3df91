"""Targets of pairs of positions: stored as coordinates or pairs, made into matrices one by one.

A contact is a pair of residues whose C-beta atoms are less than 8 angstrom apart, at least 6
positions apart in the sequence, as in CASP and in Rao et al. (2020). Distances are those of the
same pairs, capped at 20 angstrom: beyond it the exact value means little.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from frugalfm.tasks.kinds import MapKind

__all__ = [
    "CAP",
    "CONTACT",
    "SEPARATION",
    "MapTargets",
    "parse_contacts",
    "parse_coordinates",
]

CONTACT = 8.0
"""Angstrom; closer residues touch."""
CAP = 20.0
"""Angstrom; larger distances count as this one."""
SEPARATION = {"contact": 6, "distance": 6, "base-pair": 1}
"""Positions that the two of a pair are apart, at least."""


@dataclass(frozen=True)
class MapTargets:
    """What is known of the pairs of positions of some sequences.

    Attributes
    ----------
    kind
        ``"contact"``, ``"distance"`` or ``"base-pair"``.
    lengths
        Residues of each sequence, int64.
    pieces
        Of each sequence: coordinates in angstrom (float32, shape ``(residues, 3)``, NaN where a
        residue is not resolved), or the pairs that touch (int64, shape ``(pairs, 2)``, each from
        left to right).
    """

    kind: MapKind
    lengths: np.ndarray
    pieces: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.pieces)

    def matrix(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Make the targets of one sequence.

        Returns
        -------
        values
            float32, symmetric, shape ``(residues, residues)``: 1 where two residues touch or pair
            and 0 elsewhere, or distances in angstrom, at most :data:`CAP`.
        valid
            bool, of the same shape: both residues are resolved and far enough apart. Other
            values mean nothing.
        """
        piece, length = self.pieces[index], int(self.lengths[index])
        place = np.arange(length)
        valid = np.abs(place[:, None] - place) >= SEPARATION[self.kind]
        if piece.shape[1] == 2:
            values = np.zeros((length, length), np.float32)
            values[piece[:, 0], piece[:, 1]] = values[piece[:, 1], piece[:, 0]] = 1
            return values, valid
        there = self.resolved(index)
        valid &= there[:, None] & there
        # The difference, not the scalar product: exact where residues are close.
        distances = np.sqrt(((piece[:, None] - piece[None]) ** 2).sum(-1))
        if self.kind == "contact":
            return (distances < CONTACT).astype(np.float32), valid
        return np.minimum(np.where(valid, distances, CAP), CAP).astype(np.float32), valid

    def pairs(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """List the valid pairs of a sequence, each once.

        Returns
        -------
        i, j
            int64, the left and the right position.
        values
            float32, as in :meth:`matrix`.
        """
        values, valid = self.matrix(index)
        i, j = np.nonzero(np.triu(valid))
        return i, j, values[i, j]

    def resolved(self, index: int) -> np.ndarray:
        """Which residues of a sequence something is known of."""
        piece = self.pieces[index]
        if piece.shape[1] == 2:
            return np.ones(int(self.lengths[index]), np.bool_)
        return np.asarray(~np.isnan(piece).any(1))

    def take(self, keep: np.ndarray) -> MapTargets:
        """Keep the sequences that a mask names."""
        pieces = tuple(self.pieces[index] for index in np.flatnonzero(keep))
        return replace(self, lengths=self.lengths[keep], pieces=pieces)

    def crop(self, length: int) -> MapTargets:
        """Keep the first `length` residues of each sequence, and the pairs among them."""
        pieces = tuple(
            piece[(piece < length).all(1)] if piece.shape[1] == 2 else piece[:length]
            for piece in self.pieces
        )
        return replace(self, lengths=np.minimum(self.lengths, length), pieces=pieces)


def parse_coordinates(value: Any, length: int) -> np.ndarray:
    """Read the coordinates of one sequence.

    Parameters
    ----------
    value
        Three numbers a residue, as a list of triples (null for a residue that is missing), a
        flat list, or text: numbers apart by blanks or commas, or JSON. NaN is missing.
    length
        Residues of the sequence.

    Returns
    -------
    ndarray
        float32, shape ``(length, 3)``.

    Raises
    ------
    ValueError
        It is none of these; says why.
    """
    if value is None:
        raise ValueError("is empty")
    if isinstance(value, str):
        value = _read_numbers(value)
    if any(isinstance(entry, Sequence | np.ndarray) for entry in value):
        missing = [math.nan] * 3
        rows = [missing if entry is None else list(entry) for entry in value]
        if any(len(row) != 3 for row in rows):
            raise ValueError("a residue has other than three coordinates")
        value = [number for row in rows for number in row]
    elif len(value) == length and length != 0 and None in value:
        raise ValueError("no residue has coordinates")
    try:
        numbers = np.array([math.nan if x is None else x for x in value], np.float32)
    except (TypeError, ValueError):
        raise ValueError("a coordinate is no number") from None
    if len(numbers) != 3 * length:
        raise ValueError(f"{length} residues but {len(numbers) / 3:g} coordinates")
    numbers = numbers.reshape(length, 3)
    if np.isinf(numbers).any():
        raise ValueError("a coordinate is infinite")
    return numbers


def parse_contacts(value: Any, length: int) -> np.ndarray:
    """Read the pairs of positions of one sequence that touch.

    Parameters
    ----------
    value
        Positions from 0: a list of pairs, or text such as ``3-17 5-20`` or ``[[3, 17], [5, 20]]``.
    length
        Residues of the sequence.

    Returns
    -------
    ndarray
        int64, shape ``(pairs, 2)``, in order, each pair once and from left to right.

    Raises
    ------
    ValueError
        It is none of these; says why.
    """
    if value is None:
        raise ValueError("is empty; a sequence without contacts has an empty list")
    if isinstance(value, str):
        text = value.strip()
        value = json.loads(text) if text.startswith("[") else [w.split("-") for w in text.split()]
    try:
        found = np.array([[int(a), int(b)] for a, b in value], np.int64).reshape(-1, 2)
    except (TypeError, ValueError):
        raise ValueError("contacts are pairs of positions, such as 3-17 5-20") from None
    outside = (found < 0) | (found >= length)
    if outside.any():
        raise ValueError(
            f"position {found[outside][0]} of a contact is outside of the {length} residues; "
            "positions count from 0"
        )
    if (found[:, 0] == found[:, 1]).any():
        raise ValueError("a residue is in contact with itself")
    return np.unique(np.sort(found, axis=1), axis=0)


def _read_numbers(text: str) -> Any:
    if text.lstrip().startswith("["):
        return json.loads(text.replace("NaN", "null").replace("nan", "null"))
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError("a coordinate is no number") from None
