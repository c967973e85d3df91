"""Exact order statistics in bounded memory: radix selection over the bits of a float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from frugalfm.coreset.pool import Block, Pool

__all__ = [
    "WHOLE",
    "Counts",
    "Groups",
    "Numbers",
    "OrderStatistic",
    "Ranking",
    "bucket_starts",
    "count_upper",
    "in_order",
    "sort_keys",
    "upper_bits",
]

Numbers = npt.NDArray[np.signedinteger[Any]]
Counts = npt.NDArray[np.int64]
_MANY_GROUPS = 64


class OrderStatistic(NamedTuple):
    """The value at a rank, how many values are smaller, and how many are the same."""

    value: float
    below: int
    equal: int


@dataclass(frozen=True)
class Groups:
    """A division of the pool: how many groups, what tells them apart, and the group of each row.

    `number` returns an array of a block's size, -1 for rows of no group, which `complete` says
    there are not; None puts all rows into group 0.
    """

    count: int = 1
    columns: tuple[str, ...] = ()
    number: Callable[[Block], Numbers] | None = None
    complete: bool = False


WHOLE = Groups(complete=True)


def sort_keys(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Turn float32 into integers of the same order; -0.0 becomes 0.0."""
    keys = (values + np.float32(0)).view(np.int32)
    flip = keys >> np.int32(31)
    flip |= np.int32(-(1 << 31))
    keys ^= flip
    return keys.view(np.uint32)


def upper_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return sign, exponent and 7 bits of precision, as they are in memory; costs nothing."""
    return values.view(np.uint16)[1::2]


KEY_OF_UPPER = np.where(np.arange(1 << 16) < 1 << 15, np.arange(1 << 16) ^ 1 << 15,
                        (1 << 16) - 1 - np.arange(1 << 16))  # fmt: skip
"""The upper 16 bits of a value's key, from its own upper 16 bits (of -0.0: just below those)."""


def count_upper(counts: Counts, values: npt.NDArray[np.float32]) -> None:
    """Add to counts, shape ``(2 ** 16,)``, of :func:`upper_bits`."""
    np.add.at(counts, upper_bits(values).astype(np.intp), 1)


def in_order(counts: Counts) -> Counts:
    """Put counts of upper bits into the order of the values."""
    ordered = np.empty_like(counts)
    ordered[KEY_OF_UPPER] = counts
    return ordered


def bucket_starts() -> npt.NDArray[np.float64]:
    """Return the smallest value of each of the 2^16 buckets of upper bits, in their order.

    Infinite for those of NaN, at both ends.
    """
    starts = _values(np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)).tolist()
    ends = (-math.inf, math.inf)
    return np.array([ends[n >> 15] if math.isnan(v) else v for n, v in enumerate(starts)])


def _values(keys: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    top = np.uint32(1 << 31)
    return np.where(keys & top, keys ^ top, ~keys).view(np.float32)


class Ranking:
    """Values of a column by rank, inside the groups of a pool.

    The bits of a value, the highest first, are its digits. A first pass counts first digits; they
    tell the first digit of the value at any rank. Every further pass counts the next digit of
    those values only whose digits so far are wanted: one pass more for up to 64 groups, three for
    more (with smaller digits, so that a table stays small).

    Parameters
    ----------
    pool
        The scores; only what is eligible counts.
    column
        ``influence`` or ``loss``.
    groups
        Inside which to rank.
    counts
        What the first pass would count, if known.

    Attributes
    ----------
    sizes
        Number of rows of each group.
    counts
        Shape ``(groups, 2 ** bits)``: rows of each group by first digit.
    """

    def __init__(
        self, pool: Pool, column: str, groups: Groups = WHOLE, *, counts: Counts | None = None
    ):
        self._pool, self._column, self._groups = pool, column, groups
        self._bits = 16 if groups.count <= _MANY_GROUPS else 8
        self.counts: Counts = self._count([], groups.count) if counts is None else counts
        self.sizes = self.counts.sum(1)
        self._found: dict[tuple[int, int], OrderStatistic] = {}

    def at(self, ranks: Mapping[int, Sequence[int]]) -> dict[tuple[int, int], OrderStatistic]:
        """Find the value at each rank, exactly, from (group, rank); the smallest has rank 1.

        What was found before is remembered: to ask for all ranks at once saves passes.
        """
        keys = [(group, rank) for group, own in ranks.items() for rank in own]
        if wanted := [key for key in keys if key not in self._found]:
            self._found |= self._find(wanted)
        return {key: self._found[key] for key in keys}

    def _find(self, wanted: Sequence[tuple[int, int]]) -> dict[tuple[int, int], OrderStatistic]:
        at = {key: (key[0], 0, 0, 0) for key in wanted}  # slot, digits so far, below, equal
        counts, tables = self.counts, list[npt.NDArray[np.int32]]()
        for depth in range(32 // self._bits):
            if depth:
                counts = self._count(tables, 1 + max((slot for slot, *_ in at.values()), default=0))
            table = np.full(counts.shape, -1, np.int32)
            for key, (slot, prefix, fewer, _) in at.items():
                up_to = np.cumsum(counts[slot])
                digit = int(np.searchsorted(up_to, key[1] - fewer))
                if table[slot, digit] < 0:
                    table[slot, digit] = table.max() + 1
                equal = int(counts[slot, digit])
                below = fewer + int(up_to[digit]) - equal
                at[key] = int(table[slot, digit]), prefix << self._bits | digit, below, equal
            tables.append(table)
        values = _values(np.array([at[key][1] for key in wanted], np.uint32)).tolist()
        return {
            key: OrderStatistic(value, *at[key][2:])
            for key, value in zip(wanted, values, strict=True)
        }

    def _count(self, tables: Sequence[npt.NDArray[np.int32]], slots: int) -> Counts:
        """Count the next digit of the values whose digits so far are in the tables."""
        bits, column = self._bits, self._column

        def look(blocks: Iterator[Block]) -> npt.NDArray[Any]:
            return np.concatenate([find(block) for block in blocks])

        def find(block: Block) -> npt.NDArray[np.uint32]:
            keys, slot = sort_keys(block[column]), self._slots(block)
            if (inside := self._inside(block, slot)) is not None:
                keys, slot = keys[inside], slot if slot is None else slot[inside]
            place = self._place(keys, slot, 0)
            for depth, table in enumerate(tables):
                next_slot = table.reshape(-1).take(place)
                found = np.flatnonzero(next_slot >= 0)
                keys = keys[found]
                place = self._place(keys, next_slot[found].view(np.uint32), depth + 1)
            return place

        counts = np.zeros(slots << bits, np.int64)
        for found in self._pool.map(look, [column, *self._groups.columns], desc="rank"):
            np.add.at(counts, found, 1)
        return counts.reshape(slots, -1)

    def _slots(self, block: Block) -> npt.NDArray[np.uint32] | None:
        number = self._groups.number
        return None if number is None else number(block).astype(np.int32).view(np.uint32)

    def _inside(self, block: Block, slot: npt.NDArray[np.uint32] | None) -> Any:
        """Return the places of the rows that count; None for all."""
        if slot is None or self._groups.complete:
            return None if block.eligible is None else np.flatnonzero(block.eligible)
        inside = slot < np.uint32(self._groups.count)
        return np.flatnonzero(inside if block.eligible is None else inside & block.eligible)

    def _place(
        self, keys: npt.NDArray[np.uint32], slot: npt.NDArray[np.uint32] | None, depth: int
    ) -> npt.NDArray[np.uint32]:
        """Return where a table of counts has the next digit of keys whose slots are known."""
        digit = keys >> np.uint32(32 - self._bits * (depth + 1))
        if depth:
            digit &= np.uint32((1 << self._bits) - 1)
        if slot is not None:
            digit |= slot << np.uint32(self._bits)
        return digit
