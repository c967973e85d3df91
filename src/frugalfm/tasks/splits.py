"""One labelled file of a task: sequences normalised and checked, labels as they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frugalfm.errors import InputError
from frugalfm.sequences.alphabets import get_alphabet
from frugalfm.sequences.cleaning import Cleaner
from frugalfm.sequences.damage import explained
from frugalfm.sequences.lines import line_names
from frugalfm.sequences.readers import open_sources
from frugalfm.sequences.records import Records, as_strings, layout
from frugalfm.sequences.tables import csv_names, parquet_fields
from frugalfm.tasks.brackets import parse_structure
from frugalfm.tasks.kinds import is_map
from frugalfm.tasks.layout import Layout
from frugalfm.tasks.maps import MapTargets, parse_contacts, parse_coordinates

__all__ = ["SUFFIXES", "Split", "read_header", "read_split"]

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class Split:
    """Training, development or test rows of a task.

    Attributes
    ----------
    path
        The file.
    rows
        Row in the file (from 0) of each sequence, int64, shape ``(n,)``.
    sequences
        Normalised sequences (Arrow strings).
    texts
        Labels as they are written (Arrow strings); empty for contacts and distances.
    targets
        Labels as numbers: classes (int64) or values (float64), shape ``(n,)``; for labels of
        residues the classes of all residues end to end, in the order of the sequences, and
        :data:`~frugalfm.tasks.kinds.IGNORED` where a mask leaves one out. Empty until the kind
        of the task is known, and where there are maps.
    locate
        From a row of the file to words such as ``line 7``.
    partners
        The other sequence of each pair, if rows are pairs.
    maps
        Targets of pairs of positions, if that is the kind of the task.
    masks
        As written: a character a residue, 1 if its label counts and 0 if not.
    """

    path: Path
    rows: np.ndarray
    sequences: pa.Array
    texts: pa.Array
    targets: np.ndarray
    locate: Callable[[int], str]
    partners: pa.Array | None = None
    maps: MapTargets | None = None
    masks: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """Residues of each sequence (int32); of a pair, of the first."""
        return np.asarray(pc.binary_length(self.sequences))

    @property
    def keys(self) -> pa.Array:
        """What may occur in one split only: the sequence, or the pair in either order."""
        if self.partners is None:
            return self.sequences
        pairs = zip(self.sequences.to_pylist(), self.partners.to_pylist(), strict=True)
        return pa.array(["|".join(sorted(pair)) for pair in pairs], pa.string())

    @property
    def members(self) -> pa.Array:
        """All sequences, those of pairs one after the other: each first one, then each second."""
        if self.partners is None:
            return self.sequences
        return pa.concat_arrays([self.sequences, self.partners])

    def where(self, index: int) -> str:
        """Name file and line of a sequence, for messages."""
        return f"{self.path}, {self.locate(int(self.rows[index]))}"

    def take(self, keep: np.ndarray) -> Split:
        """Keep some sequences, before there are targets (`keep` is a mask)."""
        mask = pa.array(keep)
        return replace(
            self,
            rows=self.rows[keep],
            sequences=self.sequences.filter(mask),
            texts=self.texts.filter(mask),
            partners=None if self.partners is None else self.partners.filter(mask),
            maps=None if self.maps is None else self.maps.take(keep),
            masks=None if self.masks is None else self.masks.filter(mask),
        )

    def crop(self, length: int, *, token: bool) -> Split:
        """Keep the first `length` residues of each sequence, and their labels if `token`."""

        def cut(texts: pa.Array | None) -> pa.Array | None:
            return None if texts is None else pc.utf8_slice_codeunits(texts, 0, length)

        short = replace(self, sequences=cut(self.sequences), partners=cut(self.partners))
        if self.maps is not None:
            return replace(short, maps=self.maps.crop(length), texts=cut(self.texts))
        if not token:
            return short
        lengths = self.lengths
        place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        targets = self.targets[place < length]
        return replace(short, texts=cut(self.texts), targets=targets, masks=cut(self.masks))


def read_header(path: Path) -> list[str]:
    """Names of the columns of a table.

    Raises
    ------
    InputError
        The file cannot be read.
    """
    if path.suffix == ".parquet":
        return [field.name for field in parquet_fields(path)]
    with explained(path):
        if ".jsonl" in path.suffixes:
            return line_names(path)
        return csv_names(path, "\t" if ".tsv" in path.suffixes else ",")


def read_split(path: Path, alphabet: str, columns: Layout, kind: str | None = None) -> Split:
    """Read one file of a task.

    Parameters
    ----------
    path
        CSV, TSV or JSON lines (each also with ``.gz``) or Parquet file; columns that `columns`
        does not name are ignored.
    alphabet
        ``"dna"``, ``"rna"`` or ``"protein"``; T and U are read as the alphabet's own letter.
    columns
        Which to read.
    kind
        Of a map, whose targets are then parsed.

    Raises
    ------
    InputError
        The file is damaged or empty, or a row has a bad sequence or no label; names the line.
    """
    header = read_header(path)
    for name in columns.needed:
        if header and name not in header:
            raise InputError(
                f"{path}: has no column {name!r}; a task's header is sequence,label or, with a "
                "label for each residue, sequence,structure, and the same in all files (or what "
                "tune's and evaluate's --sequence-column and --label-column say). "
                f"There are: {', '.join(header)}"
            )
    wanted = [*columns.needed[1:], *([columns.mask] if columns.mask in header else [])]
    (source,) = open_sources(
        path, alphabet, sequence_column=columns.sequence, columns=wanted, fixed=True
    )
    return collect_split(path, source.read(), header, alphabet, columns, kind)


def collect_split(
    path: Path,
    batches: Iterator[Records],
    header: list[str],
    alphabet: str,
    columns: Layout,
    kind: str | None = None,
) -> Split:
    """Clean, check and join what a reader gives; arguments as in :func:`read_split`."""
    cleaner = Cleaner(get_alphabet(alphabet), fixed=True)
    parts: list[dict[str, Any]] = []
    places: list[tuple[int, Callable[[int, int | None], str]]] = []
    count = 0
    for records in batches:
        part = _collect(path, records, header, cleaner, columns, kind)
        parts.append(part)
        places.append((count, records.locate))
        count += len(records)
    if not count:
        raise InputError(f"{path}: holds no rows; every split of a task needs some")

    def locate(row: int) -> str:
        first, place = next(entry for entry in reversed(places) if entry[0] <= row)
        return place(row - first, None)

    def join(name: str) -> pa.Array | None:
        return pa.concat_arrays([part[name] for part in parts]) if name in parts[0] else None

    split = Split(
        path,
        np.arange(count),
        join("sequences"),
        join("texts"),
        np.empty(0),
        locate,
        partners=join("partners"),
        masks=join("masks"),
    )
    if not is_map(kind):
        return split
    pieces = tuple(piece for part in parts for piece in part["pieces"])
    maps = MapTargets(kind, split.lengths.astype(np.int64), pieces)
    return replace(split, maps=maps)


def _collect(
    path: Path,
    records: Records,
    header: list[str],
    cleaner: Cleaner,
    columns: Layout,
    kind: str | None,
) -> dict[str, Any]:
    """Check one batch: no empty sequence, no empty label; parse the targets of maps."""
    part: dict[str, Any] = {}
    sized = []
    data, offsets = cleaner.clean(path, records)
    part["sequences"] = as_strings(data, offsets)
    sized.append(("sequence", np.diff(offsets)))
    if columns.partner is not None:
        other = records.columns.column(columns.partner).cast(pa.binary()).fill_null(b"")
        seconds = Records(*layout(other), records.columns, records.locate)
        data, offsets = cleaner.clean(path, seconds)
        part["partners"] = as_strings(data, offsets)
        sized.append((columns.partner, np.diff(offsets)))
    written = records.columns.column(columns.label)
    if kind in {"contact", "distance"}:
        part["texts"] = pa.array([""] * len(records), pa.string())
    else:
        part["texts"] = _as_text(path, written)
        sized.append((columns.label, np.asarray(pc.binary_length(part["texts"]))))
    if columns.mask is not None and columns.mask in header:
        part["masks"] = _as_text(path, records.columns.column(columns.mask))
    for what, sizes in sized:
        empty = np.asarray(sizes) == 0
        if empty.any():
            where = records.locate(int(empty.argmax()), None)
            raise InputError(f"{path}, {where}: the {what} is empty; take the row out")
    if is_map(kind):
        values = part["texts"] if kind == "base-pair" else written
        lengths = np.asarray(pc.binary_length(part["sequences"]))
        part["pieces"] = _parse(path, records, values, lengths, columns.label)
    return part


def _parse(
    path: Path, records: Records, values: pa.Array, lengths: np.ndarray, column: str
) -> list[np.ndarray]:
    parsers = {"structure": parse_structure, "contacts": parse_contacts}
    parse: Callable[[Any, int], np.ndarray] = parsers.get(column, parse_coordinates)
    pieces = []
    for row, (value, length) in enumerate(zip(values.to_pylist(), lengths.tolist(), strict=True)):
        try:
            pieces.append(parse(value, length))
        except ValueError as error:
            raise InputError(f"{path}, {records.locate(row, None)}: {column}: {error}") from None
    return pieces


def _as_text(path: Path, labels: pa.Array) -> pa.Array:
    try:
        text = labels.cast(pa.string()).fill_null("")
    except pa.ArrowException:
        raise InputError(
            f"{path}: labels of type {labels.type} cannot be used; store numbers or text"
        ) from None
    return pc.utf8_trim_whitespace(text)
