"""Records from tables: CSV and TSV through pyarrow's streaming reader, and Parquet."""

from __future__ import annotations

import codecs
import contextlib
import csv
import itertools
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from xopen import xopen

from frugalfm.errors import InputError
from frugalfm.sequences.records import Records, layout
from frugalfm.sequences.shards import read_parquet

__all__ = ["OWN", "Columns", "csv_names", "parquet_fields", "read_csv", "read_parquet_records"]

OWN = ("id", "sequence", "length")
"""Columns that shards have anyway, made of what the options name."""
BLOCK = 1 << 22  # bytes of a table at a time
_MOST_ROWS = 1 << 16
_FIELD_LIMIT = (1 << 31) - 1  # Python's csv refuses longer fields
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_END = "\x1dend of file"  # a row of our own

Locator = Callable[[int, int | None], str]


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are what; `user` ones are kept as they are.

    Where all are to be kept (`whole`), rows of JSON lines may have no others.
    """

    id: str | None
    sequence: str
    user: tuple[str, ...]
    whole: bool = False

    def stored(self, name: str) -> str:
        """Name a user's column so that it can stand beside ours: ``sequence_2``."""
        if not self.whole or name not in OWN:
            return name
        names = (f"{name}_{number}" for number in itertools.count(2))
        return next(other for other in names if other not in self.user)


def csv_names(path: Path, delimiter: str) -> list[str]:
    """Read the header of a CSV or TSV file.

    Raises
    ------
    InputError
        It is in UTF-16, or a quote in it is not closed.
    """
    with contextlib.closing(_csv_rows(path, delimiter)) as rows:
        _, found = next(rows, (1, []))
    header = [name.encode(errors="surrogateescape") for name in found]
    if header and (header[0].startswith(_UTF_16) or any(b"\0" in name for name in header)):
        raise InputError(f"{path}: is not UTF-8 but UTF-16, it seems; convert the file first")
    return [name.decode(errors="replace") for name in header]


def parquet_fields(path: Path) -> list[pa.Field]:
    """Read the columns of a Parquet file."""
    try:
        return list(pq.read_schema(path))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: is not a whole Parquet file ({error})") from None


def read_csv(path: Path, stream: IO[bytes], delimiter: str, columns: Columns) -> Iterator[Records]:
    """Read a CSV or TSV file; every column is kept as the text that is written there.

    Raises
    ------
    InputError
        A row has too many fields or too few, is not UTF-8, or has a quote that is not closed,
        which pyarrow would let swallow all the rows after it.
    """
    names = [columns.id] if columns.id is not None else []
    types = {name: pa.string() for name in [*names, *columns.user]}
    types[columns.sequence] = pa.binary()  # checked letter by letter later, so not as UTF-8 now
    options = pyarrow.csv.ConvertOptions(
        column_types=types, include_columns=list(types), strings_can_be_null=False
    )
    first = 0
    counted = _Counted(stream)
    try:
        reader = pyarrow.csv.open_csv(
            pa.PythonFile(counted, "r"),
            read_options=pyarrow.csv.ReadOptions(block_size=BLOCK),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=options,
        )
        for batch in reader:
            yield _records(batch, columns, _csv_locator(path, delimiter, first))
            first += len(batch)
    except pa.ArrowInvalid as error:
        raise _csv_error(path, delimiter, error) from None
    if counted.quotes % 2:  # one that is not closed, or one within a field, such as 5"
        for _ in _csv_rows(path, delimiter):
            pass


class _Counted:
    """A stream that counts the quotes that are read of it."""

    closed = False

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.quotes = 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.quotes += data.count(b'"')
        return data

    def close(self) -> None:
        """Leave the stream to its owner."""
        self.closed = True


def _csv_locator(path: Path, delimiter: str, first: int) -> Locator:
    def locate(record: int, position: int | None) -> str:
        rows = enumerate(_csv_rows(path, delimiter), start=-1)  # the header is row -1
        line = next((line for row, (line, _) in rows if row == first + record), 0)
        return f"line {line}" + ("" if position is None else f", letter {position + 1}")

    return locate


def _csv_rows(path: Path, delimiter: str) -> Generator[tuple[int, list[str]]]:
    """Yield the rows, header first, each with the number of its first line: slow, for errors.

    What is not UTF-8 comes as surrogates. A quote that is not closed is refused when it is met.
    """
    limit = csv.field_size_limit(_FIELD_LIMIT)
    try:
        with xopen(
            path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as stream:
            # A field that is still open at the end of the file swallows the row added to it.
            reader = csv.reader(itertools.chain(stream, [_END]), delimiter=delimiter)
            line = 1
            for row in reader:
                if row and row[-1].endswith(_END):
                    if row != [_END]:
                        start = line + sum(field.count("\n") for field in row[:-1])
                        raise InputError(
                            f"{path}, line {start}: a quote is opened and not closed until the end "
                            "of the file; close it, or take it out"
                        )
                    return
                if row:
                    yield line, row
                line = reader.line_num + 1
    finally:
        csv.field_size_limit(limit)


def _csv_error(path: Path, delimiter: str, error: Exception) -> InputError:
    """Tell which line pyarrow stumbled on; it does not say."""
    width = 0
    for line, row in _csv_rows(path, delimiter):
        width = width or len(row)
        if len(row) != width:
            return InputError(
                f"{path}, line {line}: has {len(row)} fields where the header has {width}; "
                "quote fields that contain the delimiter"
            )
        if any("\udc80" <= letter <= "\udcff" for field in row for letter in field):
            return InputError(f"{path}, line {line}: is not UTF-8; convert the file first")
    return InputError(f"{path}: cannot be read as a table ({error})")


def read_parquet_records(path: Path, columns: Columns) -> Iterator[Records]:
    """Read a Parquet file; a null sequence is an empty one."""
    names = [columns.sequence, *columns.user, *([columns.id] if columns.id is not None else [])]
    first = 0
    for batch in read_parquet(path, list(dict.fromkeys(names)), _rows_at_once(path)):
        yield _records(batch, columns, _row_locator(first))
        first += len(batch)


def _rows_at_once(path: Path) -> int:
    metadata = pq.read_metadata(path)
    size: int = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    rows: int = BLOCK * metadata.num_rows // max(size, 1)
    return max(1, min(_MOST_ROWS, rows))


def _row_locator(first: int) -> Locator:
    def locate(record: int, position: int | None) -> str:
        row = f"row {first + record + 1}"
        return row if position is None else f"{row}, letter {position + 1}"

    return locate


def _records(batch: pa.RecordBatch, columns: Columns, locate: Locator) -> Records:
    """Bring the columns of a table into the form that all readers share."""
    if columns.id is None:
        ids = pa.repeat("", len(batch))
    else:
        ids = batch.column(columns.id).cast(pa.string()).fill_null("")
    found = {"id": ids} | {columns.stored(name): batch.column(name) for name in columns.user}
    sequences = batch.column(columns.sequence).cast(pa.binary()).fill_null(b"")
    return Records(*layout(sequences), pa.RecordBatch.from_pydict(found), locate)
