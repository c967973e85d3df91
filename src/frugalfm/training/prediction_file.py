"""Predictions on disk: parts that outlive a kill, joined to one file that appears when whole.

The parts are those of windows of the input, so that a run which was killed continues with the
first window that has none, and ends with the very file.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from frugalfm.artifacts import Stage, fingerprint, open_stage, write_atomically, write_json
from frugalfm.errors import InputError
from frugalfm.training.prediction_table import PredictionTable, Tally

__all__ = ["check_name", "clear_leftovers", "is_made", "make_file", "open_parts"]

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_GROUP_ROWS = 1 << 16  # of a row group, which a reader and the writer hold at once ...
_GROUP_BYTES = 1 << 24  # ... unless rows are large


def check_name(out: Path) -> None:
    """Refuse a file name that does not say how to write.

    Raises
    ------
    InputError
        It ends otherwise, or is a folder.
    """
    if out.is_dir():
        raise InputError(f"{out}: is a folder; --out names the file to write")
    if out.suffix not in {".parquet", *_DELIMITERS}:
        raise InputError(f"{out}: has no known ending; name it .parquet, .csv or .tsv")


def is_made(out: Path, settings: Mapping[str, str], *, overwrite: bool) -> bool:
    """Whether the very file is there already.

    Raises
    ------
    InputError
        Another one is, and is not to be replaced.
    """
    if not out.exists():
        return False
    if _read_settings(out) == settings:
        return True
    if not overwrite:
        raise InputError(
            f"{out}: already exists and was not made by this call; "
            "choose another --out, or replace it with --overwrite"
        )
    return False


def open_parts(out: Path, settings: Mapping[str, str]) -> Stage:
    """Begin or resume the parts of a file, in a hidden folder beside it, and lock it.

    Raises
    ------
    InputError
        Another process makes the same file.
    """
    return open_stage(_parts_folder(out), "predictions", settings, {})


def make_file(
    stage: Stage,
    out: Path,
    table: PredictionTable,
    settings: Mapping[str, str],
    windows: Callable[[int], Iterable[pa.Table]],
) -> Tally:
    """Write the parts that are missing, join them, and clear them away.

    Parameters
    ----------
    stage
        From :func:`open_parts`.
    out
        The file; one that is there is replaced when the new one is whole.
    table
        Columns.
    settings
        Stored in the file: in the schema's metadata, or beside a text file in ``FILE.json``.
    windows
        Makes the tables from the given window on.

    Returns
    -------
    Tally
        Of all rows.
    """
    folder = stage.scratch
    done = sum(1 for _ in _list_parts(folder))
    for number, window in enumerate(windows(done), done):
        with write_atomically(_part(folder, number), "wb") as handle:
            pq.write_table(window, handle, compression="zstd", compression_level=1)
    tally = Tally(table)
    draft = stage.work / out.name
    with draft.open("wb") as handle:
        _join(handle, out.suffix, table.schema(dict(settings)), _list_parts(folder), tally)
        handle.flush()
        os.fsync(handle.fileno())
    if out.suffix in _DELIMITERS:
        entry = {"bytes": draft.stat().st_size, "sha256": fingerprint(draft)}
        write_json(_note(out), {"kind": "predictions", "settings": dict(settings), **entry})
    draft.replace(out)
    _clear_parts(stage)
    return tally


def clear_leftovers(out: Path) -> None:
    """Remove the parts of a call that was killed when its file was just there."""
    if _parts_folder(out).with_name(f".{_parts_folder(out).name}.partial").exists():
        with contextlib.suppress(InputError), open_parts(out, {}) as stage:
            _clear_parts(stage)


def _parts_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.parts")


def _clear_parts(stage: Stage) -> None:
    shutil.rmtree(stage.work)
    stage.out.with_name(f".{stage.out.name}.lock").unlink(missing_ok=True)


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.parquet"


def _read(part: Path) -> pa.Table:
    # Not pq.read_table, which takes a folder called x=y for a column.
    with pq.ParquetFile(part) as file:
        return file.read()


def _list_parts(folder: Path) -> Iterator[Path]:
    return itertools.takewhile(Path.is_file, (_part(folder, n) for n in itertools.count()))


def _join(
    handle: IO[bytes], suffix: str, schema: pa.Schema, parts: Iterable[Path], tally: Tally
) -> None:
    if suffix == ".parquet":
        with pq.ParquetWriter(handle, schema, compression="zstd") as writer:
            for rows in _group(map(_read, parts)):
                tally.add(rows)
                writer.write_table(rows.cast(schema), row_group_size=len(rows))
        return
    # Not pyarrow's, which quotes every text.
    text = io.TextIOWrapper(handle, encoding="utf-8", newline="")
    writer = csv.writer(text, delimiter=_DELIMITERS[suffix], lineterminator="\n")
    writer.writerow(schema.names)
    for rows in map(_read, parts):
        tally.add(rows)
        writer.writerows(zip(*(c.cast(pa.string()).to_pylist() for c in rows), strict=True))
    text.flush()
    text.detach()


def _group(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join tables until they are worth a row group."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(map(len, held)) >= _GROUP_ROWS or sum(t.nbytes for t in held) >= _GROUP_BYTES:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _note(out: Path) -> Path:
    return out.with_name(f"{out.name}.json")


def _read_settings(out: Path) -> dict[str, str] | None:
    """Read what a whole file says that it was made with; None if it does not."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if out.suffix == ".parquet":
            found = pq.read_schema(out).metadata or {}
            return {key.decode(): value.decode() for key, value in found.items()}
        note = json.loads(_note(out).read_text())
        if note["bytes"] == out.stat().st_size and note["sha256"] == fingerprint(out):
            return dict(note["settings"])
    return None
