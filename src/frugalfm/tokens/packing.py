"""Packed batches: several sequences share a row of fixed width, so that hardly a pad is left.

Which sequences share one is a pure function of lengths, seed and epoch, as with padded batches.
"""

from __future__ import annotations

import bisect

import numpy as np

from frugalfm.errors import InputError
from frugalfm.tokens.batches import SPECIALS

__all__ = ["place_tokens", "plan_packs"]


def plan_packs(
    lengths: np.ndarray,
    batch_tokens: int,
    width: int,
    *,
    seed: int,
    epoch: int,
    bucket: int = 4096,
) -> list[list[np.ndarray]]:
    """Shuffle all rows into packed batches for one epoch.

    Rows are permuted and cut into buckets; those of a bucket are packed (best fit, longest
    first); then the packs of the epoch are permuted and cut into batches.

    Parameters
    ----------
    lengths
        Tokens of each row, without special tokens, shape ``(n,)``.
    batch_tokens
        Packs times `width` stay at or below this, except that a batch always holds one pack.
    width
        Tokens of a pack, special tokens and pads included.
    seed, epoch
        Determine the order; nothing else does.
    bucket
        Rows that are packed together.

    Returns
    -------
    list of list of ndarray
        Of each batch its packs, of each pack its int64 row numbers; every row occurs once.

    Raises
    ------
    InputError
        A row is too long for a pack.
    """
    sizes = lengths.astype(np.int64) + SPECIALS
    if len(sizes) and sizes.max() > width:
        raise InputError(
            f"--pack {width}: the longest sequence has {sizes.max()} tokens with its special ones; "
            f"give --pack {sizes.max()} or more, or `frugalfm build --max-length` shorter ones"
        )
    random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = random.permutation(len(sizes))
    packs: list[np.ndarray] = []
    for start in range(0, len(order), bucket):
        packs += _pack(order[start : start + bucket], sizes, width)
    shuffled = [packs[index] for index in random.permutation(len(packs))]
    count = max(1, batch_tokens // width)
    return [shuffled[start : start + count] for start in range(0, len(shuffled), count)]


def place_tokens(packs: list[np.ndarray], sizes: np.ndarray, width: int) -> tuple[np.ndarray, ...]:
    """Say where the tokens of packed sequences go, one sequence after the other.

    Parameters
    ----------
    packs
        Row numbers of each pack.
    sizes
        Tokens of each sequence, special ones included, in the order of the packs.
    width
        Of a pack.

    Returns
    -------
    places : ndarray
        int64: of each token its place in the flattened ``(packs, width)``.
    segments : ndarray
        int64, shape ``(packs, width)``: 1 for the tokens of a pack's first sequence, 2 for those
        of its second and so on, 0 for pads.
    """
    members = np.array([len(pack) for pack in packs])
    ends = np.cumsum(sizes)
    filled = np.diff(ends[np.cumsum(members) - 1], prepend=0)
    shifts = np.arange(len(packs)) * width - (np.cumsum(filled) - filled)
    places = np.arange(ends[-1]) + np.repeat(shifts, filled)
    numbers = np.concatenate([np.arange(1, count + 1) for count in members])
    segments = np.zeros(len(packs) * width, np.int64)
    segments[places] = np.repeat(numbers, sizes)
    return places, segments.reshape(len(packs), width)


def _pack(rows: np.ndarray, sizes: np.ndarray, width: int) -> list[np.ndarray]:
    """Pack some rows: longest first, each where the least room is left that holds it."""
    packs: list[list[int]] = []
    # Packs by the room they have left, and the rooms there are, smallest first.
    with_room: list[list[int]] = [[] for _ in range(width + 1)]
    rooms: list[int] = []
    order = np.argsort(-sizes[rows], kind="stable")
    for row, size in zip(rows[order].tolist(), sizes[rows[order]].tolist(), strict=True):
        found = bisect.bisect_left(rooms, size)
        if found < len(rooms):
            room = rooms[found]
            pack = with_room[room].pop()
            if not with_room[room]:
                del rooms[found]
            packs[pack].append(row)
        else:
            room, pack = width, len(packs)
            packs.append([row])
        left = room - size
        if not with_room[left]:
            bisect.insort(rooms, left)
        with_room[left].append(pack)
    return [np.array(pack, np.int64) for pack in packs]
