"""DuckDB for the few things that need an external sort or join."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb

__all__ = ["limited", "literal", "read_parquet"]


@contextlib.contextmanager
def limited(memory: int, scratch: Path) -> Iterator[Any]:
    """Open DuckDB with so many bytes of memory; beyond them it writes to `scratch`."""
    with duckdb.connect() as connection:
        connection.execute(f"SET memory_limit = '{max(memory // 1_000_000, 64)}MB'")
        connection.execute(f"SET temp_directory = {literal(str(scratch))}")
        # Each thread has its own buffers; few threads leave more for the sort.
        connection.execute(f"SET threads = {max(1, min(4, memory // 200_000_000))}")
        yield connection


def literal(value: str) -> str:
    """Return an SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def read_parquet(files: Sequence[Path]) -> str:
    """Return SQL that reads files, whose names may look like patterns."""
    patterns = (literal(re.sub(r"([*?[])", r"[\1]", str(file))) for file in files)
    return f"read_parquet([{', '.join(patterns)}])"
