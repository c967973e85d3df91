"""Which sequences of a pool are kin, and how varied each of them is.

Of every sequence, a cluster of homologous ones and its complexity. Memory is a gigabyte and some
100 bytes a sequence, whatever its length; letters, sketches and buckets lie on disk.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_64_intdigest

from frugalfm.artifacts import write_atomically
from frugalfm.progress import progress
from frugalfm.sequences.complexity import measure_complexity
from frugalfm.sequences.grouping import group_greedily
from frugalfm.sequences.likeness import Pool
from frugalfm.sequences.mmseqs import group_with_mmseqs
from frugalfm.sequences.records import layout
from frugalfm.sequences.shards import Shards
from frugalfm.sequences.sketches import Sketcher, choose_k

__all__ = ["IDENTITY", "Method", "number_clusters", "write_clusters"]

Method = Literal["minhash", "mmseqs"]

IDENTITY = {"dna": 0.7, "rna": 0.7, "protein": 0.4}
"""Least identity inside a cluster, where the user gives none."""

_SKETCH = 64


@dataclass(frozen=True)
class _Rows:
    """What is known of each row, in the order of rows; `digests` tell equally long ones apart."""

    lengths: np.ndarray
    digests: np.ndarray
    complexity: np.ndarray

    def longest_first(self) -> np.ndarray:
        """All rows, in an order that depends on the sequences and not on where they stand."""
        return np.lexsort((self.digests, -self.lengths.astype(np.int64)))


def write_clusters(
    shards: Shards, work: Path, scratch: Path, *, method: Method, identity: float, seed: int
) -> dict[str, Any]:
    """Cluster all sequences of some shards, and measure their complexity.

    Parameters
    ----------
    shards
        The pool.
    work
        Gets ``part-*.parquet``, one for each part of the shards, with columns ``row`` (int64, of
        the pool), ``id``, ``cluster`` (int64: 0 is the largest cluster) and ``complexity``
        (float32, as in :mod:`frugalfm.sequences.complexity`).
    scratch
        For temporary files: the letters, and 700 bytes a sequence.
    method
        ``minhash`` is :mod:`frugalfm.sequences.grouping`, ``mmseqs`` the program's linclust.
    identity
        Least identity of a member with its cluster's representative, 0 to 1.
    seed
        Of MinHash.

    Returns
    -------
    dict
        ``n_sequences, clusters, singletons, largest, covering_half`` (the fewest clusters that
        hold half of the sequences), ``complexity`` (quantiles), ``seconds``.
    """
    started = time.perf_counter()
    sketcher = Sketcher(
        shards.alphabet, choose_k(shards.alphabet, shards.n_residues), _SKETCH, seed
    )
    rows = _survey(shards, scratch, sketcher if method == "minhash" else None)
    order = rows.longest_first()
    if method == "minhash":
        representatives = group_greedily(_open(scratch, rows.lengths), order, identity, scratch)
    else:
        representatives = group_with_mmseqs(shards, scratch / "mmseqs", identity)
    clusters, sizes = number_clusters(representatives, order)
    _write_parts(shards, work, clusters, rows.complexity)
    quantiles = np.quantile(rows.complexity, [0.01, 0.1, 0.5]) if len(order) else np.zeros(3)
    half = int(np.searchsorted(np.cumsum(sizes), len(order) / 2)) + 1
    return {
        "n_sequences": len(order),
        "clusters": len(sizes),
        "singletons": int((sizes == 1).sum()),
        "largest": int(sizes.max(initial=0)),
        "covering_half": half,
        "complexity": dict(zip(("p1", "p10", "p50"), quantiles.round(4).tolist(), strict=True)),
        "seconds": round(time.perf_counter() - started, 1),
    }


def number_clusters(
    representatives: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Give clusters numbers from 0, the largest first, and tell their sizes.

    Parameters
    ----------
    representatives
        For each row, the row that represents its cluster.
    order
        All rows; of clusters of one size, that whose representative comes first is the first.

    Returns
    -------
    tuple of ndarray
        int64: number of each row's cluster, shape ``(n,)``; size of each cluster, descending.
    """
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    found, inverse, sizes = np.unique(
        ranks[representatives], return_inverse=True, return_counts=True
    )
    by_size = np.lexsort((found, -sizes))
    numbers = np.empty(len(found), np.int64)
    numbers[by_size] = np.arange(len(found))
    return numbers[inverse], sizes[by_size]


def _survey(shards: Shards, scratch: Path, sketcher: Sketcher | None) -> _Rows:
    """Read everything once; with a sketcher, leave letters and sketches in `scratch`."""
    lengths, digests, complexity = [], [], []
    with (
        (scratch / "letters").open("wb") as letters,
        (scratch / "sketches").open("wb") as sketches,
        progress(total=shards.n_sequences, desc="survey", unit="seq", unit_scale=True) as bar,
    ):
        for batch in shards.batches(["sequence"]):
            data, offsets = layout(batch.column("sequence"))
            bounds = offsets.tolist()
            lengths.append(np.diff(offsets))
            digests.append(
                np.array(
                    [xxh3_64_intdigest(data[a:b]) for a, b in pairwise(bounds)],
                    np.uint64,
                )
            )
            complexity.append(measure_complexity(data, offsets, shards.alphabet))
            if sketcher is not None:
                letters.write(data)
                sketcher.sketch(data, offsets).tofile(sketches)
            bar.update(len(batch))
    return _Rows(np.concatenate(lengths), np.concatenate(digests), np.concatenate(complexity))


def _open(scratch: Path, lengths: np.ndarray) -> Pool:
    bounds = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=bounds[1:])
    return Pool(
        np.asarray(np.memmap(scratch / "letters", np.uint8, "r")),
        bounds,
        np.asarray(np.memmap(scratch / "sketches", np.uint64, "r")).reshape(-1, _SKETCH),
    )


def _write_parts(shards: Shards, work: Path, clusters: np.ndarray, complexity: np.ndarray) -> None:
    for part in shards.parts:
        rows = slice(part.first_row, part.first_row + part.rows)
        columns = {
            "row": pa.array(np.arange(rows.start, rows.stop, dtype=np.int64)),
            "id": shards.read(part, ["id"])["id"],
            "cluster": pa.array(clusters[rows]),
            "complexity": pa.array(complexity[rows]),
        }
        with write_atomically(work / part.path.name, "wb") as handle:
            pq.write_table(pa.table(columns), handle, compression="zstd", write_page_checksum=True)
