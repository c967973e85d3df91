"""Columns of other files that belong to the rows of the pool: clusters, complexity, sources."""

# ruff: noqa: S608 - the SQL is made of this room's own text and of quoted literals
from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from frugalfm.coreset.sql import limited, literal, read_parquet
from frugalfm.errors import InputError

__all__ = ["Aligned", "SourceColumn", "name_sources"]

MOST_SOURCES = 256
_NO_SOURCE = "(none)"


class SourceColumn(NamedTuple):
    """Where the source of each sequence is written.

    Attributes
    ----------
    column
        Its name.
    parts
        Parquet files whose rows are those of the pool, in order; or none, then:
    table
        A CSV, TSV or Parquet file with the columns ``id`` and `column`, in any order.
    """

    column: str
    parts: Sequence[Path] = ()
    table: Path | None = None


class _Rows(NamedTuple):
    path: Path
    number: int
    first: int
    rows: int


class Aligned:
    """One column of Parquet files, in which the n-th row belongs to row n of the pool.

    Parameters
    ----------
    files
        In order of their rows.
    column
        Its name.
    names
        Of a column of names: all of them, sorted; what is read are then their places herein.
    numbered
        The files have a column ``row``, which is checked.

    Raises
    ------
    InputError
        A file is damaged or has no such column.
    """

    def __init__(
        self,
        files: Sequence[Path],
        column: str,
        *,
        names: Sequence[str] | None = None,
        numbered: bool = False,
    ):
        self.column = column
        self._places = None if names is None else {name: n for n, name in enumerate(names)}
        self._numbered = numbered
        self._groups: list[_Rows] = []
        self.size = 0
        for path in files:
            try:
                with pq.ParquetFile(path) as file:
                    known, meta = file.schema_arrow.names, file.metadata
                    sizes = [meta.row_group(n).num_rows for n in range(meta.num_row_groups)]
            except (OSError, pa.ArrowException) as error:
                raise InputError(f"{path}: cannot be read ({error}); make it again") from None
            if column not in known:
                raise InputError(f"{path}: has no column {column!r}; there are: {', '.join(known)}")
            for number, rows in enumerate(sizes):
                self._groups.append(_Rows(path, number, self.size, rows))
                self.size += rows

    def read(self, first: int, stop: int) -> npt.NDArray[Any]:
        """Read rows `first` to `stop` - 1."""
        if stop > self.size:
            raise InputError(
                f"{self._groups[0].path.parent if self._groups else 'no file'}: holds {self.size} "
                f"rows of {self.column!r}, but the scores reach to row {stop - 1}; "
                "make both from the same shards"
            )
        found: list[npt.NDArray[Any]] = [
            self._read_group(group)[max(first - group.first, 0) : stop - group.first]
            for group in self._groups
            if group.first < stop and first < group.first + group.rows
        ]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def names(self) -> Iterator[str]:
        """Yield every name of every row group once."""
        for group in self._groups:
            yield from _as_names(_table(group, [self.column])[self.column]).dictionary.to_pylist()

    def _read_group(self, group: _Rows) -> npt.NDArray[Any]:
        table = _table(group, [self.column, "row"] if self._numbered else [self.column])
        if self._numbered:
            expected = np.arange(group.first, group.first + group.rows)
            if not np.array_equal(table["row"].to_numpy(), expected):
                raise InputError(
                    f"{group.path}: its rows are not those of the pool in order; make it again"
                )
        column = table[self.column]
        if self._places is not None:
            encoded = _as_names(column)
            places = [self._places[name] for name in encoded.dictionary.to_pylist()]
            found: npt.NDArray[Any] = np.array(places, np.int32)[encoded.indices.to_numpy()]
            return found
        if column.null_count:
            raise InputError(f"{group.path}: column {self.column!r} holds a null; make it again")
        values: npt.NDArray[Any] = column.to_numpy()
        return values


def _table(group: _Rows, columns: list[str]) -> pa.Table:
    try:
        with pq.ParquetFile(group.path) as file:
            return file.read_row_group(group.number, columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{group.path}: cannot be read ({error}); make it again") from None


def _as_names(column: pa.ChunkedArray) -> pa.DictionaryArray:
    return column.combine_chunks().cast(pa.string()).fill_null(_NO_SOURCE).dictionary_encode()


def name_sources(
    source: SourceColumn, score_files: Sequence[Path], scratch: Path, memory: int
) -> tuple[Aligned, tuple[str, ...]]:
    """Open the sources of a pool, and list their names in alphabetical order.

    Raises
    ------
    InputError
        No such column, more than 256 sources, or a table that lacks ids or repeats them.
    """
    parts = source.parts
    if source.table is not None:
        parts = [_join(source.table, source.column, score_files, scratch, memory)]
    names: set[str] = set()
    for name in Aligned(parts, source.column).names():
        names.add(name)
        if len(names) > MOST_SOURCES:
            raise InputError(
                f"--source {source.column}: has more than {MOST_SOURCES} different values, so it "
                "does not say where sequences come from; choose another column"
            )
    ordered = tuple(sorted(names))
    return Aligned(parts, source.column, names=ordered), ordered


def _join(
    table: Path, column: str, score_files: Sequence[Path], scratch: Path, memory: int
) -> Path:
    """Write the source of every score, in the order of their rows, in bounded memory."""
    name, out = f'"{column.replace(chr(34), chr(34) * 2)}"', scratch / "sources.parquet"
    reader = "read_parquet" if table.suffix == ".parquet" else "read_csv"
    options = "" if reader == "read_parquet" else ", all_varchar = true, header = true"
    with limited(memory, scratch) as connection:
        try:
            connection.execute(
                f"CREATE TEMP TABLE sources AS SELECT id::VARCHAR AS id, {name}::VARCHAR AS "
                f"source FROM {reader}({literal(str(table))}{options})"
            )
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{table}: needs the columns id and {column} ({reason})") from None
        repeated = connection.execute(
            "SELECT min(id) FROM (SELECT id FROM sources GROUP BY id HAVING count(*) > 1)"
        ).fetchall()[0][0]
        if repeated is not None:
            raise InputError(f"{table}: id {repeated} occurs more than once; keep one of them")
        scores = read_parquet(score_files)
        missing, example = connection.execute(
            f"SELECT count(*), min(id) FROM {scores} ANTI JOIN sources USING (id)"
        ).fetchall()[0]
        if missing:
            raise InputError(f"{table}: lacks {missing} ids of the scores, such as {example}")
        connection.execute(
            f"COPY (SELECT source AS {name} FROM {scores} JOIN sources USING (id) ORDER BY row) "
            f"TO {literal(str(out))} (FORMAT parquet)"
        )
    return out
