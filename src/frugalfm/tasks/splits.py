"""One labelled file of a task: sequences normalised and checked, labels as they are written."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frugalfm.errors import InputError
from frugalfm.sequences.alphabets import get_alphabet
from frugalfm.sequences.cleaning import Cleaner
from frugalfm.sequences.readers import open_sources
from frugalfm.sequences.records import as_strings
from frugalfm.sequences.tables import csv_names, parquet_fields

__all__ = ["SUFFIXES", "Split", "read_header", "read_split"]

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")


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
        Labels as they are written (Arrow strings).
    targets
        Labels as numbers: classes (int64) or values (float64), shape ``(n,)``; for labels of
        residues the classes of all residues end to end, in the order of the sequences. Empty
        until the kind of the task is known.
    locate
        From a row of the file to words such as ``line 7``.
    """

    path: Path
    rows: np.ndarray
    sequences: pa.Array
    texts: pa.Array
    targets: np.ndarray
    locate: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """Residues of each sequence (int32)."""
        return np.asarray(pc.binary_length(self.sequences))

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
        )

    def crop(self, length: int, *, token: bool) -> Split:
        """Keep the first `length` residues of each sequence, and their labels if `token`."""
        sequences = pc.utf8_slice_codeunits(self.sequences, 0, length)
        if not token:
            return replace(self, sequences=sequences)
        lengths = self.lengths
        place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        texts = pc.utf8_slice_codeunits(self.texts, 0, length)
        targets = self.targets[place < length]
        return replace(self, sequences=sequences, texts=texts, targets=targets)


def read_header(path: Path) -> list[str]:
    """Names of the columns of a table.

    Raises
    ------
    InputError
        The file cannot be read.
    """
    if path.suffix == ".parquet":
        return [field.name for field in parquet_fields(path)]
    try:
        return csv_names(path, "\t" if ".tsv" in path.suffixes else ",")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); compress or copy it anew") from None


def read_split(path: Path, alphabet: str, column: str) -> Split:
    """Read one file of a task.

    Parameters
    ----------
    path
        CSV, TSV (both also with ``.gz``) or Parquet file with the columns ``sequence`` and
        `column`; others are ignored.
    alphabet
        ``"dna"``, ``"rna"`` or ``"protein"``; T and U are read as the alphabet's own letter.
    column
        ``"label"`` or ``"structure"``.

    Raises
    ------
    InputError
        The file is damaged or empty, or a row has a bad sequence or no label; names the line.
    """
    header = read_header(path)
    for name in ("sequence", column):
        if header and name not in header:
            raise InputError(
                f"{path}: has no column {name!r}; a task's header is sequence,label or, with a "
                f"label for each residue, sequence,structure. There are: {', '.join(header)}"
            )
    source = open_sources(path, alphabet)[0]
    cleaner = Cleaner(get_alphabet(alphabet))
    sequences: list[pa.Array] = []
    texts: list[pa.Array] = []
    places: list[tuple[int, Callable[[int, int | None], str]]] = []
    count = 0
    for records in source.read():
        data, offsets = cleaner.clean(path, records)
        labels = _as_text(path, records.columns.column(column))
        for what, sizes in (("sequence", np.diff(offsets)), (column, pc.binary_length(labels))):
            empty = np.asarray(sizes) == 0
            if empty.any():
                where = records.locate(int(empty.argmax()), None)
                raise InputError(f"{path}, {where}: the {what} is empty; take the row out")
        sequences.append(as_strings(data, offsets))
        texts.append(labels)
        places.append((count, records.locate))
        count += len(records)
    if not count:
        raise InputError(f"{path}: holds no rows; every split of a task needs some")

    def locate(row: int) -> str:
        first, place = next(entry for entry in reversed(places) if entry[0] <= row)
        return place(row - first, None)

    return Split(
        path,
        np.arange(count),
        pa.concat_arrays(sequences),
        pa.concat_arrays(texts),
        np.empty(0),
        locate,
    )


def _as_text(path: Path, labels: pa.Array) -> pa.Array:
    try:
        text = labels.cast(pa.string()).fill_null("")
    except pa.ArrowException:
        raise InputError(
            f"{path}: labels of type {labels.type} cannot be used; store numbers or text"
        ) from None
    return pc.utf8_trim_whitespace(text)
