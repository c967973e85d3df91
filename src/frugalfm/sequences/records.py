"""A batch of records as a reader found them, laid out so that a whole batch is handled at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

__all__ = ["Counts", "Letters", "Offsets", "Records", "as_strings", "layout"]

Letters = np.ndarray[Any, np.dtype[np.uint8]]
Counts = np.ndarray[Any, np.dtype[np.int_]]
Offsets = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True)
class Records:
    """Some consecutive records of one file.

    Attributes
    ----------
    data
        The sequences end to end, not yet normalised.
    offsets
        Where each begins, and where the last ends: shape ``(n + 1,)``.
    columns
        What else the file says of them: ``id`` (string), then the user's columns.
    locate
        From a record of the batch and a position in its sequence (both from 0; None for the
        record as such) to words such as ``line 7, column 3``.
    """

    data: bytes
    offsets: Offsets
    columns: pa.RecordBatch
    locate: Callable[[int, int | None], str]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def find(self, position: int) -> tuple[int, int]:
        """Tell the record that holds byte `position` of `data`, and the place within it."""
        record = int(np.searchsorted(self.offsets, position, side="right")) - 1
        return record, position - int(self.offsets[record])


def layout(array: pa.Array) -> tuple[bytes, Offsets]:
    """Return content and offsets of a string or binary array without nulls; offsets begin at 0."""
    offsets = np.frombuffer(array.buffers()[1], np.int32)
    offsets = offsets[array.offset : array.offset + len(array) + 1]
    first, last = (int(offsets[0]), int(offsets[-1])) if len(offsets) else (0, 0)
    buffer = array.buffers()[2]
    data = buffer.slice(first, last - first).to_pybytes() if buffer is not None else b""
    return data, offsets - np.int32(first)


def as_strings(data: bytes, offsets: Offsets) -> pa.Array:
    """Wrap ASCII `data` as an Arrow string array, without a copy."""
    return pa.StringArray.from_buffers(
        len(offsets) - 1, pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(data)
    )
