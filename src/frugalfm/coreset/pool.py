"""The pool: score files as one DuckDB view, checked before anything is chosen from it."""

# ruff: noqa: S608 - the SQL is made of this room's own text, of numbers and of quoted literals
from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from frugalfm.errors import FrugalError, InputError
from frugalfm.progress import progress

__all__ = ["Pool", "literal", "open_pool"]

# float32 and nothing wider: every difference of two float32 is finite in the float64 used here.
_COLUMNS: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    "id": ("string", lambda t: pa.types.is_string(t) or pa.types.is_large_string(t)),
    "row": ("int64", pa.types.is_integer),
    "influence": ("float32", pa.types.is_float32),
    "loss": ("float32", pa.types.is_floating),
    "length": ("int32", pa.types.is_integer),
}

_INCOMPLETE = "id IS NULL OR row IS NULL OR length IS NULL"
_NOT_FINITE = "influence IS NULL OR NOT isfinite(influence)"


@dataclass(frozen=True)
class Pool:
    """Checked scores: the view ``scores`` (id, row, influence, loss, length).

    Attributes
    ----------
    connection
        DuckDB, limited in memory; tables made with it live as long as it does.
    size
        Number of sequences; each has its own row and a finite influence.
    progress
        Counts queries: how many there will be depends on the scores.
    """

    connection: Any
    size: int
    progress: Any

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows."""
        rows: list[tuple[Any, ...]] = self.connection.execute(sql).fetchall()
        self.progress.update()
        return rows

    def make_table(self, name: str, content: pa.Table) -> None:
        """Make a temporary table, in place of an earlier one of that name."""
        self.connection.register("content", content)
        self.query(f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT * FROM content")
        self.connection.unregister("content")


@contextlib.contextmanager
def open_pool(
    score_files: Sequence[Path], *, memory_limit: str = "1GB", scratch: Path | None = None
) -> Iterator[Pool]:
    """Open score files for selection.

    Parameters
    ----------
    score_files
        Parquet parts, in any order.
    memory_limit
        What DuckDB may hold in memory; beyond it, it writes to `scratch`.
    scratch
        Existing folder for temporary files; the system's by default. Left empty.

    Raises
    ------
    InputError
        A file is missing, damaged or lacks a column; a null; an influence that is not finite;
        a row number that occurs twice.
    """
    files = [Path(file) for file in score_files]
    for file in files:
        _check_columns(file)
    if not files:
        raise InputError("no score files: nothing to select from")
    with (
        tempfile.TemporaryDirectory(dir=scratch, prefix="duckdb-") as folder,
        duckdb.connect() as connection,
        _naming_the_damaged(files),
        progress(desc="select", unit="query") as bar,
    ):
        # The order of rows is always stated where it matters, so DuckDB need not keep it.
        connection.execute("SET preserve_insertion_order = false")
        connection.execute(f"SET memory_limit = {literal(memory_limit)}")
        connection.execute(f"SET temp_directory = {literal(folder)}")
        connection.execute(
            f"CREATE TEMP VIEW located AS SELECT {', '.join(_COLUMNS)}, filename "
            f"FROM read_parquet([{', '.join(map(_pattern, files))}], filename = true)"
        )
        connection.execute("CREATE TEMP VIEW scores AS SELECT * EXCLUDE filename FROM located")
        yield Pool(connection, _check_values(connection), bar)


def literal(value: str | float) -> str:
    """Return an SQL literal; a number keeps every bit (a plain ``0.1`` would be a DECIMAL)."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return f"'{float(value)!r}'::DOUBLE"


def _pattern(file: Path) -> str:
    """Quote a path for ``read_parquet``, which takes glob patterns."""
    return literal(re.sub(r"([*?[])", r"[\1]", str(file)))


def _check_columns(file: Path) -> None:
    try:
        schema = pq.read_schema(file)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file}: {_damaged(error)}") from None
    for name, (wanted, accepts) in _COLUMNS.items():
        if name not in schema.names:
            raise InputError(f"{file}: has no column {name!r}, so it does not hold scores")
        if not accepts(schema.field(name).type):
            found = schema.field(name).type
            raise InputError(f"{file}: column {name!r} holds {found}, not {wanted}")


@contextlib.contextmanager
def _naming_the_damaged(files: Sequence[Path]) -> Iterator[None]:
    """Turn DuckDB's failure to read into an InputError that names the file."""
    try:
        yield
    except duckdb.Error as failure:
        for file in files:
            try:
                duckdb.sql(
                    f"SELECT max(hash({', '.join(_COLUMNS)})) FROM read_parquet({_pattern(file)})"
                ).fetchall()
            except duckdb.Error as error:
                raise InputError(f"{file}: {_damaged(error)}") from None
        # Every file can be read: it is another failure, such as a full disk.
        raise FrugalError(f"selection failed: {failure}") from failure


def _damaged(error: Exception) -> str:
    return f"damaged or not Parquet ({str(error).splitlines()[0]}); score again"


def _check_values(connection: Any) -> int:
    [(size, nulls, not_finite, first, last, total)] = connection.execute(
        f"SELECT count(*), count(*) FILTER ({_INCOMPLETE}), count(*) FILTER ({_NOT_FINITE}), "
        "min(row), max(row), sum(row) FROM scores"
    ).fetchall()
    if size == 0:
        raise InputError("the score files hold no scores: nothing to select from")
    if nulls:
        file = _first(connection, _INCOMPLETE)[0]
        raise InputError(f"{file}: {nulls} of {size} scores lack an id, row or length; score again")
    if not_finite:
        file, name, row, found = _first(connection, _NOT_FINITE)
        raise InputError(
            f"{file}: row {row} (id {name}) has the influence {found}; in all, {not_finite} of "
            f"{size} influences are NaN, infinite or null; score again, in fp32 if it was bf16"
        )
    # Consecutive rows have a known sum; only another pool pays for the exact check.
    consecutive = last - first + 1 == size and total == (first + last) * size // 2
    if not consecutive:
        _check_rows_differ(connection)
    return int(size)


def _check_rows_differ(connection: Any) -> None:
    repeated = connection.execute(
        "SELECT row FROM scores GROUP BY row HAVING count(*) > 1 ORDER BY row LIMIT 1"
    ).fetchall()
    if repeated:
        file, name, row, _ = _first(connection, f"row = {repeated[0][0]}")
        raise InputError(f"{file}: row {row} (id {name}) occurs more than once; score again")


def _first(connection: Any, condition: str) -> tuple[Any, ...]:
    """Return file, id, row and influence of the first row that the condition is true of."""
    # Not by WHERE: DuckDB may skip row groups by their statistics, which do not count NaN.
    [(found,)] = connection.execute(
        "SELECT min({'row': row, 'file': filename, 'id': id, 'influence': influence})"
        f" FILTER ({condition}) FROM located"
    ).fetchall()
    return found["file"], found["id"], found["row"], found["influence"]
