"""Records to predict, from any input that may be streamed: encoded, checked, in input order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frugalfm.artifacts import fingerprint
from frugalfm.errors import InputError
from frugalfm.progress import progress
from frugalfm.sequences.alphabets import get_alphabet
from frugalfm.sequences.cleaning import Cleaner
from frugalfm.sequences.readers import column_names, open_sources, stream_sequences
from frugalfm.sequences.records import Records, as_strings, layout
from frugalfm.tasks.layout import PARTNERS
from frugalfm.tokens.batches import SPECIALS
from frugalfm.tokens.codec import Codec, PieceCodec
from frugalfm.tokens.inputs import Encoded
from frugalfm.training.labelled import piece_sizes
from frugalfm.training.predicting import TaskHead

__all__ = ["Survey", "TooLong", "identify_records", "stream_records", "survey_records"]

TooLong = Literal["error", "crop"]
_NO_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Piece(Encoded):
    """Some consecutive records; `residues` as read, `cropped` sequences among them cut."""

    residues: int
    cropped: int


@dataclass(frozen=True)
class Survey:
    """What an input holds: records, residues as read, tokens as predicted, sequences cut."""

    records: int
    residues: int
    tokens: int
    cropped: int


def identify_records(path: Path, sequence_column: str | None = None) -> dict[str, str]:
    """Give all of an input that decides what is made of it, to be recorded there.

    Raises
    ------
    InputError
        No such input, an empty one, or one of unknown format.
    """
    found = {"sequences": fingerprint(path)}
    if sequence_column is not None:
        found["sequence_column"] = sequence_column
    columns = column_names(path)
    if columns and "id" not in columns:
        found["named_after"] = path.name  # its records are FILE:ROW
    return found


def survey_records(
    path: Path,
    codec: Codec,
    head: TaskHead,
    too_long: TooLong,
    sequence_column: str | None = None,
) -> Survey:
    """Read a whole input once, so that a bad record is found before long work.

    Raises
    ------
    InputError
        As :func:`stream_records`, or the input is empty.
    """
    counts = np.zeros(4, np.int64)
    with progress(desc="check", unit="residue", unit_scale=True) as bar:
        for piece in stream_records(path, codec, head, too_long, sequence_column):
            tokens = int(piece.lengths.sum())
            counts += (len(piece.ids), piece.residues, tokens, piece.cropped)
            bar.update(piece.residues)
    if not counts[0]:
        raise InputError(f"{path}: holds no sequences")
    return Survey(*counts.tolist())


def stream_records(
    path: Path,
    codec: Codec,
    head: TaskHead,
    too_long: TooLong = "error",
    sequence_column: str | None = None,
) -> Iterator[Piece]:
    """Read a file or shards piece by piece, a few megabytes each.

    Parameters
    ----------
    path
        FASTA, FASTQ, CSV, TSV, JSON lines or Parquet file, or a folder of shards. For pairs of
        sequences a table with the columns ``sequence_a`` and ``sequence_b`` (or other names of
        :data:`~frugalfm.tasks.layout.PARTNERS`), and perhaps ``id``.
    codec
        Of the model's tokenizer.
    head
        What is predicted.
    too_long
        Sequences longer than the model takes, or than it was tuned on: refused, or cut at their
        end, as tuning does.
    sequence_column
        Of tables; ``sequence`` when None.

    Yields
    ------
    Piece
        A pair of sequences is one record, with ``<eos>`` between the two.

    Raises
    ------
    InputError
        Bad input; names the file, and the line where there is one.
    """
    limit, reason = _find_limit(codec, head)
    # Longer ones are dealt with here.
    encoder = replace(codec, max_tokens=_NO_LIMIT) if isinstance(codec, PieceCodec) else codec
    pieces = piece_sizes(codec) if head.kind == "token" else None
    spelt = None if pieces is None else np.array(pieces)
    if head.of_pairs:
        batches = _stream_pairs(path, codec.alphabet, sequence_column)
    else:
        batches = _stream_single(path, codec.alphabet, sequence_column)
    for ids, columns in batches:
        sides, residues, cropped = [], 0, 0
        for column in columns:
            tokens, lengths = encoder.encode(column)
            long = lengths > limit
            if long.any() and too_long == "error":
                at = int(lengths.argmax())
                raise InputError(
                    f"{path}: {ids[at].as_py()!r} has {lengths[at]} tokens, and {reason} "
                    f"{limit}; " + _tell_remedy(limit, codec, head)
                )
            found = np.split(tokens, np.cumsum(lengths)[:-1])
            if spelt is not None:
                _check_spelling(path, ids, column, found, spelt)
            sides.append([tokens[:limit] for tokens in found])
            residues += pc.sum(pc.binary_length(column)).as_py()
            cropped += int(long.sum())
        yield Piece(ids.to_pylist(), _join(sides, codec), residues, cropped)


def _find_limit(codec: Codec, head: TaskHead) -> tuple[int, str]:
    """Longest sequence, in tokens without the special ones, and whose limit that is."""
    own = codec.max_tokens if isinstance(codec, PieceCodec) else codec.max_residues
    if head.max_tokens is not None and head.max_tokens - SPECIALS < own:
        return head.max_tokens - SPECIALS, "the model was tuned on at most"
    return own, "the model takes at most"


def _tell_remedy(limit: int, codec: Codec, head: TaskHead) -> str:
    # Windows are counted in residues, so byte pairs do not tell how long they may be.
    windows = f"`frugalfm build --max-length {limit}` makes windows" if codec.per_residue else ""
    if head.by_residue:
        own = "each of which gets labels of its own"
        return f"{windows}, {own}" if windows else f"give shorter parts, {own}"
    crop = "--too-long crop cuts at the end, as tuning did"
    return f"{crop}; {windows}" if windows else crop


def _stream_single(
    path: Path, alphabet: str, column: str | None
) -> Iterator[tuple[pa.Array, list[pa.Array]]]:
    """Yield ids and the column of sequences, normalised and checked."""
    for batch in stream_sequences(path, alphabet, sequence_column=column):
        if len(batch):
            yield batch.column("id"), [batch.column("sequence")]


def _stream_pairs(
    path: Path, alphabet: str, column: str | None
) -> Iterator[tuple[pa.Array, list[pa.Array]]]:
    """Yield ids and the two columns of pairs, normalised and checked."""
    first, second = _find_pair(path, column)
    cleaner = Cleaner(get_alphabet(alphabet), fixed=True)
    for source in open_sources(path, alphabet, sequence_column=first, columns=[second], fixed=True):
        for records in source.read():
            other = records.columns.column(second).cast(pa.binary()).fill_null(b"")
            partners = Records(*layout(other), records.columns, records.locate)
            found = []
            for name, side in ((first, records), (second, partners)):
                data, offsets = cleaner.clean(source.path, side)
                empty = np.diff(offsets) == 0
                if empty.any():
                    where = records.locate(int(empty.argmax()), None)
                    raise InputError(f"{path}, {where}: {name} is empty; take the row out")
                found.append(as_strings(data, offsets))
            if len(records):
                yield records.columns.column("id"), found


def _find_pair(path: Path, column: str | None) -> tuple[str, str]:
    """Names of the two columns of sequences; FASTA files and shards have none."""
    if column is not None:
        raise InputError("--sequence-column is for models of single sequences; leave it out")
    header = column_names(path)
    for pair in PARTNERS:
        if set(pair) <= set(header):
            return pair
    there = f". There are: {', '.join(header)}" if header else ""
    raise InputError(
        f"{path}: the model predicts pairs of sequences; give a table with the columns "
        f"{PARTNERS[0][0]} and {PARTNERS[0][1]}, and id if there are names{there}"
    )


def _join(sides: list[list[np.ndarray]], codec: Codec) -> list[np.ndarray]:
    if len(sides) == 1:
        return sides[0]
    between = np.array([codec.eos_id], codec.dtype)
    return [np.concatenate([a, between, b]) for a, b in zip(*sides, strict=True)]


def _check_spelling(
    path: Path, ids: pa.Array, column: pa.Array, found: list[np.ndarray], pieces: np.ndarray
) -> None:
    for name, text, tokens in zip(ids, column, found, strict=True):
        length, spelt = len(text.as_py()), int(pieces[tokens].sum())
        if spelt != length:
            raise InputError(
                f"{path}: {name.as_py()!r} has {length} residues, and the model's tokens spell "
                f"{spelt}; choose a model with one token a residue"
            )
