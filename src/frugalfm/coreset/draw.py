"""Exact uniform draws without replacement, in one pass: hash bottom-k."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from frugalfm.coreset.ids import Words, hash_ids
from frugalfm.coreset.order import Numbers, upper_bits
from frugalfm.coreset.pool import MOST_ROWS, Block, Pool
from frugalfm.coreset.strategies import Plan
from frugalfm.coreset.tally import Tally

__all__ = ["Drawn", "draw"]

Places = npt.NDArray[np.int64]
_HIGHEST = (1 << 64) - 1
_LAST = np.iinfo(np.int64).max
_WRITE = 1 << 16  # rows at a time


@dataclass(frozen=True)
class Drawn:
    """Candidates in a file, and the last (hash, place) that is drawn from each cell."""

    path: Path
    hashes: Words
    places: npt.NDArray[np.int64]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield what was drawn, in ascending order of ``place``."""
        with pa.OSFile(str(self.path)) as file, pa.ipc.open_stream(file) as reader:
            for batch in reader:
                cell, own = batch["cell"].to_numpy(), batch["hash"].to_numpy()
                limit = self.hashes[cell]
                drawn = (own < limit) | (
                    (own == limit) & (batch["place"].to_numpy() <= self.places[cell])
                )
                yield batch if drawn.all() else batch.filter(pa.array(drawn))


@dataclass
class _Bounds:
    """Hashes between which the last drawn hash of each cell is expected."""

    low: Words
    high: Words

    @classmethod
    def of(cls, plan: Plan) -> _Bounds:
        cells = list(zip(plan.populations.tolist(), plan.quotas.tolist(), strict=True))
        found = [_expected(*cell) for cell in cells]
        return cls(*(np.array(ends, np.uint64) for ends in zip(*found, strict=True)))


def _expected(population: int, quota: int) -> tuple[int, int]:
    """Enclose the quota-th smallest of so many hashes, with six standard deviations."""
    if quota in {0, population}:
        return 0, 0
    margin = 6 * math.sqrt(quota) + 20
    return tuple(
        min(max(int((quota + sign * margin) / population * 2**64), 0), _HIGHEST) for sign in (-1, 1)
    )  # type: ignore[return-value]


def draw(
    pool: Pool,
    plan: Plan,
    *,
    seed: int,
    purpose: str = "",
    carry: Sequence[str] = (),
    tally: Tally | None = None,
    among: Sequence[int] | None = None,
) -> Drawn:
    """Draw each cell's quota, uniformly.

    Hash bottom-k: a cell gives the rows with the smallest hash of their id and the seed (equal
    hashes: the first rows). Being of the id, the draw does not depend on the order or number of
    files, and draws of parts can be merged.

    Rows whose hash is under a bound a little above the expected last one become candidates and go
    to a file; only hashes near the expected last one are held in memory and sorted.

    Parameters
    ----------
    pool
        The scores.
    plan
        What to draw.
    seed
        Another seed, another draw.
    purpose
        Makes draws with one seed independent of each other.
    carry
        Columns that the candidates keep.
    tally
        Counts the pool on the way; needs its columns to be carried.
    among
        Row groups to draw from; all by default.
    """
    bounds = _Bounds.of(plan)
    while True:
        path = pool.scratch / f"candidates-{purpose}"
        search = _Search(pool, plan, bounds, seed, purpose, carry)
        drawn, missed = _attempt(pool, search, path, tally, among)
        if not len(missed):
            return drawn
        # Beyond six standard deviations, or many equal ids: look at the whole of those cells.
        bounds.low[missed], bounds.high[missed] = 0, _HIGHEST
        tally = None


def _attempt(
    pool: Pool, search: _Search, path: Path, tally: Tally | None, among: Sequence[int] | None
) -> tuple[Drawn, npt.NDArray[np.int64]]:
    def look(blocks: Iterator[Block]) -> tuple[pa.Table | None, Tally | None]:
        seen = tally.start() if tally is not None else None
        found = []
        for block in blocks:
            if seen is not None:
                seen.add(block.columns)
            if (columns := search.candidates(block)) is not None:
                found.append(columns)
        return _as_table(found) if found else None, seen

    counts = _Counts(search.bounds)
    with _Writer(path) as writer:
        for found, seen in pool.map(look, search.columns, desc="draw", among=among):
            if tally is not None and seen is not None:
                tally.merge(seen)
            if found is not None:
                counts.add(found)
                writer.write(found)
    hashes, places, missed = counts.limits(search.plan)
    return Drawn(path, hashes, places), missed


class _Memory(threading.local):
    """Of a thread, for the hashes of a block: fresh memory would cost as much as they do."""

    def __init__(self) -> None:
        self.hashes = np.empty(MOST_ROWS, np.uint64)


_memory = _Memory()


def _as_table(found: Sequence[dict[str, Any]]) -> pa.Table:
    columns = {}
    for name in found[0]:
        own = [columns[name] for columns in found]
        joined = pa.concat_arrays(own).cast(pa.string()) if name == "id" else np.concatenate(own)
        columns[name] = pa.array(joined)
    return pa.table(columns)


class _Search:
    """Finds candidates: rows of a block whose hash is within the bounds of their cell."""

    def __init__(
        self,
        pool: Pool,
        plan: Plan,
        bounds: _Bounds,
        seed: int,
        purpose: str,
        carry: Sequence[str],
    ):
        self.plan, self.bounds, self._carry = plan, bounds, carry
        self._seed, self._purpose = seed, purpose
        self._first_row = pool.first_row
        columns = list(dict.fromkeys([*plan.columns, *carry, "id"]))
        # Consecutive rows are known from the places.
        self.columns = [c for c in columns if c != "row" or pool.first_row is None]
        whole, some = plan.quotas == plan.populations, plan.quotas > 0
        # The last entry is for rows of no cell, -1.
        self._takes, self._partly = np.append(some, False), np.append(some & ~whole, False)
        # The upper 16 bits of a hash exclude nearly all rows, without large arrays in between.
        upper = np.where(whole, 0xFFFF, bounds.high >> np.uint64(48))
        self._upper = np.append(np.where(some, upper, 0), 0).astype(np.uint16)
        if plan.reach is not None:
            ends = np.stack([plan.reach[0], plan.reach[1] + 1], axis=1).reshape(-1)
            self._upper = np.maximum.reduceat(np.append(self._upper, np.uint16(0)), ends)[::2]

    def candidates(self, block: Block) -> dict[str, Any] | None:
        """Return ``place, cell, hash`` and the columns to carry; None if there are none."""
        search = self._few if self.plan.ties_only else self._many
        places, cell, hashes = search(block)
        inside = np.flatnonzero(self._takes[cell] & (hashes <= self.bounds.high[cell]))
        if not len(inside):
            return None
        places, hashes, cell = places[inside], hashes[inside], cell[inside]
        found: dict[str, Any] = {
            "place": places + block.start,
            "cell": cell.astype(np.int32),
            "hash": hashes,
        }
        for name in self._carry:
            if name == "row" and self._first_row is not None:
                found[name] = found["place"] + self._first_row
            elif name == "id":
                found[name] = block[name].take(pa.array(places))
            else:
                found[name] = block[name][places]
        return found

    def _few(self, block: Block) -> tuple[Places, Numbers, Words]:
        """Hash the ids of those rows only that are drawn; 0 for rows of cells that go whole."""
        cell = self._cell(block)
        places = np.flatnonzero(cell >= 0)
        places = self._allowed(block, places[self._takes[cell[places]]])
        cell, hashes = cell[places], np.zeros(len(places), np.uint64)
        drawn = np.flatnonzero(self._partly[cell])
        if len(drawn):
            ids = block["id"].take(pa.array(places[drawn]))
            hashes[drawn] = hash_ids(ids, self._seed, self._purpose)
        return places, cell, hashes

    def _many(self, block: Block) -> tuple[Places, Numbers, Words]:
        """Hash all ids; then look at those rows only whose hash is not too large for any cell."""
        hashes = hash_ids(block["id"], self._seed, self._purpose, out=_memory.hashes)
        places = np.flatnonzero(hashes.view(np.uint16)[3::4] <= self._most(block))
        places = self._allowed(block, places)
        cell, hashes = self._cell(block.take(places)), hashes[places]
        hashes[~self._partly[cell]] = 0
        return places, cell, hashes

    def _most(self, block: Block) -> Any:
        """Return the upper 16 bits of the largest hash that may be drawn, of each row or all."""
        if self.plan.reach is not None:
            return self._upper.take(upper_bits(block["influence"]))
        cell = self.plan.cell(block)
        return self._upper[0] if cell is None else self._upper.take(cell, mode="wrap")

    def _cell(self, block: Block) -> Numbers:
        cell = self.plan.cell(block)
        return np.zeros(block.size, np.int32) if cell is None else cell

    def _allowed(self, block: Block, places: Places) -> Places:
        """Leave out what is not eligible, and what the plan excludes."""
        if block.eligible is not None:
            places = places[block.eligible[places]]
        without = self.plan.without
        first, stop = np.searchsorted(without, (block.start, block.start + block.size))
        if stop > first:
            places = places[~np.isin(places, without[first:stop] - block.start)]
        return places


class _Writer:
    """Writes tables as an Arrow stream, with the schema of the first."""

    def __init__(self, path: Path):
        self._path = path
        self._stream: Any = None

    def __enter__(self) -> _Writer:
        self._file = pa.OSFile(str(self._path), "wb")
        return self

    def write(self, table: pa.Table) -> None:
        if self._stream is None:
            self._stream = pa.ipc.new_stream(self._file, table.schema)
        self._stream.write_table(table, max_chunksize=_WRITE)

    def __exit__(self, *_: object) -> None:
        with self._file:
            if self._stream is not None:
                self._stream.close()


class _Counts:
    """How many candidates are surely drawn, and the hashes of those that may be."""

    def __init__(self, bounds: _Bounds):
        self._bounds = bounds
        self._sure = np.zeros(len(bounds.low), np.int64)
        self._near: list[tuple[Any, Any, Any]] = []

    def add(self, found: pa.Table) -> None:
        cell, hashes = found["cell"].to_numpy(), found["hash"].to_numpy()
        near = hashes >= self._bounds.low[cell]
        np.add.at(self._sure, cell[~near], 1)
        near &= self._bounds.high[cell] > 0
        self._near.append((cell[near], hashes[near], found["place"].to_numpy()[near]))

    def limits(self, plan: Plan) -> tuple[Words, Places, Places]:
        """Return the last hash and place drawn of each cell, and cells where they are unknown."""
        whole = plan.quotas == plan.populations
        cells = len(whole)
        nothing = (np.empty(0, np.int32), np.empty(0, np.uint64), np.empty(0, np.int64))
        columns = zip(*(self._near or [nothing]), strict=True)
        cell, hashes, places = (np.concatenate(column) for column in columns)
        order = np.lexsort((places, hashes, cell))
        starts, ends = (np.searchsorted(cell[order], np.arange(cells), side=s)
                        for s in ("left", "right"))  # fmt: skip
        index = starts + plan.quotas - self._sure - 1
        partly = (plan.quotas > 0) & ~whole
        known = (index >= starts - 1) & (index < ends)
        missed = np.flatnonzero(partly & ~known)
        last_hash = np.where(whole, np.uint64(_HIGHEST), self._bounds.low)
        last_place = np.where(whole, _LAST, -1)
        inside = np.flatnonzero(partly & (index >= starts) & (index < ends))
        last_hash[inside] = hashes[order[index[inside]]]
        last_place[inside] = places[order[index[inside]]]
        return last_hash, last_place, missed
