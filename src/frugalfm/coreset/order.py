"""Exact order statistics in bounded memory: radix selection over the bits of a float32."""

from __future__ import annotations

import functools
import threading
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
    "Watch",
    "bucket_starts",
    "count_upper",
    "in_order",
    "key_of_upper",
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


@functools.cache
def key_of_upper(bits: int = 16) -> npt.NDArray[np.intp]:
    """Return the upper bits of a value's key, by the value's own (of -0.0: just below those)."""
    upper, half = np.arange(1 << bits), 1 << bits - 1
    return np.where(upper < half, upper ^ half, (1 << bits) - 1 - upper)


def count_upper(counts: Counts, values: npt.NDArray[np.float32]) -> None:
    """Add to counts, shape ``(2 ** 16,)``, of :func:`upper_bits`."""
    np.add.at(counts, upper_bits(values).astype(np.intp), 1)


def in_order(counts: Counts) -> Counts:
    """Put counts of upper bits, shape ``(..., 2 ** bits)``, into the order of the values."""
    at = np.argsort(key_of_upper(counts.shape[-1].bit_length() - 1))
    return counts.take(at, axis=-1)


def bucket_starts() -> npt.NDArray[np.float64]:
    """Return the smallest value of each of the 2^16 buckets of upper bits, in their order.

    Infinite for those of NaN, at both ends.
    """
    starts = _values(np.arange(1 << 16, dtype=np.uint32) << np.uint32(16))
    ends = np.repeat(np.array([-np.inf, np.inf], np.float32), 1 << 15)
    return np.where(np.isnan(starts), ends, starts).astype(np.float64)


def _values(keys: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    top = np.uint32(1 << 31)
    return np.where(keys & top, keys ^ top, ~keys).view(np.float32)


class _Descent:
    """Some (group, rank): of each the slot, the digits so far, how many are below and equal."""

    def __init__(self, wanted: Sequence[tuple[int, int]], bits: int):
        self._bits = bits
        self._at = {key: (key[0], 0, 0, 0) for key in wanted}
        self.slots = 0
        self.tables: list[npt.NDArray[np.int32]] = []

    def narrow(self, counts: Counts) -> None:
        """Find the next digits from their counts, and give a slot to each that differs."""
        table, self.slots = np.full(counts.shape, -1, np.int32), 0
        up_to = {slot: np.cumsum(counts[slot]) for slot in {slot for slot, *_ in self._at.values()}}
        for key, (slot, prefix, fewer, _) in self._at.items():
            digit = int(np.searchsorted(up_to[slot], key[1] - fewer))
            if table[slot, digit] < 0:
                table[slot, digit] = self.slots
                self.slots += 1
            equal = int(counts[slot, digit])
            below = fewer + int(up_to[slot][digit]) - equal
            self._at[key] = int(table[slot, digit]), prefix << self._bits | digit, below, equal
        self.tables.append(table)

    def found(self) -> dict[tuple[int, int], OrderStatistic]:
        values = _values(np.array([at[1] for at in self._at.values()], np.uint32)).tolist()
        return {
            key: OrderStatistic(value, *at[2:])
            for (key, at), value in zip(self._at.items(), values, strict=True)
        }


class Watch:
    """Counts the lower bits of the values at some ranks, from counts of the upper bits."""

    def __init__(self, counts: Counts, ranks: Sequence[int]):
        self._search, self._lock = _Descent([(0, rank) for rank in ranks], 16), threading.Lock()
        self._search.narrow(counts)
        self._table = self._search.tables[0][0].take(key_of_upper()).astype(np.int16)
        self._counts = np.zeros(self._search.slots << 16, np.int64)

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """See some values."""
        values = values + np.float32(0)  # -0.0 becomes 0.0
        slot = self._table.take(upper_bits(values))
        places = np.flatnonzero(slot >= 0)
        lower = sort_keys(values[places]) & np.uint32(0xFFFF)
        found = (slot[places].astype(np.intp) << 16) + lower
        with self._lock:
            np.add.at(self._counts, found, 1)

    def find(self) -> dict[tuple[int, int], OrderStatistic]:
        """Return what is at the ranks, once all values were seen."""
        self._search.narrow(self._counts.reshape(-1, 1 << 16))
        return self._search.found()


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
    groups
        Inside which it ranks.
    sizes
        Number of rows of each group.
    counts
        Shape ``(groups, 2 ** bits)``: rows of each group by first digit.
    """

    def __init__(
        self, pool: Pool, column: str, groups: Groups = WHOLE, *, counts: Counts | None = None
    ):
        self._pool, self._column, self.groups = pool, column, groups
        self._bits = 16 if groups.count <= _MANY_GROUPS else 8
        self.counts: Counts = self._count([], groups.count) if counts is None else counts
        self.sizes = self.counts.sum(1)
        self._found: dict[tuple[int, int], OrderStatistic] = {}
        self._expected: list[tuple[int, int]] = []
        self._watch: Watch | None = None

    def at(self, ranks: Mapping[int, Sequence[int]]) -> dict[tuple[int, int], OrderStatistic]:
        """Find the value at each rank, exactly, from (group, rank); the smallest has rank 1.

        What was found or watched before is remembered: to ask for all ranks at once saves passes.
        """
        if self._watch is not None:
            self._found |= self._watch.find()
            self._watch = None
        keys = [(group, rank) for group, own in ranks.items() for rank in own]
        if wanted := [key for key in keys if key not in self._found]:
            self._found |= self._find([*wanted, *self._expected])
            self._expected = []
        return {key: self._found[key] for key in keys}

    def expect(self, ranks: Sequence[int]) -> None:
        """Look for these ranks too in the next pass that is made, of a whole pool."""
        self._expected += [(0, rank) for rank in ranks]

    def watch(self) -> Watch | None:
        """Return what finds the expected ranks by seeing all values; None if they are known.

        Once it has seen them, in a pass that is made anyway, `at` knows those ranks.
        """
        if self._expected:
            self._watch = Watch(self.counts, [rank for _, rank in self._expected])
            self._expected = []
        return self._watch

    def _find(self, wanted: Sequence[tuple[int, int]]) -> dict[tuple[int, int], OrderStatistic]:
        search, counts = _Descent(wanted, self._bits), self.counts
        for depth in range(32 // self._bits):
            if depth:
                counts = self._count(search.tables, search.slots)
            search.narrow(counts)
        return search.found()

    def _count(self, tables: Sequence[npt.NDArray[np.int32]], slots: int) -> Counts:
        """Count the next digit of the values whose digits so far are in the tables."""
        bits, column, lock = self._bits, self._column, threading.Lock()
        counts = np.zeros(slots << bits, np.int64)
        # First digits are looked up as they are in memory, which costs nothing: so is the table.
        tables = [tables[0].take(key_of_upper(bits), axis=1), *tables[1:]] if tables else []
        wanted = (tables[0] >= 0).any(0) if tables else None

        def look(blocks: Iterator[Block]) -> None:
            for block in blocks:
                values = block[column] + np.float32(0)  # -0.0 becomes 0.0
                digit = values.view(f"u{bits // 8}")[32 // bits - 1 :: 32 // bits]
                places = None if wanted is None else np.flatnonzero(wanted.take(digit))
                places, group = self._inside(block, places)
                if places is not None:
                    values, digit = values[places], digit[places]
                found = self._next_digit(values, (group << bits) + digit, tables)
                with lock:
                    np.add.at(counts, found, 1)

        for _ in self._pool.map(look, [column, *self.groups.columns], desc="rank"):
            pass
        table = counts.reshape(slots, -1)
        return table if tables else in_order(table)

    def _next_digit(
        self, values: Any, place: Any, tables: Sequence[npt.NDArray[np.int32]]
    ) -> npt.NDArray[np.intp]:
        """Return where a table of counts has the next digit of values that are in the tables."""
        for depth, table in enumerate(tables, 1):
            slot = table.reshape(-1).take(place)
            kept = np.flatnonzero(slot >= 0)
            values, slot = values[kept], slot[kept].astype(np.intp)
            digit = sort_keys(values) >> np.uint32(32 - self._bits * (depth + 1))
            place = (slot << self._bits) + (digit & np.uint32((1 << self._bits) - 1))
        return np.asarray(place, np.intp)

    def _inside(self, block: Block, places: Any) -> tuple[Any, Any]:
        """Return which of the rows at `places` (None: of all) count, and their groups."""
        if block.eligible is not None:
            eligible = block.eligible if places is None else block.eligible[places]
            places = np.flatnonzero(eligible) if places is None else places[eligible]
        if self.groups.number is None:
            return places, np.intp(0)
        group = self.groups.number(block if places is None else block.take(places))
        if not self.groups.complete:
            inside = np.flatnonzero(group >= 0)
            places = inside if places is None else places[inside]
            group = group[inside]
        return places, group.astype(np.intp)
