"""A task folder: three labelled files, checked completely before any model runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frugalfm.errors import InputError
from frugalfm.sequences.alphabets import ALPHABETS
from frugalfm.sequences.records import as_strings, layout
from frugalfm.tasks.flip import find_flip, read_flip
from frugalfm.tasks.kinds import MAPS, PAIRS, Kind
from frugalfm.tasks.labels import code_labels, infer_kind
from frugalfm.tasks.layout import choose_layout
from frugalfm.tasks.reading import Reading, hold_out
from frugalfm.tasks.splits import SUFFIXES, Split, read_header, read_split

__all__ = ["Leaks", "Task", "TooLong", "find_splits", "read_task"]

Leaks = Literal["report", "drop", "error"]
TooLong = Literal["crop", "error"]
_SPLITS = {"train": ("train",), "dev": ("dev", "validation", "valid", "val"), "test": ("test",)}
_LEAKS = (("dev", "train"), ("test", "train"), ("test", "dev"))
_OPPOSITE = "_reverse_complements"
_DEFAULT = Reading()


@dataclass(frozen=True)
class Task:
    """A checked task.

    Attributes
    ----------
    folder
        Where it was read from.
    kind, reason
        What is predicted, and why that was inferred.
    classes
        Names of the classes in the order of their numbers; none for regression.
    train, dev, test
        The labelled sequences.
    repeats
        Sequences (or pairs of them, in either order) that occur again, as the model gets them
        (cropped), counted before any were dropped: ``duplicates_in_train`` (rows beyond the
        first), ``dev_in_train``, ``test_in_train``, ``test_in_dev`` and so on. For pairs also how
        many sequences of dev and test occur in training, whatever their partner:
        ``dev_sequences_seen`` and ``test_sequences_seen``. For single sequences of DNA also the
        rows whose whole reverse complement occurs, but not they themselves:
        ``test_reverse_complements_in_train`` and so on; whether that is a leak depends on the
        task, so that these are only counted.
    dropped, cropped
        Rows dropped as leaks, and sequences cut to what the model takes, by split.
    held_out
        Splits that were cut out of the training rows.
    """

    folder: Path
    kind: Kind
    reason: str
    classes: tuple[str, ...]
    train: Split
    dev: Split
    test: Split
    repeats: dict[str, int]
    dropped: dict[str, int]
    cropped: dict[str, int]
    held_out: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, Split]:
        """All splits by name."""
        return {"train": self.train, "dev": self.dev, "test": self.test}


def find_splits(folder: Path, reading: Reading = _DEFAULT) -> dict[str, Path]:
    """Paths of ``train``, ``dev`` and ``test``, each with one of :data:`SUFFIXES`.

    Dev may also be called ``validation``, ``valid`` or ``val``. Splits that `reading` holds out
    are not among them; all may be held out of one table, which then stands for the folder. A task
    in FLIP's form (a folder, or the file of labels in it) has ``labels`` and perhaps ``sequences``
    and ``mask`` instead.

    Raises
    ------
    InputError
        No such folder, or one of the three is missing, there twice, or both there and held out.
    """
    folder = Path(folder)
    if folder.exists() and (files := find_flip(folder)) is not None:
        if reading.identity():
            options = ", ".join(f"--{name.replace('_', '-')}" for name in reading.identity())
            raise InputError(f"{folder}: is in FLIP's form, which tells all; leave out {options}")
        return files
    if folder.is_file() and folder.name.endswith(SUFFIXES):
        return {"train": _check_shares(folder, reading)}
    _check_folder(folder)
    paths = {}
    for split, names in _SPLITS.items():
        found = [folder / (name + suffix) for name in names for suffix in SUFFIXES]
        found = [path for path in found if path.is_file()]
        share = reading.shares.get(split)
        if share is not None and found:
            raise InputError(
                f"{folder}: holds {found[0].name}, so nothing is to be held out; leave "
                f"--{split}-share out"
            )
        if share is not None:
            continue
        if len(found) != 1:
            raise InputError(f"{folder}: holds {_tell_what(split, found)}")
        paths[split] = found[0]
    return paths


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        # Whatever there is called so is of none of the known suffixes.
        what = "is no table or folder" if folder.exists() else "no such folder"
        raise InputError(
            f"{folder}: {what}; a task is a folder with train, dev and test, or one table "
            f"({', '.join(SUFFIXES)})"
        )
    if any((folder / name).exists() for name in ("dataset_dict.json", "dataset_info.json")):
        raise InputError(
            f"{folder}: Hugging Face dataset folders are not read yet; "
            "save each split with to_csv() as train.csv, dev.csv and test.csv"
        )


def _check_shares(table: Path, reading: Reading) -> Path:
    missing = [f"--{name}-share" for name, share in reading.shares.items() if share is None]
    if missing:
        raise InputError(
            f"{table}: is one table; tune's and evaluate's {' and '.join(missing)} (such as 0.1) "
            "hold rows out of it, or give a folder with train, dev and test"
        )
    return table


def _tell_what(split: str, found: list[Path]) -> str:
    """Say what a folder holds instead of one file of a split, and the remedy."""
    *others, last = _SPLITS[split]
    named = f"called {', '.join(others)} or {last}, " if others else ""
    one = f"a task has one {split} file, {named}with one of the suffixes {', '.join(SUFFIXES)}"
    if found:
        return f"both {found[0].name} and {found[1].name}; {one}"
    share = f"; tune and evaluate --{split}-share 0.1 hold a tenth of train out"
    return f"no {split} file; {one}" + (share if split != "train" else "")


def read_task(
    folder: Path,
    alphabet: str,
    *,
    kind: Kind | Literal["auto"] = "auto",
    max_residues: int | None = None,
    too_long: TooLong = "crop",
    leaks: Leaks = "report",
    reading: Reading = _DEFAULT,
) -> Task:
    """Read and check a task.

    Parameters
    ----------
    folder
        Holds ``train``, ``dev`` and ``test`` as CSV, TSV, JSON lines or Parquet, with the columns
        ``sequence`` and ``label``; ``sequence`` and ``structure`` (a character a residue, or
        dot-bracket notation; with it perhaps ``mask``); ``sequence`` and ``coordinates`` or
        ``contacts`` (:mod:`frugalfm.tasks.maps`); or ``sequence_a``, ``sequence_b`` and
        ``label``. Other names: :mod:`frugalfm.tasks.layout`. Or FLIP's FASTA files.
    alphabet
        ``"dna"``, ``"rna"`` or ``"protein"``.
    kind
        What is predicted; inferred when ``"auto"``.
    max_residues
        Longest sequence that the model takes; None is no limit.
    too_long
        Cut longer sequences (and their residues' labels) at their end, or refuse them.
    leaks
        What to do about development rows whose sequence is also in training and test rows whose
        sequence is also in training or development: count, drop, or refuse them.
    reading
        Names of columns, and splits to hold out of the training rows.

    Raises
    ------
    InputError
        Anything that is wrong with the task; names file and line.
    """
    paths = find_splits(folder, reading)
    splits, told = _read_splits(paths, alphabet, kind, reading)
    chosen, reason = _choose_kind(splits["train"], kind, told)
    # Labels first: a label too many must not vanish by cropping.
    coded, classes = code_labels(list(splits.values()), chosen)
    token = chosen == "token"
    fitted = [_fit(split, max_residues, too_long, token=token) for split in coded]
    cropped = {name: count for name, (_, count) in zip(splits, fitted, strict=True)}
    # Then leaks: what is alike once it is cropped is the same to the model.
    seen = {name: split for name, (split, _) in zip(splits, fitted, strict=True)}
    repeats = _count_repeats(seen)
    if alphabet == "dna" and seen["train"].partners is None:
        repeats |= _count_opposites(splits)
    train, dev, test = _handle_leaks(seen, repeats, leaks)
    left = (train, dev, test)
    dropped = {name: len(seen[name]) - len(own) for name, own in zip(seen, left, strict=True)}
    held_out = tuple(name for name in splits if name not in paths and "labels" not in paths)
    return Task(
        Path(folder), chosen, reason, classes, train, dev, test, repeats, dropped, cropped, held_out
    )


def _read_splits(
    paths: dict[str, Path], alphabet: str, kind: str, reading: Reading
) -> tuple[dict[str, Split], Kind | None]:
    """Read all files; also the kind, if their columns tell it."""
    if "labels" in paths:
        splits, token = read_flip(paths, alphabet)
        return splits, "token" if token else None
    names = (reading.sequence_column, reading.label_column)
    columns, told = choose_layout(paths["train"], read_header(paths["train"]), kind, *names)
    splits = {name: read_split(path, alphabet, columns, told) for name, path in paths.items()}
    splits |= hold_out(splits["train"], reading.shares, alphabet)
    return {name: splits[name] for name in _SPLITS}, told


def _choose_kind(train: Split, kind: Kind | Literal["auto"], told: Kind | None) -> tuple[Kind, str]:
    if kind != "auto":
        fits = (kind in PAIRS) == (train.partners is not None) and (kind in MAPS) == (
            train.maps is not None
        )
        if not fits or (told == "token") != (kind == "token"):
            raise InputError(f"{train.path}: does not hold what --kind {kind} needs")
        return kind, "as asked for"
    if told == "token":
        return told, "a label a residue"
    if told is not None:
        return told, "positions that touch; --kind distance is for their distances"
    found, reason = infer_kind(train)
    if train.partners is None:
        return found, reason
    return ("affinity" if found == "regression" else "interaction"), f"pairs; {reason}"


def _count_repeats(splits: Mapping[str, Split]) -> dict[str, int]:
    counts = {
        f"duplicates_in_{name}": len(split) - len(pc.unique(split.keys))
        for name, split in splits.items()
    }
    for later, earlier in _LEAKS:
        found = _occurs(splits[later], splits[earlier])
        counts[f"{later}_in_{earlier}"] = int(found.sum())
    if splits["train"].partners is not None:
        known = pc.unique(splits["train"].members)
        for name in ("dev", "test"):
            members = pc.unique(splits[name].members)
            seen = np.asarray(pc.is_in(members, value_set=known))
            counts[f"{name}_sequences_seen"] = int(seen.sum())
    return counts


def _count_opposites(splits: Mapping[str, Split]) -> dict[str, int]:
    """Count whole sequences of DNA whose reverse complement occurs, but not they themselves."""
    opposite = {name: _opposite(splits[name].sequences) for name in ("dev", "test")}
    counts = {}
    for later, earlier in _LEAKS:
        found = np.asarray(pc.is_in(opposite[later], value_set=splits[earlier].sequences))
        found &= ~_occurs(splits[later], splits[earlier])
        counts[f"{later}{_OPPOSITE}_in_{earlier}"] = int(found.sum())
    return counts


def _opposite(sequences: pa.Array) -> pa.Array:
    """Reverse complements of sequences of DNA."""
    data, offsets = layout(sequences)
    # Of all letters end to end, read backwards: the last sequence comes first.
    found = as_strings(ALPHABETS["dna"].reverse_complement(data), offsets[-1] - offsets[::-1])
    return found.take(pa.array(np.arange(len(found))[::-1]))


def _occurs(split: Split, other: Split) -> np.ndarray:
    return np.asarray(pc.is_in(split.keys, value_set=other.keys))


def _handle_leaks(
    splits: Mapping[str, Split], repeats: Mapping[str, int], policy: Leaks
) -> tuple[Split, Split, Split]:
    found = {name: count for name, count in repeats.items() if "_in_" in name and count}
    found = {
        name: count
        for name, count in found.items()
        if not name.startswith("duplicates") and _OPPOSITE not in name
    }
    train, dev, test = (splits[name] for name in _SPLITS)
    if policy == "report" or not found:
        return train, dev, test
    if policy == "error":
        what = "sequences" if train.partners is None else "pairs of sequences"
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in found.items())
        raise InputError(
            f"{train.path.parent}: {what} leak between splits ({counts}); "
            "--leaks drop takes them out of dev and test, --leaks report only counts them"
        )
    kept_dev = dev.take(~_occurs(dev, train))
    kept_test = test.take(~_occurs(test, train) & ~_occurs(test, dev))
    for split, kept in ((dev, kept_dev), (test, kept_test)):
        if not len(kept):
            what = "sequence" if split.partners is None else "pair"
            raise InputError(f"{split.path}: every {what} is also in an earlier split")
    return train, kept_dev, kept_test


def _fit(
    split: Split, max_residues: int | None, policy: TooLong, *, token: bool
) -> tuple[Split, int]:
    lengths = split.lengths
    if split.partners is not None:
        lengths = np.maximum(lengths, np.asarray(pc.binary_length(split.partners)))
    too_long = lengths > (max_residues if max_residues is not None else lengths.max())
    if not too_long.any():
        return split, 0
    at = int(too_long.argmax())
    if policy == "error":
        raise InputError(
            f"{split.where(at)}: {lengths[at]} residues, the model takes at most {max_residues}; "
            "--too-long crop cuts such sequences at their end"
        )
    assert max_residues is not None
    return split.crop(max_residues, token=token), int(too_long.sum())
