"""Embeddings of a whole input in one Parquet file, made in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frugalfm.artifacts import write_atomically
from frugalfm.probing.embed import Embedder, regroup
from frugalfm.tokens.inputs import Encoded

__all__ = ["embedding_schema", "write_embeddings"]

# Numbers held at once: 64 MB of float32.
_WINDOW = 1 << 24
_POOLED_RESIDUES = 1 << 20


def embedding_schema(width: int, *, token: bool, metadata: dict[str, str]) -> pa.Schema:
    """Columns ``id`` and ``embedding``: `width` floats, or a list of such if `token`."""
    vector = pa.list_(pa.float32(), width)
    return pa.schema(
        [pa.field("id", pa.string()), pa.field("embedding", pa.list_(vector) if token else vector)],
        metadata=metadata,
    )


def write_embeddings(
    path: Path,
    pieces: Iterable[Encoded],
    embedder: Embedder,
    metadata: dict[str, str],
    tick: Callable[[int], object] | None = None,
) -> int:
    """Embed a stream of sequences, in order; the file appears only when it is whole.

    Parameters
    ----------
    path
        The Parquet file; a file that is there is replaced.
    pieces
        As from :func:`frugalfm.tokens.inputs.stream_encoded`.
    embedder
        Makes the embeddings.
    metadata
        Stored in the schema.
    tick
        Told the residues of every finished batch.

    Returns
    -------
    int
        Number of sequences.
    """
    token = embedder.pooling == "token"
    schema = embedding_schema(embedder.width, token=token, metadata=metadata)
    window = max(1, _WINDOW // embedder.width) if token else _POOLED_RESIDUES
    count = 0
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with (
            write_atomically(path, "wb") as handle,
            pq.ParquetWriter(
                handle, schema, compression="zstd", compression_level=1, use_dictionary=["id"]
            ) as writer,
        ):
            for piece in regroup(pieces, window):
                found = embedder.embed(piece.tokens, tick, piece.ids)
                column = _as_column(found, piece, token=token)
                writer.write_table(pa.table([pa.array(piece.ids), column], schema=schema))
                count += len(piece.ids)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return count


def _as_column(embeddings: np.ndarray, piece: Encoded, *, token: bool) -> Any:
    flat = pa.array(embeddings.ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
    if not token:
        return column
    offsets = np.concatenate([[0], np.cumsum(piece.lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), column)
