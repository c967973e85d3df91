"""From records to rows: cut what is too long, drop what is too short or ambiguous."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frugalfm.errors import InputError
from frugalfm.sequences.alphabets import Alphabet
from frugalfm.sequences.cleaning import Ambiguous, Cleaner, Gaps, occurrences
from frugalfm.sequences.readers import Source
from frugalfm.sequences.records import Offsets, Records, as_strings

__all__ = ["Cutter", "Policies", "Rows", "TooLong"]

TooLong = Literal["window", "crop", "error"]


@dataclass(frozen=True)
class Policies:
    """What to do with records that are not as they should be."""

    max_length: int = 1022
    too_long: TooLong = "window"
    min_length: int = 1
    gaps: Gaps = "error"
    ambiguous: Ambiguous = "keep"

    def __post_init__(self) -> None:
        if not 1 <= self.min_length <= self.max_length:
            raise InputError(
                f"--min-length {self.min_length} and --max-length {self.max_length}: "
                "choose 1 <= min-length <= max-length"
            )


@dataclass(frozen=True)
class Rows:
    """The rows that some records became, in order.

    Attributes
    ----------
    table
        ``id, sequence, length`` and the user's columns.
    first
        Number of the first row; all rows of all inputs are counted from 0.
    parents
        For each row, which of `records` it is from.
    """

    table: pa.RecordBatch
    first: int
    source: Source
    records: Records
    parents: Offsets

    def place(self, row: int) -> str:
        """File and line of the record that row number `row` is from."""
        parent = int(self.parents[row - self.first])
        return f"{self.source.path}, {self.records.locate(parent, None)}"


class Cutter:
    """Read sources as clean rows of admissible length, and count all that is done on the way.

    Attributes
    ----------
    counts
        ``records``, and how many of them or of their letters met each policy.
    described
        Some record had a description.
    """

    def __init__(self, alphabet: Alphabet, policies: Policies, user: Sequence[pa.Field]):
        self.counts: Counter[str] = Counter()
        self.described = False
        self._alphabet = alphabet
        self._policies = policies
        self._cleaner = Cleaner(alphabet, policies.gaps, policies.ambiguous, self.counts)
        self._user = list(user)

    def rows(
        self, sources: Sequence[Source], tick: Callable[[int], object] | None = None
    ) -> Iterator[Rows]:
        """All rows of all `sources`, in batches of a few megabytes.

        Raises
        ------
        InputError
            Bad input, or input that the policies refuse; names file and line.
        """
        first = 0
        for source in sources:
            for records in source.read(tick):
                data, offsets = self._cleaner.clean(source.path, records)
                table, parents = self._cut(source.path, records, data, offsets)
                yield Rows(table, first, source, records, parents)
                first += len(table)

    def _cut(
        self, path: Path, records: Records, data: bytes, offsets: Offsets
    ) -> tuple[pa.RecordBatch, Offsets]:
        counts, policies = self.counts, self._policies
        counts["records"] += len(records)
        counts["residues"] += len(data)
        lengths = np.diff(offsets)
        long = lengths > policies.max_length
        if long.any() and policies.too_long == "error":
            bad = int(np.argmax(long))
            raise InputError(
                f"{path}, {records.locate(bad, None)}: the sequence has {lengths[bad]} residues, "
                f"more than {policies.max_length}; --too-long window or crop, or --max-length"
            )
        offsets, parents, starts = _windows(offsets, policies.max_length)
        lengths = np.diff(offsets)
        keep = self._keep(data, offsets, long[parents], starts, lengths)
        ids = records.columns.column("id")
        if long.any():
            ids = ids.take(pa.array(parents))
            if policies.too_long == "window":
                ids = _window_ids(ids, long[parents], starts, lengths)
        columns = [ids, as_strings(data, offsets), pa.array(lengths, pa.int32())]
        columns += [self._user_column(records, field, parents) for field in self._user]
        names = ["id", "sequence", "length", *(field.name for field in self._user)]
        table = pa.RecordBatch.from_arrays(columns, names)
        if keep.all():
            return table, parents
        return table.filter(pa.array(keep)), parents[keep]

    def _keep(
        self,
        data: bytes,
        offsets: Offsets,
        window: np.ndarray,
        starts: Offsets,
        lengths: Offsets,
    ) -> np.ndarray:
        """Which rows stay; every row that does not is counted once."""
        counts, policies = self.counts, self._policies
        keep = np.ones(len(lengths), np.bool_)
        counts["too_long"] += int((window & (starts == 0)).sum())
        if policies.too_long == "crop":
            keep &= starts == 0
            counts["residues_cropped"] += int(lengths[~keep].sum())
        else:
            counts["windows"] += int(window.sum())
        short = keep & (lengths < policies.min_length)
        counts["short_windows"] += int((short & window).sum())
        counts["too_short"] += int((short & ~window).sum())
        keep &= ~short
        if policies.ambiguous == "drop":
            places = occurrences(data, self._alphabet.ambiguous)
            doomed = np.zeros(len(lengths), np.bool_)
            doomed[np.searchsorted(offsets, places, side="right") - 1] = True
            counts["ambiguous_dropped"] += int((keep & doomed).sum())
            keep &= ~doomed
        return keep

    def _user_column(self, records: Records, field: pa.Field, parents: Offsets) -> pa.Array:
        if field.name not in records.columns.schema.names:
            return pa.nulls(len(parents), field.type)
        column = records.columns.column(field.name)
        if field.name == "description":
            self.described = self.described or column.null_count < len(column)
        return column if len(parents) == len(records) else column.take(pa.array(parents))


def _windows(offsets: Offsets, most: int) -> tuple[Offsets, Offsets, Offsets]:
    """Cut every sequence into windows of at most `most`: new offsets, parents, starts within.

    The windows of a sequence touch, so that the letters stay where they are.
    """
    lengths = np.diff(offsets)
    if not len(lengths) or lengths.max() <= most:
        return offsets, np.arange(len(lengths), dtype=np.int32), np.zeros_like(lengths)
    pieces = np.maximum(1, -(-lengths // most))
    parents = np.repeat(np.arange(len(lengths), dtype=np.int32), pieces)
    nth = np.arange(len(parents)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = (nth * most).astype(np.int32)
    return np.append(offsets[parents] + starts, offsets[-1]), parents, starts


def _window_ids(ids: pa.Array, window: np.ndarray, starts: Offsets, lengths: Offsets) -> pa.Array:
    """``ID/FIRST-LAST``, counted from 1, for the rows that are windows."""
    first = pa.array(starts + 1).cast(pa.string())
    last = pa.array(starts + lengths).cast(pa.string())
    extents = pc.binary_join_element_wise(first, last, "-")
    return pc.if_else(pa.array(window), pc.binary_join_element_wise(ids, extents, "/"), ids)
