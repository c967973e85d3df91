"""Greedy clusters from sketches: a longest sequence takes all that are like it, and so on.

As in linclust (Steinegger & Söding 2018), sequences with a k-mer in common form a bucket, and
each is compared with the longest of its bucket only, so that the work grows with the number of
sequences. Unlike there, whoever has been compared in vain moves on to the bucket's next longest,
over a limited number of rounds, and whoever is taken takes nobody: every member has been compared
with its own representative, so that chains of likeness do not grow into one cluster.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from frugalfm.progress import progress
from frugalfm.sequences.likeness import Pool, measure_identity
from frugalfm.sequences.sketches import EMPTY, Sketches

__all__ = ["group_greedily"]

ROUNDS = 12
_WIDTH = 20  # k-mers of a sketch that make buckets, as many as linclust's
_ENTRIES = 1 << 24  # of a partition of the buckets, 8 bytes each
_LETTERS = 1 << 18  # compared at a time; few, so that they stay in the processor's cache
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def group_greedily(
    pool: Pool, order: np.ndarray, threshold: float, scratch: Path, *, rounds: int = ROUNDS
) -> np.ndarray:
    """Give every sequence a representative.

    Parameters
    ----------
    pool
        The sequences.
    order
        All rows, those that may represent others first: longest first. Shape ``(n,)``.
    threshold
        Least identity of a member with its representative, over the member's whole length.
    scratch
        Folder for the buckets: 160 bytes a sequence.
    rounds
        In how many a sequence may look for a representative; one still without stands for itself.

    Returns
    -------
    ndarray
        int64, shape ``(n,)``: for each row the row of its representative; its own if it is one.
        The same for any order of the rows, if `order` lists the same sequences.
    """
    owner = np.arange(len(order), dtype=np.int64)  # by rank, as all that follows
    waiting = np.ones(len(order), np.bool_)
    buckets = _fill_buckets(pool.sketches, order, scratch)
    for _ in progress(range(rounds), desc="cluster", unit="round"):
        edges = np.zeros(0, np.uint64)
        for path in buckets:
            found = _compare(path, waiting, edges, pool, order, threshold)
            edges = np.union1d(edges, found)
        if not any(path.stat().st_size for path in buckets):
            break
        centers, members = (edges >> _HALF).astype(np.int64), (edges & _LOW).astype(np.int64)
        follows = np.zeros(len(order), np.bool_)
        follows[members] = True
        settled = ~follows[centers]
        # Ranks ascend: writing backwards leaves the longest of several representatives.
        owner[members[settled][::-1]] = centers[settled][::-1]
        waiting[centers[settled]] = waiting[members[settled]] = False
    representative = np.empty(len(order), np.int64)
    representative[order] = order[owner]
    return representative


def _fill_buckets(sketches: Sketches, order: np.ndarray, scratch: Path) -> list[Path]:
    """Write pairs of k-mer (upper half) and rank, sorted, into files that share no k-mer."""
    ranks = np.empty(len(order), np.uint64)
    ranks[order] = np.arange(len(order), dtype=np.uint64)
    sketches = sketches[:, :_WIDTH]
    count = max(1, -(-sketches.size // _ENTRIES))
    paths = [scratch / f"bucket-{number:04d}" for number in range(count)]
    files = [path.open("wb") for path in paths]
    try:
        step = max(1, (_ENTRIES >> 2) // sketches.shape[1])
        for first in range(0, len(order), step):
            block = np.asarray(sketches[first : first + step])
            rows, columns = np.nonzero(block != EMPTY)
            hashes = block[rows, columns] >> _HALF
            entries = hashes << _HALF | ranks[first : first + step][rows]
            place = hashes % np.uint64(count)
            for number, file in enumerate(files):
                entries[place == number].tofile(file)
    finally:
        for file in files:
            file.close()
    for path in paths:
        entries = np.fromfile(path, np.uint64)
        entries.sort()
        entries.tofile(path)
    return paths


def _compare(
    path: Path,
    waiting: np.ndarray,
    known: np.ndarray,
    pool: Pool,
    order: np.ndarray,
    threshold: float,
) -> np.ndarray:
    """Compare each sequence with the first of its buckets; return pairs (first, member) alike.

    Pairs that are `known` to be alike are not compared again. What is left of the buckets is
    written back: without sequences that have their place, and without a first whom nobody is like.
    """
    entries = np.fromfile(path, np.uint64)
    entries = entries[waiting[(entries & _LOW).astype(np.int64)]]
    kmers = entries >> _HALF
    begin = np.flatnonzero(np.diff(kmers, prepend=~kmers[:1]))
    sizes = np.diff(begin, append=len(entries))
    crowded = sizes > 1
    entries = entries[np.repeat(crowded, sizes)]
    sizes = sizes[crowded]
    if not len(entries):
        path.write_bytes(b"")
        return np.zeros(0, np.uint64)
    begin = np.cumsum(sizes) - sizes
    ranks = entries & _LOW
    pairs = np.repeat(ranks[begin], sizes) << _HALF | ranks
    pairs[begin] = 0  # the first with itself
    unique, which = np.unique(pairs, return_inverse=True)
    alike = np.isin(unique, known)
    new = ~alike & (unique > 0)
    alike[new] = _verify(unique[new], pool, order, threshold)
    liked = np.logical_or.reduceat(alike[which], begin)
    keep = np.ones(len(entries), np.bool_)
    keep[begin] = liked
    entries[keep].tofile(path)
    found: np.ndarray = unique[alike]
    return found


def _verify(pairs: np.ndarray, pool: Pool, order: np.ndarray, threshold: float) -> np.ndarray:
    alike = np.zeros(len(pairs), np.bool_)
    centers = order[(pairs >> _HALF).astype(np.int64)]
    members = order[(pairs & _LOW).astype(np.int64)]
    piece = np.cumsum(pool.bounds[members + 1] - pool.bounds[members]) // _LETTERS
    for rows in np.split(np.arange(len(pairs)), np.flatnonzero(np.diff(piece)) + 1):
        found = measure_identity(pool, members[rows], centers[rows])
        alike[rows] = found >= threshold
    return alike
