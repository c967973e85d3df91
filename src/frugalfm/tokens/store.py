"""Encoded data sets by row: in one memory-mapped file, or in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from frugalfm.artifacts import write_atomically
from frugalfm.tokens.codec import Codec

__all__ = ["TokenList", "TokenStore", "Tokens"]

_TOKENS, _OFFSETS, _DTYPE = "tokens.bin", "offsets.npy", "dtype.txt"


class Tokens(Protocol):
    """Encoded sequences by row.

    Attributes
    ----------
    lengths
        int32, shape ``(n,)``: tokens of each row.
    """

    lengths: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> np.ndarray: ...


class TokenList:
    """Encoded sequences that fit in memory."""

    def __init__(self, sequences: Sequence[np.ndarray]) -> None:
        self._sequences = sequences
        self.lengths = np.array([len(s) for s in sequences], dtype=np.int32)

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, row: int) -> np.ndarray:
        """Token ids of one sequence."""
        return self._sequences[row]


class TokenStore:
    """Encoded sequences by row, one byte a token on disk, or two if the vocabulary is large.

    Parameters
    ----------
    folder
        Where :meth:`write` has put the files.
    """

    def __init__(self, folder: Path) -> None:
        self._offsets = np.load(folder / _OFFSETS)
        stored = folder / _DTYPE
        # Without the file it was begun by an earlier version, which knew bytes only.
        dtype = np.dtype(stored.read_text() if stored.is_file() else np.uint8)
        self._tokens = np.memmap(folder / _TOKENS, dtype=dtype, mode="r")
        self.lengths = np.diff(self._offsets).astype(np.int32)

    @classmethod
    def write(cls, tables: Iterable[pa.Table], codec: Codec, folder: Path) -> TokenStore:
        """Encode the column ``sequence`` of all tables; keep what an earlier call finished."""
        if not (folder / _OFFSETS).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            lengths = [np.zeros(1, np.int64)]
            with write_atomically(folder / _TOKENS, "wb") as handle:
                for table in tables:
                    tokens, counts = codec.encode(table["sequence"])
                    handle.write(tokens.data)
                    lengths.append(counts)
            with write_atomically(folder / _DTYPE) as handle:
                handle.write(codec.dtype.name)
            with write_atomically(folder / _OFFSETS, "wb") as handle:
                np.save(handle, np.cumsum(np.concatenate(lengths), dtype=np.int64))
        return cls(folder)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:
        """Token ids of one sequence."""
        return self._tokens[self._offsets[row] : self._offsets[row + 1]]
