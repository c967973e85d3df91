"""What may be chosen at all: what is complex enough, and the best few of each cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from frugalfm.coreset.ids import hash_ids
from frugalfm.coreset.pool import Block, Mask, Pool

__all__ = ["Preference", "cap_clusters", "require_complexity"]

_MEMBER = np.dtype(
    [("cluster", np.int64), ("worse", np.float32), ("hash", np.uint64), ("place", np.int64)]
)
_BYTES_A_MEMBER = 240  # twice what sorting needs: a kept column needs memory too
_MOST_PARTITIONS = 200
_LEAST_PIECE = 1 << 16  # members


class Preference(NamedTuple):
    """Which members of a cluster come first: by `sign` times `column`, descending."""

    column: str
    sign: int


def require_complexity(pool: Pool, least: float) -> int:
    """Make rows of lower complexity ineligible; return how many there were."""

    def look(blocks: Iterator[Block]) -> Mask:
        return np.concatenate([block["complexity"] >= least for block in blocks])

    return _restrict(pool, np.concatenate(list(pool.map(look, ["complexity"], desc="complexity"))))


def cap_clusters(pool: Pool, most: int, prefer: Preference | None, seed: int) -> int:
    """Make all but `most` rows of each cluster ineligible; return how many that were.

    Rows that are ineligible already do not count. The preferred rows stay; among equal ones, or
    without a preference, those with the smallest hash of their id and the seed. Members are
    distributed over files by cluster, and each file is then reduced piece by piece, so that memory
    depends neither on the number nor on the size of clusters.

    Parameters
    ----------
    pool
        With the aligned column ``cluster``.
    most
        Rows of a cluster that stay eligible.
    prefer
        What comes first.
    seed
        Seed of the draw.
    """
    pieces = min(_MOST_PARTITIONS, 1 + pool.size * _BYTES_A_MEMBER // max(pool.memory, 1))
    limit = max(pool.memory // _BYTES_A_MEMBER, _LEAST_PIECE)
    paths = [pool.scratch / f"clusters-{number}" for number in range(pieces)]
    _distribute(pool, prefer, seed, paths)
    kept = np.zeros(pool.size, np.bool_)
    for path in paths:
        best = np.empty(0, _MEMBER)
        with path.open("rb") as file:
            while len(more := np.fromfile(file, _MEMBER, limit)):
                best = _best(np.concatenate([best, more]), most)
        kept[best["place"]] = True
        path.unlink()
    return _restrict(pool, kept)


def _distribute(pool: Pool, prefer: Preference | None, seed: int, paths: list[Path]) -> None:
    def look(blocks: Iterator[Block]) -> tuple[npt.NDArray[Any], list[int]]:
        members = np.concatenate([describe(block) for block in blocks])
        piece = (members["cluster"] % len(paths)).astype(np.uint8)
        order = np.argsort(piece, kind="stable")
        ends = np.searchsorted(piece[order], np.arange(len(paths)), side="right")
        return members[order], ends.tolist()

    def describe(block: Block) -> npt.NDArray[Any]:
        members = np.empty(block.size, _MEMBER)
        members["cluster"] = block["cluster"]
        members["worse"] = -prefer.sign * block[prefer.column] if prefer else 0
        members["hash"] = hash_ids(block["id"], seed, "cap")
        members["place"] = np.arange(block.start, block.start + block.size)
        return members if block.eligible is None else members[block.eligible]

    files = [path.open("wb") for path in paths]
    try:
        columns = ["id", "cluster", *([prefer.column] if prefer else [])]
        for members, ends in pool.map(look, columns, desc="clusters"):
            for file, start, end in zip(files, [0, *ends[:-1]], ends, strict=True):
                members[start:end].tofile(file)
    finally:
        for file in files:
            file.close()


def _best(members: npt.NDArray[Any], most: int) -> npt.NDArray[Any]:
    """Keep the best members of each cluster."""
    members = members[np.argsort(members["cluster"])]
    sizes = _sizes(members["cluster"])
    large = np.repeat(sizes > most, sizes)
    some = members[large]  # of small clusters all stay, and most are small
    some = some[np.lexsort([some[key] for key in ("place", "hash", "worse", "cluster")])]
    sizes = _sizes(some["cluster"])
    rank = np.arange(len(some)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.concatenate([members[~large], some[rank < most]])


def _sizes(ordered: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the lengths of the runs of equal numbers."""
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, len(ordered))
    return np.diff(ends, prepend=0)


def _restrict(pool: Pool, kept: Mask) -> int:
    before = pool.size if pool.eligible is None else int(np.count_nonzero(pool.eligible))
    if pool.eligible is not None:
        kept &= pool.eligible
    pool.eligible = kept
    return before - int(np.count_nonzero(kept))
