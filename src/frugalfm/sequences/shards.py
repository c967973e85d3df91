"""Shards: folders of Parquet parts with ``id, sequence, length`` and the user's own columns.

Parts carry page checksums, which are verified whenever a part is read. A coreset is shards too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from frugalfm.artifacts import read_manifest
from frugalfm.errors import InputError
from frugalfm.sequences.alphabets import get_alphabet

__all__ = ["Part", "ShardWriter", "Shards", "open_shards", "read_parquet", "shard_schema"]

KINDS = ("shards", "coreset")
PART_RESIDUES = 128 << 20
PART_ROWS = 4 << 20
GROUP_RESIDUES = 8 << 20  # a row group is what a reader holds at once
GROUP_ROWS = 1 << 18


def shard_schema(user: Sequence[pa.Field] = ()) -> pa.Schema:
    """Return the columns of a part, the user's last."""
    required = [("id", pa.string()), ("sequence", pa.string()), ("length", pa.int32())]
    return pa.schema([pa.field(*column) for column in required] + list(user))


@dataclass(frozen=True)
class Part:
    """One Parquet file of some shards; `first_row` counts from the first row of the first part."""

    path: Path
    rows: int
    first_row: int


@dataclass(frozen=True)
class Shards:
    """Finished shards on disk, in the order of their rows."""

    folder: Path
    alphabet: str
    parts: tuple[Part, ...]
    n_sequences: int
    n_residues: int
    min_length: int
    max_length: int

    def read(
        self, part: Part, columns: Sequence[str] | None = None, group: int | None = None
    ) -> pa.Table:
        """Read some columns of a part, or of one of its row groups; all are held in memory."""
        with _explained(part.path), pq.ParquetFile(part.path, page_checksum_verification=True) as f:
            groups = range(f.num_row_groups) if group is None else [group]
            return f.read_row_groups(groups, columns=_known(part.path, f, columns))

    def count_groups(self, part: Part) -> int:
        """Count the row groups of a part, each of at most some million residues."""
        with _explained(part.path), pq.ParquetFile(part.path) as file:
            return int(file.num_row_groups)

    def batches(
        self, columns: Sequence[str] | None = None, rows: int = 16_384
    ) -> Iterator[pa.RecordBatch]:
        """All rows in order, at most `rows` at a time, in the memory of one row group.

        Raises
        ------
        InputError
            A part is damaged, or has no such column.
        """
        for part in self.parts:
            yield from read_parquet(part.path, columns, rows)


def open_shards(folder: Path) -> Shards:
    """Open the shards or the coreset in `folder`; only the manifest is read.

    Raises
    ------
    InputError
        `folder` holds neither, or not whole.
    """
    folder = Path(folder)
    if folder.is_file():
        raise InputError(
            f"{folder}: is a file, and shards are needed here; `frugalfm build {folder} "
            "--alphabet ALPHABET --out SHARDS` makes them"
        )
    manifest = read_manifest(folder, KINDS)
    try:
        summary = manifest["summary"]
        parts, first = [], 0
        for entry in summary["parts"]:
            parts.append(Part(folder / entry["file"], entry["rows"], first))
            first += entry["rows"]
        extent = [
            int(summary[key]) for key in ("n_sequences", "n_residues", "min_length", "max_length")
        ]
        alphabet = get_alphabet(manifest["config"]["alphabet"]).name
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / 'manifest.json'}: does not describe shards ({error!r}); "
            "make them again with: frugalfm build"
        ) from None
    return Shards(folder, alphabet, tuple(parts), *extent)


def read_parquet(
    path: Path, columns: Sequence[str] | None = None, rows: int = 16_384
) -> Iterator[pa.RecordBatch]:
    """Read any Parquet file in order, verifying the checksums of pages that have one.

    Raises
    ------
    InputError
        The file is damaged, or has no such column.
    """
    with _explained(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        wanted = _known(path, file, columns)
        # A group at a time: otherwise pyarrow reads ahead of its consumer.
        for group in range(file.num_row_groups):
            yield from file.iter_batches(
                rows, row_groups=[group], columns=wanted, use_threads=False
            )


def _known(path: Path, file: pq.ParquetFile, columns: Sequence[str] | None) -> list[str] | None:
    names = file.schema_arrow.names
    for column in columns or ():
        if column not in names:
            raise InputError(f"{path}: has no column {column!r}; there are: {', '.join(names)}")
    return None if columns is None else list(columns)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read ({error}); make or copy it again") from None


@dataclass
class _Extent:
    """How many rows, how many residues, and how long they are."""

    rows: int = 0
    residues: int = 0
    shortest: int = 0
    longest: int = 0

    def add(self, lengths: pa.Array) -> None:
        ends = pc.min_max(lengths).as_py()
        self.shortest = min(self.shortest, ends["min"]) if self.rows else ends["min"]
        self.longest = max(self.longest, ends["max"])
        self.residues += pc.sum(lengths).as_py()
        self.rows += len(lengths)

    def reaches(self, rows: int, residues: int) -> bool:
        return self.rows >= rows or self.residues >= residues


class ShardWriter:
    """Write rows, in the order given, as parts of limited size.

    A thread compresses one row group while the caller prepares the next; memory is a few row
    groups, whatever the number of rows. Use it as a context manager, then :meth:`summary`.

    Parameters
    ----------
    folder
        Where the parts go: the ``work`` folder of a stage.
    schema
        From :func:`shard_schema`.
    """

    def __init__(self, folder: Path, schema: pa.Schema):
        self._folder = folder
        self._schema = schema
        self._group = _Extent()  # rows that wait to be written
        self._waiting: list[pa.Table] = []
        self._part = _Extent()
        self._parts: list[dict[str, Any]] = []
        self._all = _Extent()
        self._file: pq.ParquetWriter | None = None
        self._path: Path | None = None
        self._thread = ThreadPoolExecutor(1)
        self._job: Future[None] | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self._thread.shutdown()
            if self._file is not None:
                self._file.close()
        if kind is None and self._job is not None:
            self._job.result()

    def write(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Append `rows`; a column that they lack is null."""
        if not len(rows):
            return
        residues = pc.sum(rows.column("length")).as_py()
        if residues > GROUP_RESIDUES and len(rows) > 1:
            # The windows of a chromosome arrive all at once; a reader should not get them so.
            half = len(rows) // 2
            self.write(rows.slice(0, half))
            self.write(rows.slice(half))
            return
        names = rows.schema.names
        columns = [
            rows.column(field.name) if field.name in names else pa.nulls(len(rows), field.type)
            for field in self._schema
        ]
        self._waiting.append(pa.table(columns, schema=self._schema))
        lengths = rows.column("length")
        for extent in (self._group, self._part, self._all):
            extent.add(lengths)
        if self._part.reaches(PART_ROWS, PART_RESIDUES) or self._group.reaches(
            GROUP_ROWS, GROUP_RESIDUES
        ):
            self._flush()

    def summary(self) -> dict[str, Any]:
        """Return what :func:`open_shards` needs to find in a manifest's summary."""
        return {
            "n_sequences": self._all.rows,
            "n_residues": self._all.residues,
            "min_length": self._all.shortest,
            "max_length": self._all.longest,
            "parts": self._parts,
        }

    def _flush(self) -> None:
        """Hand the rows that wait to the thread, once it is done with the previous ones."""
        if not self._waiting:
            return
        group = pa.concat_tables(self._waiting).combine_chunks()
        if self._part.rows == len(group):
            self._parts.append({"file": f"part-{len(self._parts):05d}.parquet", "rows": 0})
        self._parts[-1]["rows"] = self._part.rows
        if self._part.reaches(PART_ROWS, PART_RESIDUES):
            self._part = _Extent()
        self._waiting, self._group = [], _Extent()
        if self._job is not None:
            self._job.result()
        self._job = self._thread.submit(self._write, self._folder / self._parts[-1]["file"], group)

    def _write(self, path: Path, group: pa.Table) -> None:
        if path != self._path:
            if self._file is not None:
                self._file.close()
            self._path = path  # what a killed run left there is overwritten
            self._file = pq.ParquetWriter(
                path,
                self._schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=False,  # sequences and ids hardly repeat
                write_statistics=["length"],
                write_page_checksum=True,
            )
        assert self._file is not None
        self._file.write_table(group, row_group_size=len(group))
