"""Records from JSON lines: one object a row, the natural form of coordinates and lists of pairs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from xopen import xopen

from frugalfm.errors import InputError
from frugalfm.sequences.records import Records, layout
from frugalfm.sequences.tables import Columns

__all__ = ["line_names", "read_lines"]

_ROWS = 1024  # at a time, or fewer if they are long
_LETTERS = 1 << 22


def line_names(path: Path) -> list[str]:
    """Names that the first object holds, which every other must hold, too."""
    with xopen(path, "rb") as stream:
        return next((list(row) for _, row in _objects(path, stream)), [])


def read_lines(path: Path, stream: IO[bytes], columns: Columns) -> Iterator[Records]:
    """Read some columns; text stays text, numbers and lists become JSON again, null no text.

    Raises
    ------
    InputError
        A line is no JSON object, lacks a column, or its sequence is no text; names it.
    """
    names = [columns.sequence, *columns.user, *([columns.id] if columns.id is not None else [])]
    lines: list[int] = []
    found: dict[str, list[str]] = {name: [] for name in names}
    letters = 0
    for line, row in _objects(path, stream):
        for name, values in found.items():
            if name not in row:
                raise InputError(f"{path}, line {line}: has no {name!r}; every line needs it")
            values.append(_write(row[name]))
            letters += len(values[-1])
        if columns.whole and (other := sorted(row.keys() - {*names, "length"})):
            raise InputError(
                f"{path}, line {line}: has {other[0]!r}, and the first line has not; every line "
                "needs the same names"
            )
        if not isinstance(row[columns.sequence], str | None):
            raise InputError(f"{path}, line {line}: {columns.sequence!r} is no text; correct it")
        lines.append(line)
        if len(lines) >= _ROWS or letters >= _LETTERS:
            yield _records(lines, found, columns)
            lines, found, letters = [], {name: [] for name in names}, 0
    if lines:
        yield _records(lines, found, columns)


def _records(lines: list[int], found: dict[str, list[str]], columns: Columns) -> Records:
    sequences = pa.array([text.encode() for text in found[columns.sequence]], pa.binary())
    ids = [""] * len(lines) if columns.id is None else found[columns.id]
    table = {"id": pa.array(ids, pa.string())}
    table |= {columns.stored(name): pa.array(found[name], pa.string()) for name in columns.user}
    return Records(*layout(sequences), pa.RecordBatch.from_pydict(table), _locator(lines))


def _objects(path: Path, stream: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects, each with the number of its line."""
    line = 0
    try:
        for line, text in enumerate(io.TextIOWrapper(stream, encoding="utf-8-sig"), start=1):
            if not text.strip():
                continue
            row = json.loads(text)
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {line}: is no JSON object; each line is one")
            yield line, row
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8; convert the file first") from None
    except ValueError as error:
        raise InputError(f"{path}, line {line}: is no JSON ({error}); correct it") from None


def _write(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _locator(lines: list[int]) -> Callable[[int, int | None], str]:
    def locate(record: int, position: int | None) -> str:
        place = f"line {lines[record]}"
        return place if position is None else f"{place}, letter {position + 1}"

    return locate
