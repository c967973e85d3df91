"""Sequence files to shards, in two passes over the input.

The first pass checks everything, counts, and notes ids and digests; the second writes the rows
that stay. Reading twice costs less than a copy of all sequences on disk would, and every error
in the input is found before anything is written.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frugalfm.errors import FrugalError, InputError, warn
from frugalfm.progress import progress
from frugalfm.sequences.alphabets import Alphabet
from frugalfm.sequences.cutting import Cutter, Policies, Rows
from frugalfm.sequences.readers import Source
from frugalfm.sequences.repeats import Changes, Repeats
from frugalfm.sequences.shards import ShardWriter, shard_schema

__all__ = ["COUNTED", "merge_fields", "write_shards"]

COUNTED = (
    *("records", "residues", "lower_case", "rewritten", "ambiguous", "gaps_kept", "gaps_removed"),
    *("blanks", "stops", "too_long", "windows", "residues_cropped"),
    *("too_short", "short_windows", "ambiguous_dropped"),
)
_SCRATCH = "scratch"
_PATIENCE = 3  # seconds before a progress bar appears


def merge_fields(sources: Sequence[Source]) -> list[pa.Field]:
    """Unite the user's columns of all `sources`; a row has null in those that its file lacks.

    Raises
    ------
    InputError
        Two files have a column of the same name and of different types.
    """
    found: dict[str, tuple[pa.Field, Source]] = {}
    for source in sources:
        for field in source.fields:
            known, other = found.setdefault(field.name, (field.with_nullable(True), source))
            if known.type != field.type:
                raise InputError(
                    f"{source.path}: column {field.name!r} is {field.type}, "
                    f"but {known.type} in {other.path}; convert or rename one of them"
                )
    return [field for field, _ in found.values()]


def write_shards(
    sources: Sequence[Source],
    work: Path,
    alphabet: Alphabet,
    policies: Policies,
    *,
    drop_duplicates: bool,
    reverse_complements: bool,
    repeated_ids: Literal["rename", "error"],
) -> dict[str, Any]:
    """Write the parts into `work`, and return the summary that goes into the manifest.

    Memory is that of a few batches, of the longest record, and of DuckDB's limit.

    Raises
    ------
    InputError
        Bad input, or input that the policies refuse, or none that is left.
    """
    if replaced := [source.path for source in sources if source.replaced]:
        more = f" (and of {len(replaced) - 1} more)" if len(replaced) > 1 else ""
        warn(
            f"{replaced[0]}: the column 'length'{more} is not kept, since shards have the number "
            "of residues under that name; rename it to keep it"
        )
    scratch = work / _SCRATCH
    _clear(work)
    scratch.mkdir()
    cutter = Cutter(alphabet, policies, merge_fields(sources))
    repeats = Repeats(
        scratch,
        duplicates=drop_duplicates,
        strands=alphabet if reverse_complements else None,
    )
    size = sum(source.path.stat().st_size for source in sources)
    with progress(total=2 * size, unit="B", unit_scale=True, desc="build", delay=_PATIENCE) as bar:
        for rows in cutter.rows(sources, bar.update):
            repeats.add(rows.table.column("id"), rows.table.column("sequence"))
        with repeats.find() as changes:
            counts = cutter.counts
            counts["duplicates"] = changes.duplicates
            counts["renamed"] = changes.renamed
            if repeated_ids == "error":
                _refuse_repeated_ids(changes, lambda: cutter.rows(sources))
            user = [f for f in merge_fields(sources) if f.name != "description" or cutter.described]
            again = Cutter(alphabet, policies, user)
            with ShardWriter(work, shard_schema(user)) as writer:
                for table in _apply(changes, again.rows(sources, bar.update)):
                    writer.write(table)
    shutil.rmtree(scratch)
    return _checked(counts, again.counts, writer.summary())


def _clear(work: Path) -> None:
    """Take away what a killed run left: building starts afresh."""
    shutil.rmtree(work / _SCRATCH, ignore_errors=True)
    for part in work.glob("part-*.parquet"):
        part.unlink()


def _apply(changes: Changes, batches: Iterator[Rows]) -> Iterator[pa.RecordBatch]:
    """Yield the rows that stay, under their final ids."""
    ahead = changes.batches()
    pending = next(ahead, None)
    for rows in batches:
        stop = rows.first + len(rows.table)
        due = []
        while pending is not None:
            count = int(np.searchsorted(pending.column("row").to_numpy(), stop))
            due.append(pending.slice(0, count))
            pending = pending.slice(count)
            if len(pending):
                break
            pending = next(ahead, None)
        changed = pa.Table.from_batches(due).combine_chunks() if any(map(len, due)) else None
        yield rows.table if changed is None else _change(rows, changed)


def _change(rows: Rows, changes: pa.Table) -> pa.RecordBatch:
    places = changes.column("row").to_numpy() - rows.first
    drop = changes.column("id").is_null().to_numpy()
    named = np.zeros(len(rows.table), np.bool_)
    named[places[~drop]] = True
    new = changes.column("id").drop_null().combine_chunks()
    ids = pc.replace_with_mask(rows.table.column("id"), pa.array(named), new)
    table = rows.table.set_column(0, "id", ids)
    if not drop.any():
        return table
    keep = np.ones(len(table), np.bool_)
    keep[places[drop]] = False
    return table.filter(pa.array(keep))


def _refuse_repeated_ids(changes: Changes, reread: Callable[[], Iterator[Rows]]) -> None:
    if changes.first_renamed is None:
        return
    again, first = changes.first_renamed
    places, name = {}, ""
    for rows in reread():
        for row in (first, again):
            if rows.first <= row < rows.first + len(rows.table):
                places[row] = rows.place(row)
                name = rows.table.column("id")[row - rows.first].as_py()
        if again in places:
            break
    raise InputError(
        f"{places[again]}: the id {name!r} is already that of {places[first]}; "
        "--repeated-ids rename makes ids unique"
    )


def _checked(counts: Counter[str], again: Counter[str], shards: dict[str, Any]) -> dict[str, Any]:
    """Return the whole summary, once its numbers have been seen to add up."""
    duplicates, renamed = counts.pop("duplicates"), counts.pop("renamed")
    if counts != again:
        raise FrugalError("an input file changed while it was read; run the same command again")
    kept = counts["records"] + counts["windows"] - duplicates
    if counts["windows"]:
        kept -= counts["too_long"]
    for reason in ("too_short", "short_windows", "ambiguous_dropped"):
        kept -= counts[reason]
    assert kept == shards["n_sequences"], (kept, shards, counts)
    if not kept:
        raise InputError(
            f"no sequence is left of {counts['records']} records: "
            f"{counts['too_short'] + counts['short_windows']} are too short (--min-length), "
            f"{counts['ambiguous_dropped']} ambiguous (--ambiguous)"
        )
    # In the order of a person's questions: what came in, what was done, what came out.
    done = {name: counts[name] for name in COUNTED} | {"duplicates": duplicates, "renamed": renamed}
    return done | shards
