"""How alike two sequences are, judged along the k-mers that they share; many pairs at once.

A shared k-mer says which letter of the one faces which letter of the other: it fixes a diagonal.
Between two neighbouring shared k-mers on different diagonals there is one gap, put where most
letters agree. No dynamic programming is needed, and numpy does thousands of pairs in one go.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from frugalfm.sequences.sketches import EMPTY, Sketches

__all__ = ["Pool", "measure_identity"]

_SIDE, _COLUMN = np.uint64(64), np.uint64(63)
_SEVEN, _HALF = np.uint64(7), np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True)
class Pool:
    """What is compared; may be memory maps.

    Attributes
    ----------
    letters
        uint8, all sequences end to end.
    bounds
        int64, where each begins, and where the last ends.
    sketches
        Of all sequences, at most 64 wide.
    """

    letters: np.ndarray
    bounds: np.ndarray
    sketches: Sketches


def measure_identity(pool: Pool, members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Measure what share of each member's letters the other sequence has, in order.

    Parameters
    ----------
    pool
        The sequences.
    members, others
        Rows, one pair a place; shape ``(n,)``.

    Returns
    -------
    ndarray
        float64 in 0..1, shape ``(n,)``: letters that agree, divided by the member's length. What
        hangs over an end of the other counts as unlike, as does a pair without a shared k-mer.
    """
    pair, here, there = _anchors(pool.sketches[members], pool.sketches[others])
    lengths = (pool.bounds[members + 1] - pool.bounds[members]).astype(np.int64)
    found = np.zeros(len(members))
    if not len(pair):
        return found
    # A segment runs from one shared k-mer (or an end) to the next; at the ends of the other
    # sequence, it stops short.
    first = np.diff(pair, prepend=-1) > 0
    last = np.append(first[1:], True)
    owner = np.concatenate([pair, pair[last]])
    diagonal = np.concatenate([there - here, (there - here)[last]])
    bent = np.where(first, there - here, np.roll(there - here, 1))
    begin = np.where(first, np.maximum(0, here - there), np.roll(here, 1))
    begin = np.concatenate([begin, here[last]])
    room = pool.bounds[others + 1] - pool.bounds[others]
    end = np.minimum(lengths[owner], room[owner] - diagonal)
    end[: len(here)] = here
    start, other = pool.bounds[members][owner] + begin, pool.bounds[others][owner] + begin
    left = np.concatenate([bent, diagonal[len(here) :]])
    agree = _agreeing(pool.letters, start, other + left, other + diagonal, end - begin)
    total = np.bincount(owner, agree, len(members))
    np.divide(total, lengths, out=found, where=lengths > 0)
    return found


def _anchors(members: Sketches, others: Sketches) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shared k-mers: number of the pair, places in the member (ascending in it) and the other."""
    size = members.shape[1]
    column = np.arange(size, dtype=np.uint64)
    pair = (np.arange(len(members), dtype=np.uint64) << np.uint64(39))[:, None]
    keys = np.concatenate(
        [
            (pair | members >> _HALF << _SEVEN | column)[members != EMPTY],
            (pair | others >> _HALF << _SEVEN | _SIDE | column)[others != EMPTY],
        ]
    )
    keys.sort()
    twice = np.flatnonzero(keys[1:] >> _SEVEN == keys[:-1] >> _SEVEN)
    number = (keys[twice] >> np.uint64(39)).astype(np.int64)
    here = members[number, (keys[twice] & _COLUMN).astype(np.int64)] & _LOW
    there = others[number, (keys[twice + 1] & _COLUMN).astype(np.int64)] & _LOW
    order = np.argsort(number.astype(np.uint64) << _HALF | here, kind="stable")
    return number[order], here[order].astype(np.int64), there[order].astype(np.int64)


def _agreeing(
    letters: np.ndarray, here: np.ndarray, left: np.ndarray, right: np.ndarray, size: np.ndarray
) -> np.ndarray:
    """Count the letters that agree in each segment, along one diagonal up to some place, then
    along the other, with that place where it is best.

    `here` is where segments begin in the member; `left` and `right` where they begin in the other
    sequence, along the one diagonal and the other. All positions are those in `letters`.
    """  # noqa: D205
    count = _sum(_equal(letters, here, right, size), size)
    bent = np.flatnonzero((left != right) & (size > 0))
    if len(bent):
        here, left, right, size = here[bent], left[bent], right[bent], size[bent]
        gain = _equal(letters, here, left, size).view(np.int8)
        gain = gain - _equal(letters, here, right, size).view(np.int8)
        run = np.cumsum(gain, dtype=np.int32)
        first = np.cumsum(size) - size
        before = run[first] - gain[first]
        count[bent] += np.maximum(np.maximum.reduceat(run, first) - before, 0)
    return count


def _equal(
    letters: np.ndarray, here: np.ndarray, there: np.ndarray, size: np.ndarray
) -> np.ndarray:
    place = np.arange(int(size.sum())) + np.repeat(here - (np.cumsum(size) - size), size)
    facing = place + np.repeat(there - here, size)
    # A diagonal that another one follows may run over the ends of the pool.
    equal: np.ndarray = letters[place] == letters.take(facing, mode="clip")
    return equal


def _sum(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    total = np.zeros(len(values) + 1, np.int32)
    np.cumsum(values, out=total[1:])
    ends = np.cumsum(sizes)
    sums: np.ndarray = total[ends] - total[ends - sizes]
    return sums
