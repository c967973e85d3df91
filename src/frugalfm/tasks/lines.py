"""JSON lines: one object a row, the natural form of coordinates and lists of pairs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from xopen import xopen

from frugalfm.errors import InputError
from frugalfm.sequences.records import Records, layout
from frugalfm.tasks.layout import Layout

__all__ = ["line_names", "read_lines"]

_ROWS = 1024  # at a time


def line_names(path: Path) -> list[str]:
    """Names that the first object holds, which every other must hold, too."""
    for _, row in _objects(path):
        return list(row)
    return []


def read_lines(path: Path, columns: Layout) -> Iterator[Records]:
    """Read the columns of a layout; text stays text, numbers and lists become JSON again.

    Raises
    ------
    InputError
        A line is no JSON object or lacks a column; names it.
    """
    rows = _objects(path)
    while batch := list(itertools.islice(rows, _ROWS)):
        lines = [line for line, _ in batch]
        found: dict[str, list[str]] = {name: [] for name in columns.needed}
        if columns.mask is not None and columns.mask in batch[0][1]:
            found[columns.mask] = []
        for line, row in batch:
            for name, values in found.items():
                if name not in row:
                    raise InputError(f"{path}, line {line}: has no {name!r}; every line needs it")
                values.append(_write(row[name]))
        sequences = pa.array([text.encode() for text in found[columns.sequence]], pa.binary())
        table = {name: pa.array(texts, pa.string()) for name, texts in found.items()}
        table["id"] = pa.array([f"line {line}" for line in lines])
        yield Records(*layout(sequences), pa.RecordBatch.from_pydict(table), _locator(lines))


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with xopen(path, "rt", encoding="utf-8-sig") as stream:
            for line, text in enumerate(stream, start=1):
                if not text.strip():
                    continue
                row = json.loads(text)
                if not isinstance(row, dict):
                    raise InputError(f"{path}, line {line}: is no JSON object; each line is one")
                yield line, row
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {line}: is no JSON ({error}); correct it") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8; convert the file first") from None
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({error}); compress or copy it anew") from None


def _write(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _locator(lines: list[int]) -> Callable[[int, int | None], str]:
    def locate(record: int, position: int | None) -> str:
        place = f"line {lines[record]}"
        return place if position is None else f"{place}, letter {position + 1}"

    return locate
