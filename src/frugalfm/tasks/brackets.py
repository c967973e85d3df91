"""Secondary structure: dot-bracket notation, base pairs, and how a matrix becomes pairs."""

from __future__ import annotations

import numpy as np

__all__ = ["CLOSING", "OPENING", "UNPAIRED", "decode_pairs", "parse_structure", "write_structure"]

OPENING = "([{<ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CLOSING = ")]}>abcdefghijklmnopqrstuvwxyz"
UNPAIRED = ".,:_-~"

LOOP = 3
"""Unpaired residues that a hairpin needs, at least: RNA cannot bend more sharply."""


def parse_structure(text: str, length: int) -> np.ndarray:
    """Read base pairs from dot-bracket notation; each kind of bracket nests by itself.

    Parameters
    ----------
    text
        ``( [ { <`` and upper-case letters open, ``) ] } >`` and lower-case letters close, ``. , :
        _ - ~`` are unpaired. Pairs of two kinds of brackets may cross: pseudoknots.
    length
        Residues of the sequence.

    Returns
    -------
    ndarray
        int64, shape ``(pairs, 2)``, in order, each pair from left to right.

    Raises
    ------
    ValueError
        Another length, another character, or brackets that do not match; says where.
    """
    if len(text) != length:
        raise ValueError(f"{length} residues but {len(text)} characters of structure")
    open_at: dict[str, list[int]] = {}
    pairs: list[tuple[int, int]] = []
    for place, letter in enumerate(text):
        if letter in OPENING:
            open_at.setdefault(letter, []).append(place)
        elif letter in CLOSING:
            stack = open_at.get(OPENING[CLOSING.index(letter)])
            if not stack:
                raise ValueError(f"{letter!r} of residue {place + 1} closes nothing")
            pairs.append((stack.pop(), place))
        elif letter not in UNPAIRED:
            raise ValueError(f"{letter!r} of residue {place + 1} is no dot-bracket notation")
    left = [(stack[0], letter) for letter, stack in open_at.items() if stack]
    if left:
        place, letter = min(left)
        raise ValueError(f"{letter!r} of residue {place + 1} is never closed")
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def write_structure(pairs: np.ndarray, length: int) -> str:
    """Write base pairs in dot-bracket notation; each gets the first bracket that it may have.

    Parameters
    ----------
    pairs
        Shape ``(pairs, 2)``, each from left to right, no residue twice.
    length
        Residues of the sequence.
    """
    text = ["."] * length
    levels: list[list[tuple[int, int]]] = []
    for i, j in sorted(map(tuple, pairs.tolist())):
        for level, (opening, closing) in enumerate(zip(OPENING, CLOSING, strict=True)):
            if level == len(levels):
                levels.append([])
            if not any(a < i < b < j for a, b in levels[level]):
                levels[level].append((i, j))
                text[i], text[j] = opening, closing
                break
    return "".join(text)


def decode_pairs(
    probabilities: np.ndarray, threshold: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Choose base pairs greedily, most probable first, one partner a residue.

    Pairs chosen with a higher threshold are the first of those chosen with a lower one.

    Parameters
    ----------
    probabilities
        Symmetric, shape ``(residues, residues)``.
    threshold
        Pairs below are never chosen, nor those of hairpins with fewer than :data:`LOOP` residues.

    Returns
    -------
    pairs
        int64, shape ``(pairs, 2)``, each from left to right, most probable first.
    chosen
        Their probabilities.
    """
    length = len(probabilities)
    place = np.arange(length)
    allowed = np.abs(place[:, None] - place) > LOOP
    left = np.where(allowed & (probabilities >= threshold), probabilities, -np.inf)
    pairs: list[np.ndarray] = []
    # Pairs that are the best of both their residues are what the greedy order would choose.
    while length and np.isfinite(left).any():
        best = left.argmax(1)
        mutual = (best[best] == place) & np.isfinite(left.max(1))
        found = place[mutual & (place < best)]
        pairs.append(np.stack([found, best[found]], 1))
        left[mutual] = -np.inf
        left[:, mutual] = -np.inf
    joined = np.concatenate(pairs) if pairs else np.empty((0, 2), np.int64)
    chosen = probabilities[joined[:, 0], joined[:, 1]]
    order = np.lexsort((joined[:, 0], -chosen))
    return joined[order], chosen[order]
