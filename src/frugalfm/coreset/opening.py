"""Open and check score files: one pass over rows and influences."""

# ruff: noqa: S608 - the SQL is made of this room's own text and of quoted literals
from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq

from frugalfm.coreset.order import Counts, Ranking, count_upper, in_order
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
    """What the first pass finds out about consecutive rows."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.first, self.last = 0, -1
        self.ascending = True
        self.counts: dict[str, Counts] = {name: np.zeros(1 << 16, np.int64) for name in columns}
        self._empty = True

    def add(self, columns: Mapping[str, Any]) -> None:
        """Look at a block; at its rows only if they are there."""
        for name, counts in self.counts.items():
            count_upper(counts, columns[name])
        if "row" in columns:
            row = columns["row"]
            self._follow(int(row[0]), int(row[-1]), bool((row[1:] > row[:-1]).all()))

    def merge(self, other: _Seen) -> None:
        if not other._empty:
            self._follow(other.first, other.last, other.ascending)
        self.counts = {name: own + other.counts[name] for name, own in self.counts.items()}

    def _follow(self, first: int, last: int, ascending: bool) -> None:
        self.ascending &= ascending and (self._empty or first > self.last)
        self.first, self.last = (first if self._empty else self.first), last
        self._empty = False


@contextlib.contextmanager
def open_pool(
    score_files: Sequence[Path],
    *,
    keep: str = "influence",
    memory_limit: str = "1GB",
    scratch: Path | None = None,
) -> Iterator[tuple[Pool, dict[str, Ranking]]]:
    """Open score files for selection.

    Parameters
    ----------
    score_files
        Parquet parts, in any order. Those of `score` have consecutive rows; that they do is taken
        from the footers and the first block of each row group, which saves a tenth of the work (a
        wrong row would not go unnoticed: its id is compared with that of the shards). Of other
        files every row is read; if they are not in ascending order, a sorted copy is made first.
    keep
        Column to hold in memory, if it fits.
    memory_limit
        What may be held in memory of anything that grows with the pool.
    scratch
        Existing folder for temporary files; the system's by default. Left empty.

    Yields
    ------
    tuple
        The pool, and the rankings of its influences and of `keep`.

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
        pool.first_row = first_if_consecutive(groups)
        counts = _survey(pool, files, keep)
        if counts is None:
            pool.groups = open_groups([_sort(files, pool)])
            counts = _survey(pool, files, keep)
        if counts is None:
            raise _repeated(files, pool)
        yield pool, {name: Ranking(pool, name, counts=own) for name, own in counts.items()}


def parse_memory(limit: str) -> int:
    """Turn ``"1GB"`` into bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", limit.strip().upper())
    if not match or match[2] not in _UNITS:
        raise InputError(f"memory limit {limit!r}: write for example 500MB or 2GB")
    return int(float(match[1]) * _UNITS[match[2]])


def _survey(pool: Pool, files: Sequence[Path], keep: str) -> dict[str, Counts] | None:
    """Check rows and influences; return the counts that ranking begins with, or None if unsorted.

    What is to be kept in memory is kept, and whether the rows are consecutive is noted.
    """
    ranked = list(dict.fromkeys(["influence", keep]))
    kept = np.empty(pool.size, np.float32) if pool.size * 4 <= pool.memory else None

    def look(blocks: Iterator[Block]) -> _Seen:
        seen = _Seen(ranked)
        for block in blocks:
            seen.add(block.columns)
            if kept is not None:
                kept[block.start : block.start + block.size] = block[keep]
        return seen

    columns = [*ranked, *(["row"] if pool.first_row is None else [])]
    seen = _Seen(ranked)
    for found in pool.map(look, columns, desc="check"):
        seen.merge(found)
    for column, counts in seen.counts.items():
        if number := _not_finite(counts):
            raise _bad_value(files, column, number, pool.size)
    if pool.first_row is None and not seen.ascending:
        return None
    if pool.first_row is None and seen.last - seen.first + 1 == pool.size:
        pool.first_row = seen.first
    if kept is not None:
        pool.kept[keep] = kept
    return {
        column: Ranking(pool, column).counts
        if counts[_NEGATIVE_ZERO]
        else in_order(counts).reshape(1, -1)
        for column, counts in seen.counts.items()
    }


def _not_finite(counts: Counts) -> int:
    """Count values with the exponent of NaN and infinity."""
    return int(counts[0x7F80:0x8000].sum() + counts[0xFF80:].sum())


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
