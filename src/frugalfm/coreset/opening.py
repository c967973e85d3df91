"""Open and check score files: one pass over rows and influences."""

# ruff: noqa: S608 - the SQL is made of this room's own text and of quoted literals
from __future__ import annotations

import contextlib
import mmap
import re
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from frugalfm.coreset.order import (
    WHOLE,
    Counts,
    Groups,
    Ranking,
    in_order,
    upper_bits,
)
from frugalfm.coreset.pool import (
    SCORES,
    Block,
    Pool,
    damaged,
    first_if_consecutive,
    open_groups,
)
from frugalfm.coreset.sql import limited, literal, read_parquet
from frugalfm.errors import FrugalError, InputError

__all__ = ["open_pool", "parse_memory"]

_NEGATIVE_ZERO = 0x8000  # its upper bits; it equals zero, which has others
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class _Seen:
    """Whether rows ascend, and the first and the last of them."""

    def __init__(self) -> None:
        self.first, self.last = 0, -1
        self.ascending = True
        self._empty = True

    def add(self, row: Any) -> None:
        """Look at the rows of a block."""
        self._follow(int(row[0]), int(row[-1]), bool((row[1:] > row[:-1]).all()))

    def merge(self, other: _Seen) -> None:
        if not other._empty:
            self._follow(other.first, other.last, other.ascending)

    def _follow(self, first: int, last: int, ascending: bool) -> None:
        self.ascending &= ascending and (self._empty or first > self.last)
        self.first, self.last = (first if self._empty else self.first), last
        self._empty = False


class _Counter:
    """Counts the upper bits of a column, inside groups if there are some, and keeps what it read.

    That is, the column if it is to be kept, and the groups; each in memory, if it fits.
    """

    def __init__(self, pool: Pool, column: str, groups: Groups, *, keep: bool) -> None:
        self._pool, self._groups, self._lock = pool, groups, threading.Lock()
        self._counts: Counts = np.zeros(groups.count << 16, np.int64)
        self.column, self.columns = column, (column, *groups.columns)
        self._kept: dict[str, npt.NDArray[Any]] = {}
        if keep and pool.size * 4 <= pool.memory:
            self._kept[column] = _allocate(pool.size, np.float32)
        if groups is not WHOLE and pool.size * 5 <= pool.memory:
            self._kept["group"] = _allocate(pool.size, np.uint8)

    def add(self, block: Block) -> None:
        found = {self.column: block[self.column]}
        places = upper_bits(block[self.column]).astype(np.intp)
        if self._groups.number is not None:
            found["group"] = self._groups.number(block)
            places += found["group"].astype(np.intp) << 16
        for name, kept in self._kept.items():
            kept[block.start : block.start + block.size] = found[name]
        with self._lock:
            np.add.at(self._counts, places, 1)

    def check(self, files: Sequence[Path]) -> None:
        """Refuse values with the exponent of NaN and infinity."""
        counts = self._counts.reshape(-1, 1 << 16)
        if number := int(counts[:, 0x7F80:0x8000].sum() + counts[:, 0xFF80:].sum()):
            raise _bad_value(files, self.column, number, self._pool.size)

    def rankings(self) -> dict[str, Ranking]:
        """Return the ranking by the column's name, and that inside groups by ``within``."""
        self._pool.kept |= self._kept
        counts = self._counts.reshape(-1, 1 << 16)
        # -0.0 is counted below zero, to which it is equal.
        known = None if counts[:, _NEGATIVE_ZERO].any() else in_order(counts)
        whole = None if known is None else known.sum(0, keepdims=True)
        found = {self.column: Ranking(self._pool, self.column, counts=whole)}
        groups = self._groups
        if "group" in self._kept:
            groups = Groups(
                groups.count, ("group",), lambda block: block["group"].astype(np.int32), True
            )
        if groups is not WHOLE:
            found["within"] = Ranking(self._pool, self.column, groups, counts=known)
        return found


def _allocate(size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return a large array that is written once.

    numpy's own asks for huge pages, for which the system may first have to move others: of 800 MB
    that was measured to take four times as long as small pages do.
    """
    return np.frombuffer(mmap.mmap(-1, size * np.dtype(dtype).itemsize), dtype)


@contextlib.contextmanager
def open_pool(
    score_files: Sequence[Path],
    *,
    keep: str = "influence",
    within: Groups = WHOLE,
    memory_limit: str = "1GB",
    scratch: Path | None = None,
) -> Iterator[tuple[Pool, dict[str, Ranking]]]:
    """Open score files for selection.

    Parameters
    ----------
    score_files
        Parquet parts, in any order. Those of `score` have consecutive rows; that they do is taken
        from the footers and the first block of each file, which saves a tenth of the work (a wrong
        row would not go unnoticed: its id is compared with that of the shards). Of other files
        every row is read; if they are not in ascending order, a sorted copy is made first.
    keep
        Column to hold in memory, if it fits.
    within
        At most 64 groups to rank the influences in, too.
    memory_limit
        What may be held in memory of anything that grows with the pool.
    scratch
        Existing folder for temporary files; the system's by default. Left empty.

    Yields
    ------
    tuple
        The pool, and the rankings of its influences and of `keep`; of the influences inside groups
        by the name ``within``.

    Raises
    ------
    InputError
        A file is missing, damaged or lacks a column; a null; an influence that is not finite;
        a row number that occurs twice.
    """
    files = [Path(file) for file in score_files]
    groups = open_groups(files)
    if not groups:
        raise InputError("the score files hold no scores: nothing to select from")
    memory = parse_memory(memory_limit)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="select-") as folder:
        pool = Pool(groups, sum(group.rows for group in groups), Path(folder), memory)
        pool.first_row = _first_row(pool)
        rankings = _survey(pool, files, keep, within)
        if rankings is None:
            pool.groups = open_groups([_sort(files, pool)])
            rankings = _survey(pool, files, keep, within)
        if rankings is None:
            raise _repeated(files, pool)
        yield pool, rankings


def parse_memory(limit: str) -> int:
    """Turn ``"1GB"`` into bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", limit.strip().upper())
    if not match or match[2] not in _UNITS:
        raise InputError(f"memory limit {limit!r}: write for example 500MB or 2GB")
    return int(float(match[1]) * _UNITS[match[2]])


def _first_row(pool: Pool) -> int | None:
    """Return the first row if rows are consecutive, by the footers and each file's first block."""
    first = first_if_consecutive(pool.groups)
    if first is None:
        return None

    def look(blocks: Iterator[Block]) -> bool:
        block = next(blocks)
        return np.array_equal(block["row"] - (first + block.start), np.arange(block.size))

    groups = pool.groups
    begins = [n for n in range(len(groups)) if not n or groups[n].path != groups[n - 1].path]
    return first if all(pool.map(look, ["row"], desc="open", among=begins)) else None


def _survey(
    pool: Pool, files: Sequence[Path], keep: str, within: Groups
) -> dict[str, Ranking] | None:
    """Check rows and influences; return what :func:`open_pool` yields, or None if unsorted.

    What is to be kept in memory is kept, and whether the rows are consecutive is noted.
    """
    counters = [_Counter(pool, "influence", within, keep=keep == "influence")]
    counters += [_Counter(pool, keep, WHOLE, keep=True)] if keep != "influence" else []

    def look(blocks: Iterator[Block]) -> _Seen:
        seen = _Seen()
        for block in blocks:
            for counter in counters:
                counter.add(block)
            if "row" in block.columns:
                seen.add(block["row"])
        return seen

    columns = ["row"] if pool.first_row is None else []
    columns += [column for counter in counters for column in counter.columns]
    seen = _Seen()
    for found in pool.map(look, columns, desc="check"):
        seen.merge(found)
    for counter in counters:
        counter.check(files)
    if pool.first_row is None and not seen.ascending:
        return None
    if pool.first_row is None and seen.last - seen.first + 1 == pool.size:
        pool.first_row = seen.first
    return {name: own for counter in counters for name, own in counter.rankings().items()}


def _sort(files: Sequence[Path], pool: Pool) -> Path:
    path = pool.scratch / "sorted.parquet"
    try:
        with limited(pool.memory, pool.scratch) as connection:
            connection.execute(
                f"COPY (SELECT {', '.join(SCORES)} FROM {read_parquet(files)} ORDER BY row) "
                f"TO {literal(str(path))} (FORMAT parquet)"
            )
    except duckdb.Error as error:
        raise FrugalError(f"sorting the scores failed: {error}") from None
    return path


def _bad_value(files: Sequence[Path], column: str, number: int, size: int) -> InputError:
    found = []
    for path, table in _tables(files, ["row", "id", column]):
        bad = np.flatnonzero(~np.isfinite(table[column].to_numpy()))[:1].tolist()
        found += [(table["row"][place].as_py(), path, place, table) for place in bad]
    row, path, place, table = min(found, key=lambda item: item[0])
    return InputError(
        f"{path}: row {row} (id {table['id'][place]}) has the {column} "
        f"{table[column][place].as_py()}; in all, {number} of {size} are NaN, infinite or null; "
        "score again, in fp32 if it was bf16"
    )


def _repeated(files: Sequence[Path], pool: Pool) -> InputError:
    """Name the first row that occurs twice; the pool is sorted by now."""
    row, last = -1, np.empty(0, np.int64)
    for found in pool.map(lambda blocks: [block["row"] for block in blocks], ["row"], desc="check"):
        rows = np.concatenate([last, *found])
        if len(equal := np.flatnonzero(rows[1:] == rows[:-1])):
            row = int(rows[equal[0]])
            break
        last = rows[-1:]
    for path, table in _tables(files, ["row", "id"]):
        for place in np.flatnonzero(table["row"].to_numpy() == row):
            name = table["id"][int(place)]
            return InputError(f"{path}: row {row} (id {name}) occurs more than once; score again")
    return InputError(f"row {row} occurs more than once; score again")


def _tables(files: Sequence[Path], columns: list[str]) -> Iterator[tuple[Path, Any]]:
    for path in files:
        try:
            yield path, pq.read_table(path, columns=columns)
        except OSError as error:
            raise InputError(f"{path}: {damaged(error)}") from None
