"""FASTA and FASTQ in batches.

FASTA is cut up a chunk at a time rather than a line at a time: the chunk's newlines and headers
are found with numpy and its pieces are gathered by Arrow, several times faster than a loop over
records, and the place of every record stays known. FASTQ is read with dnaio.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from dnaio.exceptions import FileFormatError
from dnaio.readers import FastqReader
from xopen import xopen

from frugalfm.errors import InputError
from frugalfm.sequences.records import Counts, Letters, Offsets, Records, layout

__all__ = ["read_fasta", "read_fastq"]

CHUNK = 1 << 20  # bytes at a time: small enough for the processor's cache
_MOST = (1 << 31) - 1  # bytes that 32-bit offsets reach
_NEWLINE, _MARK, _SPACE, _TAB = b"\n> \t"
# Each record is cut into six pieces: id, a space, description, \n, sequence, and \n> of the next.
_ID, _DESCRIPTION, _SEQUENCE, _PIECES = 0, 2, 4, 6


def read_fasta(path: Path, stream: IO[bytes]) -> Iterator[Records]:
    """Read FASTA records, with the text after the id as the column ``description``.

    Blank lines and Windows or old Macintosh line ends are accepted. A record is held in memory
    whole, so the longest one decides how much memory is needed.
    """
    line = 1
    for chunk in _whole_records(path, stream):
        text = _plain_lines(chunk)
        if line == 1:
            rest = text.removeprefix(b"\xef\xbb\xbf").lstrip()
            line += text.count(b"\n", 0, len(text) - len(rest))
            text = rest
        if text:
            records, lines = _cut(path, text, line)
            yield records
            line += lines


def _whole_records(path: Path, stream: IO[bytes]) -> Iterator[bytes]:
    """Chunks of the file that begin and end where records do."""
    pieces: list[bytes] = []
    while chunk := stream.read(CHUNK):
        cut = chunk.rfind(b"\n>") + 1
        if cut:
            yield b"".join([*pieces, memoryview(chunk)[:cut]])
            pieces = [chunk[cut:]]
        else:
            pieces.append(chunk)
        if len(pieces) * CHUNK > _MOST:
            raise InputError(f"{path}: a record is larger than 2 GiB; split it before building")
    if pieces:
        yield b"".join(pieces)


def _plain_lines(chunk: bytes) -> bytes:
    if b"\r" in chunk:
        chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return chunk if chunk.endswith(b"\n") else chunk + b"\n"


def _cut(path: Path, text: bytes, line: int) -> tuple[Records, int]:
    """Cut `text`, which begins in `line`, into records; tell how many lines it has."""
    if text[0] != _MARK:
        found = text[:30].split(b"\n")[0].decode("latin-1")
        raise InputError(
            f"{path}, line {line}: {found!r} where a FASTA header (>) should be; "
            "is it another format? The file's suffix decides which one is read"
        )
    if b"\0" in text:
        bad = line + text.count(b"\n", 0, text.index(b"\0"))
        raise InputError(f"{path}, line {bad}: holds a NUL byte; the file is damaged, copy it anew")
    letters = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(letters == _NEWLINE).astype(np.int32)
    starts = np.concatenate([np.zeros(1, np.int32), ends[:-1] + np.int32(1)])
    headers = np.flatnonzero(letters[starts] == _MARK)
    lines = np.diff(np.append(headers, len(ends)))  # of each record, its header included
    bounds = _bounds(letters, starts[headers], ends[headers])
    pieces = pa.BinaryArray.from_buffers(
        pa.binary(), len(bounds) - 1, [None, pa.py_buffer(bounds), pa.py_buffer(text)]
    )
    first = np.arange(len(headers)) * _PIECES

    def locate(record: int, position: int | None) -> str:
        at = line + int(headers[record])
        if position is None:
            return f"line {at}"
        sequence = pieces[int(first[record]) + _SEQUENCE].as_py()
        for row in sequence.split(b"\n"):
            at += 1
            if position < len(row):
                break
            position -= len(row)
        return f"line {at}, column {position + 1}"

    data, offsets = layout(pieces.take(pa.array(first + _SEQUENCE)))
    if (lines > 2).any():
        data = data.translate(None, b"\n")
        inner = np.maximum(lines - 2, 0)  # newlines within a sequence
        offsets = np.append(np.int32(0), offsets[1:] - np.cumsum(inner, dtype=np.int32))
    columns = _columns(path, pieces, first, line + headers)
    return Records(data, offsets, columns, locate), len(ends)


def _bounds(letters: Letters, starts: Offsets, ends: Offsets) -> Offsets:
    """Where the pieces of each record begin, and where the last one ends."""
    blank = (letters == _SPACE) | (letters == _TAB)
    begin = starts + np.int32(1)
    while (led := blank[begin]).any():  # some write a space between the mark and the id
        begin[led] += 1
    spaces = np.append(np.flatnonzero(blank).astype(np.int32), np.int32(len(letters)))
    after = np.minimum(spaces[np.searchsorted(spaces, begin)], ends)
    bounds = np.empty((len(starts), _PIECES), np.int32)
    bounds[:, 0] = begin
    bounds[:, 1] = after
    bounds[:, 2] = np.minimum(after + 1, ends)
    bounds[:, 3] = ends
    bounds[:, 4] = ends + 1
    bounds[:, 5] = np.maximum(np.append(starts[1:], len(letters)) - 1, ends + 1)
    return np.append(bounds.ravel(), np.int32(len(letters)))


def _columns(path: Path, pieces: pa.Array, first: Counts, lines: Counts) -> pa.RecordBatch:
    columns = {}
    for name, piece in (("id", _ID), ("description", _DESCRIPTION)):
        found = pieces.take(pa.array(first + piece))
        try:
            columns[name] = found.cast(pa.string())
        except pa.ArrowInvalid:
            bad = next(i for i, text in enumerate(found.to_pylist()) if not _is_utf8(text))
            raise InputError(
                f"{path}, line {lines[bad]}: the header is not UTF-8; "
                "convert the file, for example with: iconv -f latin1 -t utf8"
            ) from None
    none = pc.equal(pc.binary_length(columns["description"]), 0)
    columns["description"] = pc.if_else(none, None, columns["description"])
    return pa.RecordBatch.from_pydict(columns)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def read_fastq(path: Path, stream: IO[bytes]) -> Iterator[Records]:
    """Read FASTQ records of four lines each; the qualities are not kept."""
    read = 0
    names: list[str] = []
    sequences: list[str] = []
    size = 0
    try:
        for record in FastqReader(stream):
            names.append(record.name)
            sequences.append(record.sequence)
            size += len(record.sequence)
            if size > CHUNK:
                yield _gather(names, sequences, read)
                read += len(names)
                names, sequences, size = [], [], 0
    except FileFormatError as error:
        raise InputError(f"{path}, {_place(path, error)}: {error}") from None
    if names:
        yield _gather(names, sequences, read)


def _gather(names: list[str], sequences: list[str], read: int) -> Records:
    def locate(record: int, position: int | None) -> str:
        at = 4 * (read + record) + 1
        return f"line {at}" if position is None else f"line {at + 1}, column {position + 1}"

    ids, descriptions = zip(*(_split(name) for name in names), strict=True)
    columns = pa.RecordBatch.from_pydict(
        {"id": pa.array(ids, pa.string()), "description": pa.array(descriptions, pa.string())}
    )
    return Records(*layout(pa.array(sequences, pa.string())), columns, locate)


def _split(header: str) -> tuple[str, str | None]:
    words = header.split(maxsplit=1)
    return words[0] if words else "", words[1] if len(words) > 1 else None


def _place(path: Path, error: FileFormatError) -> str:
    """Tell the line of a FASTQ error; dnaio does not know it for characters that are not ASCII."""
    if error.line is not None:
        return f"line {error.line + 1}"
    with xopen(path, "rb") as stream:
        bad = next((i for i, line in enumerate(stream, start=1) if not line.isascii()), "unknown")
    return f"line {bad}"
