"""Any input a user may point at (sequence file or shards), encoded for a model, in input order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from frugalfm.errors import InputError
from frugalfm.sequences.readers import stream_sequences
from frugalfm.tokens.codec import Codec

__all__ = ["Encoded", "sample_encoded", "stream_encoded"]


@dataclass(frozen=True)
class Encoded:
    """A few consecutive records of an input.

    Attributes
    ----------
    ids
        Names of the records.
    tokens
        Token ids of each record.
    """

    ids: list[str]
    tokens: list[np.ndarray]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each record (int32)."""
        return np.array([len(tokens) for tokens in self.tokens], dtype=np.int32)


def stream_encoded(
    path: Path, codec: Codec, sequence_column: str | None = None
) -> Iterator[Encoded]:
    """Read a file of sequences, of any format, or a folder of shards, piece by piece.

    Of a table, `sequence_column` is the one to read; ``sequence`` if None.

    Raises
    ------
    InputError
        The input cannot be read, or holds a sequence that is longer than the model takes.
    """
    for batch in stream_sequences(path, codec.alphabet, sequence_column=sequence_column):
        try:
            tokens, lengths = codec.encode(batch.column("sequence"))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        ids = batch.column("id").to_pylist()
        longest = int(lengths.argmax()) if len(lengths) else 0
        if len(lengths) and lengths[longest] > codec.max_residues:
            raise InputError(
                f"{path}: {ids[longest]!r} has {lengths[longest]} residues, the model takes at "
                f"most {codec.max_residues}; "
                f"`frugalfm build --max-length {codec.max_residues}` windows or crops"
            )
        yield Encoded(ids, np.split(tokens, np.cumsum(lengths)[:-1]))


def sample_encoded(
    path: Path, codec: Codec, limit: int, seed: int = 0, sequence_column: str | None = None
) -> Encoded:
    """Draw at most `limit` records uniformly, in input order (reservoir sampling, Vitter 1985).

    Raises
    ------
    InputError
        As :func:`stream_encoded`, or the input is empty.
    """
    random = np.random.default_rng(seed)
    kept: list[tuple[int, str, np.ndarray]] = []
    seen = 0
    for piece in stream_encoded(path, codec, sequence_column):
        for name, tokens in zip(piece.ids, piece.tokens, strict=True):
            if seen < limit:
                kept.append((seen, name, tokens.copy()))
            elif (slot := int(random.integers(seen + 1))) < limit:
                kept[slot] = (seen, name, tokens.copy())
            seen += 1
    if not kept:
        raise InputError(f"{path}: holds no sequences")
    kept.sort(key=lambda record: record[0])
    return Encoded([name for _, name, _ in kept], [tokens for _, _, tokens in kept])
