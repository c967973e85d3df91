"""The pool: score files as one stream of blocks, checked before anything is chosen from it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from frugalfm.coreset.aligned import Aligned
from frugalfm.errors import InputError
from frugalfm.progress import progress

__all__ = [
    "MOST_ROWS",
    "SCORES",
    "Block",
    "Mask",
    "Pool",
    "damaged",
    "first_if_consecutive",
    "open_groups",
]

Mask = npt.NDArray[np.bool_]
T = TypeVar("T")

# float32 and nothing wider: every difference of two float32 is finite in the float64 used here.
SCORES: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    "id": ("string", lambda t: pa.types.is_string(t) or pa.types.is_large_string(t)),
    "row": ("int64", pa.types.is_integer),
    "influence": ("float32", pa.types.is_float32),
    "loss": ("float32", pa.types.is_floating),
    "length": ("int32", pa.types.is_integer),
}
MOST_ROWS = 1 << 16  # of a block: few calls, and what numpy works on stays in the cache
_MOST_THREADS = 8


class Group(NamedTuple):
    """A row group of a score file: its rows are ``start`` to ``start + rows - 1`` of the pool.

    `ends` are the smallest and largest ``row`` by the footer, if it has them.
    """

    path: Path
    number: int
    start: int
    rows: int
    ends: tuple[int, int] | None = None


@dataclass(frozen=True)
class Block:
    """Some consecutive rows of the pool.

    Attributes
    ----------
    start
        Position of the first of them; positions count from 0 in the order of ``row``.
    size
        How many.
    columns
        Arrays of that size; ``id`` is an Arrow array.
    eligible
        Which of them may be chosen; None for all.
    """

    start: int
    size: int
    columns: dict[str, Any]
    eligible: Mask | None = None

    def __getitem__(self, column: str) -> Any:
        return self.columns[column]

    def take(self, places: npt.NDArray[np.intp]) -> Block:
        """Return some rows' numbers, as a block that must not be asked where it starts."""
        columns = {n: own[places] for n, own in self.columns.items() if n != "id"}
        return Block(self.start, len(places), columns)


@dataclass
class Pool:
    """Scores in ascending order of their rows.

    Attributes
    ----------
    groups
        The row groups, in that order.
    size
        Number of sequences.
    scratch
        Folder for temporary files.
    memory
        Bytes that what depends on the size of the pool may take.
    first_row
        The rows are consecutive and this is the first; None if they are not consecutive.
    eligible
        Shape ``(size,)``: which rows may be chosen; None for all.
    aligned
        Columns of other files that belong to the rows, by name.
    kept
        Columns that are held in memory rather than read again.
    """

    groups: Sequence[Group]
    size: int
    scratch: Path
    memory: int
    first_row: int | None = None
    eligible: Mask | None = None
    aligned: dict[str, Aligned] = field(default_factory=dict)
    kept: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def map(
        self,
        work: Callable[[Iterator[Block]], T],
        columns: Sequence[str],
        *,
        desc: str = "select",
        among: Sequence[int] | None = None,
    ) -> Iterator[T]:
        """Apply `work` to every row group, in a few threads, and yield what it returns in order.

        Parameters
        ----------
        work
            Gets the blocks of a row group, one after the other, with the columns asked for. It
            should not keep their arrays: memory that is used again costs much less than fresh.
        columns
            Of the scores, ``row``, or of `aligned`.
        desc
            What the progress bar says.
        among
            Numbers of the row groups to visit; all by default.

        Raises
        ------
        InputError
            A file is damaged or holds a null.
        """
        numbers = range(len(self.groups)) if among is None else among
        threads = min(_MOST_THREADS, os.cpu_count() or 1)
        waiting: deque[tuple[int, Future[T]]] = deque()
        with (
            ThreadPoolExecutor(threads) as executor,
            progress(
                total=sum(self.groups[i].rows for i in numbers),
                desc=desc,
                unit="row",
                unit_scale=True,
            ) as bar,
        ):
            try:
                for number in numbers:
                    group = self.groups[number]
                    waiting.append((group.rows, executor.submit(self._run, work, group, columns)))
                    if len(waiting) > threads:
                        rows, first = waiting.popleft()
                        yield first.result()
                        bar.update(rows)
                for rows, job in waiting:
                    yield job.result()
                    bar.update(rows)
            finally:
                executor.shutdown(wait=True, cancel_futures=True)

    def _run(self, work: Callable[[Iterator[Block]], T], group: Group, columns: Sequence[str]) -> T:
        return work(self._blocks(group, columns))

    def _blocks(self, group: Group, columns: Sequence[str]) -> Iterator[Block]:
        known = {name: self.kept[name] for name in columns if name in self.kept}
        beside = {}
        if names := [name for name in columns if name in self.aligned]:
            beside = self._beside(group, names)
        read = [name for name in columns if name not in known and name not in beside]
        if self.first_row is not None and "row" in read:
            read.remove("row")
        for start, size, found in _read(group, read):
            stop = start + size
            for name, values in known.items():
                found[name] = values[start:stop]
            for name, values in beside.items():
                found[name] = values[start - group.start : stop - group.start]
            if "row" in columns and self.first_row is not None:
                found["row"] = np.arange(self.first_row + start, self.first_row + stop)
            eligible = None if self.eligible is None else self.eligible[start:stop]
            yield Block(start, size, found, eligible)

    def _beside(self, group: Group, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """Read what belongs to the rows of a row group from other files."""
        if self.first_row is not None:
            first = self.first_row + group.start
            return {name: self.aligned[name].read(first, first + group.rows) for name in names}
        rows = np.concatenate([found["row"] for *_, found in _read(group, ["row"])])
        first, stop = int(rows[0]), int(rows[-1]) + 1
        return {name: self.aligned[name].read(first, stop)[rows - first] for name in names}


def _read(group: Group, columns: Sequence[str]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield start, size and columns of the blocks of a row group."""
    start, end = group.start, group.start + group.rows
    if not columns:
        for first in range(start, end, MOST_ROWS):
            yield first, min(MOST_ROWS, end - first), {}
        return
    try:
        with pq.ParquetFile(group.path) as file:
            for batch in file.iter_batches(
                MOST_ROWS, row_groups=[group.number], columns=list(columns), use_threads=False
            ):
                yield start, len(batch), {name: _values(group, batch, name) for name in columns}
                start += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{group.path}: {damaged(error)}") from None
    if start != end:
        raise InputError(f"{group.path}: holds fewer rows than it says; score again")


def _values(group: Group, batch: pa.RecordBatch, name: str) -> Any:
    column = batch.column(name)
    if name == "loss":
        return column.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    if column.null_count and name == "influence":
        return column.to_numpy(zero_copy_only=False)  # NaN for null, which the check finds
    if column.null_count:
        raise InputError(f"{group.path}: a score lacks its {name}; score again")
    return column if name == "id" else column.to_numpy()


def damaged(error: Exception) -> str:
    """Say that a file cannot be read."""
    return f"damaged or not Parquet ({str(error).splitlines()[0]}); score again"


def open_groups(files: Sequence[Path]) -> list[Group]:
    """List the row groups of score files, files in ascending order of their first row.

    Raises
    ------
    InputError
        A file is missing, damaged or lacks a column.
    """
    found = [(_first_row(own[0]), own) for path in files if (own := _groups_of(path))]
    groups, start = [], 0
    for _, own in sorted(found, key=lambda item: (item[0], item[1][0].path)):
        for group in own:
            groups.append(group._replace(start=start))
            start += group.rows
    return groups


def first_if_consecutive(groups: Sequence[Group]) -> int | None:
    """Return the first row if each follows the one before, by what the footers say."""
    expected = None
    for _, _, _, rows, ends in groups:
        if ends is None or ends[1] - ends[0] + 1 != rows or expected not in {None, ends[0]}:
            return None
        expected = ends[1] + 1
    return groups[0].ends[0] if groups[0].ends else None


def _groups_of(path: Path) -> list[Group]:
    """List the row groups of a file that hold any row."""
    try:
        with pq.ParquetFile(path) as file:
            schema, meta = file.schema_arrow, file.metadata
            _check_columns(path, schema)
            place = meta.schema.names.index("row")
            found = []
            for number in range(meta.num_row_groups):
                group = meta.row_group(number)
                if group.num_rows:
                    row = group.column(place).statistics
                    ends = (row.min, row.max) if row is not None and row.has_min_max else None
                    found.append(Group(path, number, 0, group.num_rows, ends))
            return found
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: {damaged(error)}") from None


def _first_row(group: Group) -> int:
    if group.ends is not None:
        return group.ends[0]
    _, _, columns = next(_read(group, ["row"]))
    return int(columns["row"][0])


def _check_columns(path: Path, schema: pa.Schema) -> None:
    for name, (wanted, accepts) in SCORES.items():
        if name not in schema.names:
            raise InputError(f"{path}: has no column {name!r}, so it does not hold scores")
        if not accepts(schema.field(name).type):
            found = schema.field(name).type
            raise InputError(f"{path}: column {name!r} holds {found}, not {wanted}")
