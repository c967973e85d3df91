from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture(scope="session")
def write_scores(tmp_path_factory):
    """A function that writes scores as parts, in any order of rows, and returns the files."""
    numbers = count()

    def write(
        influence, lengths=None, ids=None, parts=1, order=None, rows=None, losses=None
    ) -> list[Path]:
        size = len(influence)
        table = pa.table(
            {
                "id": pa.array(ids or [f"s{i}" for i in range(size)], pa.string()),
                "row": pa.array(np.arange(size) if rows is None else rows, pa.int64()),
                "influence": pa.array(np.asarray(influence, np.float32), pa.float32()),
                "loss": pa.array(
                    np.linspace(1, 2, size) if losses is None else losses, pa.float32()
                ),
                "n_tokens": pa.array(np.full(size, 7), pa.int32()),
                "length": pa.array(np.full(size, 20) if lengths is None else lengths, pa.int32()),
            }
        )
        folder = tmp_path_factory.mktemp(f"scores{next(numbers)}")
        order = np.arange(size) if order is None else np.asarray(order)
        files = []
        for number, places in enumerate(np.array_split(order, parts)):
            files.append(folder / f"part-{number:05d}.parquet")
            pq.write_table(table.take(pa.array(places)), files[-1])
        return files

    return write


@pytest.fixture(scope="session")
def write_clusters(tmp_path_factory):
    """A function that writes clusters and complexities as parts, and returns the files."""
    numbers = count()

    def write(cluster, complexity=None, parts=1) -> list[Path]:
        size = len(cluster)
        table = pa.table(
            {
                "row": np.arange(size),
                "cluster": np.asarray(cluster, np.int64),
                "complexity": np.asarray(
                    np.ones(size) if complexity is None else complexity, np.float32
                ),
            }
        )
        folder = tmp_path_factory.mktemp(f"clusters{next(numbers)}")
        files = []
        for number, places in enumerate(np.array_split(np.arange(size), parts)):
            files.append(folder / f"part-{number:05d}.parquet")
            pq.write_table(table.take(pa.array(places)), files[-1])
        return files

    return write
