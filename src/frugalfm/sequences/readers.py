"""Open sequence files of any supported format, and stream their records in order.

Formats: FASTA, FASTQ, CSV, TSV, JSON lines (all also compressed by gzip, bzip2 or xz), Parquet,
and folders of shards. The suffix decides; a file without a known one is recognised by its first
letter.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from xopen import xopen

from frugalfm.artifacts import MANIFEST
from frugalfm.errors import InputError
from frugalfm.sequences import tables
from frugalfm.sequences.alphabets import get_alphabet
from frugalfm.sequences.cleaning import Cleaner
from frugalfm.sequences.damage import explained
from frugalfm.sequences.fasta import read_fasta, read_fastq
from frugalfm.sequences.lines import line_names, read_lines
from frugalfm.sequences.records import Records, as_strings, layout
from frugalfm.sequences.shards import open_shards

__all__ = ["Source", "column_names", "open_sources", "stream_sequences"]

_SUFFIXES = {
    "fasta": ".fasta .fa .fas .fna .faa .ffn .frn .mpfa",
    "fastq": ".fastq .fq",
    "csv": ".csv",
    "tsv": ".tsv .tab",
    "jsonl": ".jsonl .ndjson",
    "parquet": ".parquet .pq",
}
_FORMATS = {suffix: name for name, known in _SUFFIXES.items() for suffix in known.split()}
_COMPRESSED = (".gz", ".bz2", ".xz")
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_NUCLEIC = {"dna", "rna"}

Tick = Callable[[int], object]


@dataclass(frozen=True)
class Source:
    """One input file, checked as far as is possible without reading it.

    Attributes
    ----------
    path
        The file.
    format
        ``"fasta"``, ``"fastq"``, ``"csv"``, ``"tsv"``, ``"jsonl"`` or ``"parquet"``.
    columns
        For tables: what their columns are.
    fields
        The user's columns, which come with every record; one that is called ``id`` or
        ``sequence`` and is not that is ``id_2`` or ``sequence_2``.
    replaced
        Whether a table has a column ``length`` of its own, which is not kept.
    """

    path: Path
    format: str
    columns: tables.Columns | None = None
    fields: tuple[pa.Field, ...] = field(default=(pa.field("description", pa.string()),))
    replaced: bool = False

    def read(self, tick: Tick | None = None) -> Iterator[Records]:
        """Read the records in order; one without an id is called ``FILE:NUMBER``.

        Parameters
        ----------
        tick
            Told of the bytes that were read since it was last told.

        Raises
        ------
        InputError
            The file is damaged or not of its format.
        """
        first = 0
        with explained(self.path):
            for records in self._read(tick):
                yield self._named(records, first)
                first += len(records)

    def _read(self, tick: Tick | None) -> Iterator[Records]:
        if self.format == "parquet":
            assert self.columns is not None
            yield from tables.read_parquet_records(self.path, self.columns)
            if tick is not None:
                tick(self.path.stat().st_size)
            return
        with _open_bytes(self.path, tick) as stream:
            if self.format == "fasta":
                yield from read_fasta(self.path, stream)
            elif self.format == "fastq":
                yield from read_fastq(self.path, stream)
            elif self.format == "jsonl":
                assert self.columns is not None
                yield from read_lines(self.path, stream, self.columns)
            else:
                assert self.columns is not None
                delimiter = _DELIMITERS[self.format]
                yield from tables.read_csv(self.path, stream, delimiter, self.columns)

    def _named(self, records: Records, first: int) -> Records:
        ids = records.columns.column("id")
        text, offsets = layout(ids)
        if b"\0" in text:
            bad = int(np.searchsorted(offsets, text.index(b"\0"), side="right")) - 1
            where = records.locate(bad, None)
            raise InputError(f"{self.path}, {where}: the id holds a NUL byte; correct the record")
        missing = offsets[1:] == offsets[:-1]
        if not missing.any():
            return records
        stem = _plain_name(self.path).stem
        names = [f"{stem}:{first + row + 1}" for row in np.flatnonzero(missing)]
        ids = pc.replace_with_mask(ids, pa.array(missing), pa.array(names))
        return replace(records, columns=records.columns.set_column(0, "id", ids))


def open_sources(
    path: Path,
    alphabet: str,
    id_column: str | None = None,
    sequence_column: str = "sequence",
    *,
    columns: Sequence[str] | None = None,
    fixed: bool = False,
) -> list[Source]:
    """Recognise `path` and check what can be checked at once: a file, or a folder of shards.

    Parameters
    ----------
    path
        Sequence file, or a folder made by ``build`` or ``select``.
    alphabet
        What its sequences are to be; shards say it of themselves.
    id_column, sequence_column
        Of tables; the id is the column ``id``, if there is one, when None.
    columns
        The user's columns to read of tables; all when None.
    fixed
        Whether a model decides the alphabet: shards of RNA then do for DNA and the reverse, as
        files do, and messages name no option for it.

    Raises
    ------
    InputError
        No such file, an empty one, an unknown format, or a missing column.
    """
    path = Path(path)
    if path.is_dir():
        _refuse_plain_folder(path, fixed=fixed)
        shards = open_shards(path)
        if shards.alphabet != alphabet and not (fixed and {shards.alphabet, alphabet} <= _NUCLEIC):
            remedy = f"use --alphabet {shards.alphabet}"
            if fixed:
                remedy = f"take a model for them (this one reads {alphabet})"
            raise InputError(f"{path}: holds {shards.alphabet} sequences; {remedy}")
        files = [part.path for part in shards.parts]
        return [_open_table(file, "parquet", "id", "sequence", columns) for file in files]
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(
            f"{path}: is not a regular file; it is read twice, so save it to one first"
        )
    with explained(path):
        kind = _recognise(path)
    if kind in {"fasta", "fastq"}:
        return [Source(path, kind)]
    return [_open_table(path, kind, id_column, sequence_column, columns)]


def _refuse_plain_folder(folder: Path, *, fixed: bool) -> None:
    """Refuse a folder of sequence files, which is no artifact; where `fixed`, verbs take one."""
    if (folder / MANIFEST).exists():
        return
    kinds = {file: _plain_name(file).suffix.lower() for file in sorted(folder.iterdir())}
    # Parts of Parquet are what is left of shards.
    found = [file for file, kind in kinds.items() if kind in _FORMATS.keys() - {".parquet", ".pq"}]
    if found:
        first = found[0]
        names = first if fixed else folder / f"*{first.name.removeprefix(_plain_name(first).stem)}"
        raise InputError(
            f"{folder}: is a folder of files, and not of shards; name "
            f"{'one of them' if fixed else 'the files'}, such as {names}"
        )


def column_names(path: Path) -> list[str]:
    """Names of the columns of a table; none of FASTA, FASTQ and shards.

    Raises
    ------
    InputError
        No such file, an empty one, or an unknown format.
    """
    if path.is_dir():
        return []
    if not path.exists():
        raise InputError(f"{path}: no such file")
    with explained(path):
        kind = _recognise(path)
    return [] if kind in {"fasta", "fastq"} else [field.name for field in _read_fields(path, kind)]


def stream_sequences(
    path: Path,
    alphabet: str,
    columns: Sequence[str] | None = None,
    sequence_column: str | None = None,
) -> Iterator[pa.RecordBatch]:
    """Every sequence of a file or of shards, normalised and checked, in order.

    Letters are treated as ``build`` treats them by default. Nothing is dropped, cut or renamed,
    so that results correspond to records one by one; an empty sequence is therefore an error.

    Parameters
    ----------
    path
        FASTA, FASTQ, CSV, TSV, JSON lines or Parquet file, or a folder of shards. A table has a
        column of sequences, and may have ``id``.
    alphabet
        ``"dna"``, ``"rna"`` or ``"protein"``, as a model decides; T and U are the same letter.
    columns
        The user's columns to pass on as well.
    sequence_column
        Of tables: what ``--sequence-column`` says; None is ``sequence``.

    Yields
    ------
    pyarrow.RecordBatch
        ``id, sequence, length`` and `columns`; a few megabytes.

    Raises
    ------
    InputError
        Bad input; names the file, and the line where there is one.
    """
    column = sequence_column or "sequence"
    if Path(path).is_dir() and column != "sequence":
        raise InputError(f"{path}: holds shards, not a table; leave out --sequence-column")
    cleaner = Cleaner(get_alphabet(alphabet), fixed=True)
    wanted = list(columns or ())
    sources = open_sources(path, alphabet, sequence_column=column, columns=wanted, fixed=True)
    for source in sources:
        _require(source, wanted)
    for source in sources:
        for records in source.read():
            data, offsets = cleaner.clean(source.path, records)
            lengths = np.diff(offsets)
            if not lengths.all():
                where = records.locate(int(np.argmin(lengths)), None)
                raise InputError(
                    f"{source.path}, {where}: the sequence is empty; take the record out, "
                    "or make shards first (frugalfm build drops and counts empty records)"
                )
            found = {"id": records.columns.column("id"), "sequence": as_strings(data, offsets)}
            found["length"] = pa.array(lengths, pa.int32())
            found |= {name: records.columns.column(name) for name in wanted}
            yield pa.RecordBatch.from_pydict(found)


def _require(source: Source, columns: Sequence[str]) -> None:
    names = [found.name for found in source.fields]
    for name in columns:
        if name not in names:
            raise InputError(
                f"{source.path}: has no column {name!r}; there are: {', '.join(names) or 'none'}"
            )


def _recognise(path: Path) -> str:
    """Tell the format of a file that is not empty."""
    suffix = _plain_name(path).suffix.lower()
    with _open_bytes(path, None) as stream:
        start = stream.read(64)
    if not start:
        raise InputError(f"{path}: is empty; leave it out, or copy it anew")
    if suffix in _FORMATS:
        return _FORMATS[suffix]
    start = start.lstrip()
    for mark, name in ((b">", "fasta"), (b"@", "fastq"), (b"PAR1", "parquet")):
        if start.startswith(mark):
            return name
    raise InputError(
        f"{path}: of no known format; name it by one of {', '.join(_FORMATS)}, "
        f"if compressed followed by one of {', '.join(_COMPRESSED)}"
    )


def _plain_name(path: Path) -> Path:
    return Path(path.stem if path.suffix.lower() in _COMPRESSED else path.name)


def _open_table(
    path: Path,
    kind: str,
    id_column: str | None,
    sequence_column: str,
    wanted: Sequence[str] | None,
) -> Source:
    known = _read_fields(path, kind)
    names = [column.name for column in known]
    remedy = "name the right one with --sequence-column"
    remedies = {sequence_column: remedy}
    if id_column is not None:
        remedies[id_column] = "name the right one with --id-column"
    for name in (*remedies, *(wanted or ())):
        if name not in names:
            hint = f"; {remedies[name]}. There" if name in remedies else "; there"
            raise InputError(f"{path}: has no column {name!r}{hint} are: {', '.join(names)}")
    content = known[names.index(sequence_column)].type
    if not _is_text(content):
        raise InputError(f"{path}: column {sequence_column!r} holds {content}, not text; {remedy}")
    if id_column is None and "id" in names:
        id_column = "id"
    # Lengths are counted anew, so a table may well have them.
    user = [c for c in known if c.name not in {id_column, sequence_column, "length"}]
    if wanted is not None:
        user = [known[names.index(name)] for name in wanted]
    whole = wanted is None
    columns = tables.Columns(id_column, sequence_column, tuple(c.name for c in user), whole=whole)
    fields = tuple(c.remove_metadata().with_name(columns.stored(c.name)) for c in user)
    # A part of shards, read as a file of its own, has 32 bits.
    theirs = whole and any(c.name == "length" and c.type != pa.int32() for c in known)
    return Source(
        path,
        kind,
        columns,
        fields,
        replaced=theirs and "length" not in {id_column, sequence_column},
    )


def _read_fields(path: Path, kind: str) -> list[pa.Field]:
    """Read the columns of a table, each of which must be there once."""
    if kind == "parquet":
        known = tables.parquet_fields(path)
    else:
        with explained(path):
            lines = kind == "jsonl"
            names = line_names(path) if lines else tables.csv_names(path, _DELIMITERS[kind])
        known = [pa.field(name, pa.string()) for name in names]
    names = [column.name for column in known]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise InputError(f"{path}: has two columns {repeated!r}; rename one of them")
    return known


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return str(kind) in {"string", "large_string", "string_view", "binary", "large_binary"}


@contextlib.contextmanager
def _open_bytes(path: Path, tick: Tick | None) -> Iterator[IO[bytes]]:
    """Open `path` for reading what it holds when decompressed, by a thread."""
    with (
        _Counted(path, tick) as raw,
        io.BufferedReader(raw) as file,
        xopen(file, "rb", threads=1) as stream,
    ):
        yield stream


class _Counted(io.FileIO):
    """A file that tells how much of it was read."""

    def __init__(self, path: Path, tick: Tick | None):
        super().__init__(path)
        self._tick = tick

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer) or 0
        if self._tick is not None:
            self._tick(count)
        return count
