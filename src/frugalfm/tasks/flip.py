"""Folders as FLIP publishes them (Dallago et al. 2021): FASTA, with the split in the header.

Labels of residues: ``sequences.fasta``, a file such as ``sampled.fasta`` with a character a residue
and ``SET=train VALIDATION=False`` in each header, and perhaps ``mask.fasta`` with 1 where a residue
is resolved. Labels of sequences: one FASTA file whose headers also say ``TARGET=...``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from frugalfm.errors import InputError
from frugalfm.sequences.readers import open_sources
from frugalfm.sequences.records import Records, layout
from frugalfm.tasks.layout import Layout
from frugalfm.tasks.splits import Split, collect_split

__all__ = ["find_flip", "read_flip"]

_SEQUENCES, _MASK = "sequences.fasta", "mask.fasta"
_LAYOUT = Layout("label", mask="mask")


def find_flip(path: Path) -> dict[str, Path] | None:
    """Find the files of a task in FLIP's form; None if it has another.

    Parameters
    ----------
    path
        The folder, if it holds one file of labels only, or that file.

    Raises
    ------
    InputError
        The folder holds several files of labels.
    """
    folder = path if path.is_dir() else path.parent
    if path.is_file():
        labels = [path] if path.suffix == ".fasta" else []
    elif any(folder.glob("train.*")):
        return None
    else:
        found = (file for file in sorted(folder.glob("*.fasta")))
        labels = [file for file in found if file.name not in {_SEQUENCES, _MASK}]
    if not labels:
        return None
    if len(labels) > 1:
        raise InputError(
            f"{folder}: holds several splits ({', '.join(file.name for file in labels)}); "
            f"name one of them, such as --task {labels[0]}"
        )
    files = {"labels": labels[0]}
    if (folder / _SEQUENCES).is_file():
        files["sequences"] = folder / _SEQUENCES
        if (folder / _MASK).is_file():
            files["mask"] = folder / _MASK
    return files


def read_flip(files: dict[str, Path], alphabet: str) -> tuple[dict[str, Split], bool]:
    """Read a task in FLIP's form.

    Parameters
    ----------
    files
        As :func:`find_flip` gives them.
    alphabet
        Of the sequences.

    Returns
    -------
    splits
        ``train``, ``dev`` (``VALIDATION=True``) and ``test``; rows are numbers of records.
    token
        Whether labels are of residues.

    Raises
    ------
    InputError
        A header says no split, a split has no records, or a record has no sequence.
    """
    token = "sequences" in files
    others = {name: _read_all(path) for name, path in files.items() if name != "labels"}
    path = files["labels"]
    rows: dict[str, list[dict[str, str]]] = {"train": [], "dev": [], "test": []}
    numbers: dict[str, list[int]] = {name: [] for name in rows}
    for number, (name, description, text) in enumerate(_records(path)):
        words = dict(word.split("=", 1) for word in description.split() if "=" in word)
        split = _choose_split(path, name, words)
        row = {"sequence": text, "label": words.get("TARGET", "")}
        if token:
            row = {"label": text, "sequence": _look_up(files["sequences"], others, name)}
        if "mask" in files:
            row["mask"] = _look_up(files["mask"], others, name, "mask")
        rows[split].append({"id": name} | row)
        numbers[split].append(number)
    splits = {}
    for split, found in rows.items():
        if not found:
            raise InputError(f"{path}: has no records of {split}; every task needs some")
        names = [row["id"] for row in found]
        batches = iter([_batch(found)])
        columns = list(found[0])
        made = collect_split(path, batches, columns, alphabet, _LAYOUT)
        splits[split] = _number(made, np.array(numbers[split]), names)
    return splits, token


def _choose_split(path: Path, name: str, words: dict[str, str]) -> str:
    chosen = words.get("SET", "").lower()
    if chosen == "train" and words.get("VALIDATION", "").lower() == "true":
        return "dev"
    if chosen in {"val", "dev", "valid", "validation"}:
        return "dev"
    if chosen not in {"train", "test"}:
        raise InputError(
            f"{path}: record {name!r} says no split; its header must hold SET=train or SET=test, "
            "and VALIDATION=True for dev"
        )
    return chosen


def _look_up(
    path: Path, others: dict[str, dict[str, str]], name: str, what: str = "sequences"
) -> str:
    found = others[what].get(name)
    if found is None:
        raise InputError(f"{path}: has no record {name!r}, which is labelled; add it")
    return found


def _read_all(path: Path) -> dict[str, str]:
    return {name: text for name, _, text in _records(path)}


def _records(path: Path) -> Iterator[tuple[str, str, str]]:
    """Name, rest of the header, and content of each record, whatever its letters are."""
    for records in open_sources(path, "protein")[0].read():
        texts = records.data.decode("latin-1")
        ends = records.offsets.tolist()
        names = records.columns.column("id").to_pylist()
        rest = records.columns.column("description").to_pylist()
        for name, words, start, end in zip(names, rest, ends[:-1], ends[1:], strict=True):
            yield name, words or "", texts[start:end]


def _batch(rows: list[dict[str, str]]) -> Records:
    columns = {name: pa.array([row[name] for row in rows], pa.string()) for name in rows[0]}
    data, offsets = layout(columns["sequence"])

    def locate(record: int, position: int | None) -> str:
        place = f"record {rows[record]['id']!r}"
        return place if position is None else f"{place}, letter {position + 1}"

    return Records(data, offsets, pa.RecordBatch.from_pydict(columns), locate)


def _number(split: Split, numbers: np.ndarray, names: list[str]) -> Split:
    by_number = dict(zip(numbers.tolist(), names, strict=True))
    return Split(
        split.path,
        numbers,
        split.sequences,
        split.texts,
        split.targets,
        lambda row: f"record {by_number[row]!r}",
        masks=split.masks,
    )
