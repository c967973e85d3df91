"""Copy the chosen rows out of shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from frugalfm.errors import InputError
from frugalfm.progress import progress
from frugalfm.sequences.shards import Part, Shards, ShardWriter, read_parquet, shard_schema

__all__ = ["copy_rows"]


def copy_rows(shards: Shards, selection: Path, folder: Path) -> dict[str, Any]:
    """Write the selected rows, with all their columns and in their order, as new shards.

    Memory: one row group, and the selection of one part.

    Parameters
    ----------
    shards
        What was selected from.
    selection
        Parquet with ``id, row``, in ascending order of row.
    folder
        Where the parts go.

    Returns
    -------
    dict
        What the summary of shards says: ``n_sequences, n_residues, parts``, and so on.

    Raises
    ------
    InputError
        The ids of the selection are not those of the shards, or a part is damaged.
    """
    required = len(shard_schema())
    user = list(pq.read_schema(shards.parts[0].path))[required:]
    with ShardWriter(folder, shard_schema(user)) as writer:
        for part in progress(shards.parts, desc="copy", unit="part"):
            _copy_part(part, selection, writer)
    return writer.summary()


def _copy_part(part: Part, selection: Path, writer: ShardWriter) -> None:
    first, end = part.first_row, part.first_row + part.rows
    chosen = pq.read_table(
        selection, columns=["id", "row"], filters=[("row", ">=", first), ("row", "<", end)]
    )
    if not len(chosen):
        return
    rows = chosen["row"].to_numpy()
    for batch in read_parquet(part.path):
        start, stop = np.searchsorted(rows, [first, first + len(batch)])
        if stop > start:
            taken = batch.take(rows[start:stop] - first)
            if taken["id"].to_pylist() != chosen["id"][start:stop].to_pylist():
                raise InputError(
                    f"{part.path}: rows {first} to {first + len(batch) - 1} have other ids than "
                    "the scores; score these shards again"
                )
            writer.write(taken)
        first += len(batch)
