"""Repeated sequences and ids, found exactly and in bounded memory, whatever the number of rows.

A sequence is known by its 128-bit xxh3 digest: among ten billion sequences, the chance that any
two different ones share theirs is below 1e-18. Ids and digests go to a scratch file; DuckDB
groups them within a memory limit, and spills to the scratch folder beyond it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_128_digest

from frugalfm.sequences.alphabets import Alphabet
from frugalfm.sequences.records import layout

__all__ = ["Changes", "Repeats"]

MEMORY_LIMIT = "1GB"
_ROWS = 1 << 17  # of a row group of the scratch file, and of a batch of changes
_SCHEMA = pa.schema(
    [("row", pa.int64()), ("id", pa.string()), ("high", pa.uint64()), ("low", pa.uint64())]
)


class Repeats:
    """Collect ids and sequences row by row, then tell what repeats.

    Parameters
    ----------
    scratch
        A folder for temporary files: 16 bytes a row, and the ids.
    duplicates
        Look for repeated sequences too, not only for repeated ids.
    strands
        The alphabet whose reverse complements count as the same sequence; None for exact ones.
    """

    def __init__(self, scratch: Path, *, duplicates: bool, strands: Alphabet | None):
        self._scratch = scratch
        self._duplicates = duplicates
        self._strands = strands
        self._file = pq.ParquetWriter(
            self._seen, _SCHEMA, compression="none", use_dictionary=False, write_statistics=False
        )
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0

    @property
    def _seen(self) -> Path:
        return self._scratch / "seen.parquet"

    def add(self, ids: pa.Array, sequences: pa.Array) -> None:
        """Take note of the next rows."""
        high = low = np.zeros(len(ids), np.uint64)
        if self._duplicates:
            high, low = self._digests(sequences)
        rows = np.arange(self._rows, self._rows + len(ids))
        columns = [pa.array(rows), ids, pa.array(high), pa.array(low)]
        self._waiting.append(pa.RecordBatch.from_arrays(columns, schema=_SCHEMA))
        self._rows += len(ids)
        if sum(map(len, self._waiting)) >= _ROWS:
            self._flush()

    def close(self) -> None:
        """Stop taking rows and close the scratch file; harmless when repeated."""
        if self._file.is_open:
            self._flush()
            self._file.close()

    def find(self) -> Changes:
        """Which rows to drop or to rename, of all that were added."""
        self.close()
        return Changes(self._scratch, self._seen, duplicates=self._duplicates)

    def _flush(self) -> None:
        if self._waiting:
            self._file.write_table(pa.Table.from_batches(self._waiting))
            self._waiting = []

    def _digests(self, sequences: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        data, offsets = layout(sequences)
        bounds = list(pairwise(offsets.tolist()))
        digests = [xxh3_128_digest(data[start:end]) for start, end in bounds]
        if self._strands is not None:
            other, size = self._strands.reverse_complement(data), len(data)
            opposite = (xxh3_128_digest(other[size - end : size - start]) for start, end in bounds)
            digests = list(map(min, digests, opposite))
        found = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
        return np.ascontiguousarray(found[:, 0]), np.ascontiguousarray(found[:, 1])


class Changes:
    """The rows to drop and to rename, on disk, to be taken in the order of rows.

    Attributes
    ----------
    duplicates, renamed
        How many rows of each.
    first_renamed
        The first row whose id was seen before, with the row that had it first, or None.
    """

    def __init__(self, scratch: Path, seen: Path, *, duplicates: bool):
        self._base = duckdb.connect(
            str(scratch / "repeats.duckdb"),
            config={
                "memory_limit": MEMORY_LIMIT,
                "temp_directory": str(scratch / "spill"),
                "preserve_insertion_order": "false",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
            },
        )
        self._base.execute(f"CREATE VIEW seen AS FROM read_parquet({_quote(seen)})")
        self._base.execute(_DUPLICATES if duplicates else "CREATE TABLE dropped (row BIGINT)")
        self._base.execute(_REPEATED_IDS)
        self.duplicates = self._count("dropped")
        self.renamed = self._count("repeated")
        self._separator = self._free_separator()

    def __enter__(self) -> Changes:
        return self

    def __exit__(self, *_: object) -> None:
        self._base.close()

    @property
    def first_renamed(self) -> tuple[int, int] | None:
        """The first row whose id an earlier row has, and that earlier row."""
        found: tuple[int, int] | None = self._base.execute(
            "SELECT row, first FROM repeated ORDER BY row LIMIT 1"
        ).fetchone()
        return found

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Pairs of row and new id (null for a row to drop), ordered by row."""
        if not self.duplicates + self.renamed:
            return iter(())
        query = (
            "SELECT row, NULL::VARCHAR AS id FROM dropped UNION ALL "
            "SELECT row, id || $separator || nth FROM repeated ORDER BY row"
        )
        found = self._base.sql(query, params={"separator": self._separator})
        return iter(found.to_arrow_reader(_ROWS))

    def _count(self, table: str) -> int:
        count: int = self._base.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]  # noqa: S608 - our own table
        return count

    def _free_separator(self) -> str:
        """Find the shortest run of ``_`` that makes no new id equal to one that is there.

        Two new ids never equal each other: the digits after the last ``_`` tell their count, and
        what precedes the separator is the id that was repeated.
        """
        separator = "_"
        query = (
            "SELECT count(*) FROM seen "
            "SEMI JOIN (SELECT id || ? || nth AS id FROM repeated) USING (id)"
        )
        while self.renamed and self._base.execute(query, [separator]).fetchall()[0][0]:
            separator += "_"
        return separator


def _quote(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


_DUPLICATES = """
CREATE TABLE dropped AS
WITH repeated AS (
    SELECT high, low, min(row) AS first FROM seen GROUP BY high, low HAVING count(*) > 1
)
SELECT row FROM seen JOIN repeated USING (high, low) WHERE row > first
"""

# The first row with an id keeps it; of the others, the second is numbered 2.
_REPEATED_IDS = """
CREATE TABLE repeated AS
WITH kept AS (SELECT row, id FROM seen ANTI JOIN dropped USING (row)),
     often AS (SELECT id, min(row) AS first FROM kept GROUP BY id HAVING count(*) > 1)
SELECT row, id, first, row_number() OVER (PARTITION BY id ORDER BY row) AS nth
FROM kept JOIN often USING (id) QUALIFY nth > 1
"""
