"""From labels as they are written to numbers: what kind of task it is, and which classes it has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frugalfm.errors import InputError
from frugalfm.tasks.brackets import CLOSING, OPENING, UNPAIRED
from frugalfm.tasks.kinds import IGNORED, MAPS, NUMBERS, Kind
from frugalfm.tasks.splits import Split

__all__ = ["Kind", "code_labels", "infer_kind"]

SEPARATOR = ";"
"""Between the labels of a sequence that has several; never inferred, only asked for."""
MASKED = "?"
"""In labels of residues: one that a mask leaves out."""
MOST_CLASSES = 50
"""Whole numbers with more distinct values than this are taken as quantities."""

_BRACKETS = "([{<>}])"
_UNKNOWN = 255


def infer_kind(train: Split) -> tuple[Kind, str]:
    """Tell classification from regression by the training labels.

    Returns
    -------
    kind
        ``"regression"`` for fractional numbers, and for whole numbers with more than
        :data:`MOST_CLASSES` distinct values.
    reason
        Why, in words.

    Raises
    ------
    InputError
        Most labels are numbers, but not all.
    """
    numbers = _as_numbers(train.texts)
    odd = np.isnan(numbers)
    if odd.all():
        return "classification", "labels are names"
    if odd.any():
        if odd.mean() < 0.5:
            first = int(odd.argmax())
            raise InputError(
                f"{train.where(first)}: label {train.texts[first].as_py()!r} is no number though "
                "most are; correct it, or say --kind classification if labels are names"
            )
        return "classification", "labels are names"
    distinct = np.unique(numbers)
    if (distinct != np.round(distinct)).any():
        return "regression", "labels are fractional numbers"
    if len(distinct) > MOST_CLASSES:
        return "regression", f"labels are {len(distinct)} distinct whole numbers"
    return "classification", f"labels are {len(distinct)} distinct whole numbers"


def code_labels(splits: list[Split], kind: Kind) -> tuple[list[Split], tuple[str, ...]]:
    """Fill in the targets of all splits; the first is the one that is trained on.

    In dot-bracket notation (some training label holds a bracket) every opening bracket and
    upper-case letter is ``(``, every closing bracket and lower-case letter ``)``, and each of
    ``. , : _ - ~`` is ``.``, so that pseudoknots count as pairs. Otherwise each character of a
    residue's label is its own class. Residues that a mask leaves out are :data:`IGNORED
    <frugalfm.tasks.kinds.IGNORED>`; their labels are not looked at.

    Returns
    -------
    splits
        With targets; texts rewritten in the classes' names.
    classes
        In the order of their numbers; none for numbers and maps.

    Raises
    ------
    InputError
        A label that is no number, not finite, or absent from training; fewer than two distinct
        training labels. Names the line.
    """
    if kind in MAPS:
        return splits, ()  # read with their targets
    if kind in NUMBERS:
        return [_code_numbers(split, first=i == 0) for i, split in enumerate(splits)], ()
    if kind == "token":
        return _code_residues(splits)
    if kind == "multilabel":
        return _code_sets(splits)
    return _code_names(splits)


def _code_numbers(split: Split, *, first: bool) -> Split:
    numbers = _as_numbers(split.texts)
    bad = ~np.isfinite(numbers)
    if bad.any():
        at = int(bad.argmax())
        raise InputError(
            f"{split.where(at)}: label {split.texts[at].as_py()!r} is no finite number; "
            "correct it, or say --kind classification if labels are names"
        )
    if first and len(np.unique(numbers)) < 2:
        raise InputError(f"{split.path}: all labels are the same, so there is nothing to learn")
    return replace(split, targets=numbers)


def _code_names(splits: list[Split]) -> tuple[list[Split], tuple[str, ...]]:
    splits = _unify_whole_numbers(splits)
    names = pc.unique(splits[0].texts).to_pylist()
    whole = not np.isnan(_as_numbers(pa.array(names))).any()
    classes = tuple(sorted(names, key=float if whole else None))
    _check_count(splits[0], len(classes))
    values = pa.array(classes)
    coded = []
    for split in splits:
        codes = pc.index_in(split.texts, values)
        if codes.null_count:
            at = int(np.asarray(codes.is_null()).argmax())
            raise InputError(
                f"{split.where(at)}: label {split.texts[at].as_py()!r} does not occur in "
                f"{splits[0].path.name}, so no probe can learn it; take its rows out or add some "
                "to training"
            )
        coded.append(replace(split, targets=np.asarray(codes).astype(np.int64)))
    return coded, classes


def _code_sets(splits: list[Split]) -> tuple[list[Split], tuple[str, ...]]:
    """Several labels a sequence: targets of 0 and 1, shape ``(n, classes)``."""

    def parse(text: str) -> set[str]:
        return {name.strip() for name in text.split(SEPARATOR)} - {""}

    sets = [list(map(parse, split.texts.to_pylist())) for split in splits]
    classes = tuple(sorted(set().union(*sets[0])))
    _check_count(splits[0], len(classes))
    coded = []
    for split, found in zip(splits, sets, strict=True):
        for at, names in enumerate(found):
            if unknown := sorted(names - set(classes)):
                raise InputError(
                    f"{split.where(at)}: label {unknown[0]!r} does not occur in "
                    f"{splits[0].path.name}, so it cannot be learnt; take it out"
                )
        flags = [[int(name in names) for name in classes] for names in found]
        texts = pa.array([SEPARATOR.join(sorted(names)) for names in found], pa.string())
        coded.append(replace(split, targets=np.array(flags, np.int64), texts=texts))
    return coded, classes


def _code_residues(splits: list[Split]) -> tuple[list[Split], tuple[str, ...]]:
    for split in splits:
        _check_lengths(split)
    known = [_read_mask(split) for split in splits]
    found = np.unique(_letters(splits[0].texts)[known[0]])
    brackets = bool(np.isin(found, list(_BRACKETS.encode())).any())
    rewrite = np.arange(256, dtype=np.uint8)
    if brackets:
        rewrite[:] = 0
        for spellings, letter in ((OPENING, "("), (CLOSING, ")"), (UNPAIRED, ".")):
            rewrite[list(spellings.encode())] = ord(letter)
    letters = np.unique(rewrite[found])
    letters = letters[letters > 0]
    _check_count(splits[0], len(letters))
    table = np.full(256, _UNKNOWN, np.uint8)
    table[letters] = np.arange(len(letters))
    coded = []
    for split, there in zip(splits, known, strict=True):
        codes = np.where(there, table[rewrite[_letters(split.texts)]], 0)
        _refuse_unknown(split, codes, splits[0], brackets=brackets)
        data = np.where(there, letters[codes], np.uint8(ord(MASKED))).tobytes()
        offsets = np.concatenate([[0], np.cumsum(split.lengths)]).astype(np.int32)
        texts = pa.StringArray.from_buffers(len(split), pa.py_buffer(offsets), pa.py_buffer(data))
        targets = np.where(there, codes.astype(np.int64), IGNORED)
        coded.append(replace(split, targets=targets, texts=texts))
    return coded, tuple(map(chr, letters.tolist()))


def _read_mask(split: Split) -> np.ndarray:
    """Which residues have a label that counts, of all sequences end to end."""
    if split.masks is None:
        return np.ones(int(split.lengths.sum()), np.bool_)
    unequal = split.lengths != np.asarray(pc.binary_length(split.masks))
    odd = np.asarray(pc.match_substring_regex(split.masks, "[^01]"))
    for bad, what in ((unequal, "is not as long as the sequence"), (odd, "holds other than 0, 1")):
        if bad.any():
            raise InputError(f"{split.where(int(bad.argmax()))}: the mask {what}; correct it")
    return np.asarray(_letters(split.masks) == ord("1"))


def _refuse_unknown(split: Split, codes: np.ndarray, train: Split, *, brackets: bool) -> None:
    unknown = np.flatnonzero(codes == _UNKNOWN)
    if not len(unknown):
        return
    at = int(np.searchsorted(np.cumsum(split.lengths), unknown[0], side="right"))
    place = int(unknown[0] - split.lengths[:at].sum())
    letter = split.texts[at].as_py()[place]
    why = f"does not occur in {train.path.name}, so no probe can learn it"
    if brackets and letter not in OPENING + CLOSING + UNPAIRED:
        why = "is no dot-bracket notation; correct it"
    raise InputError(f"{split.where(at)}: label {letter!r} of residue {place + 1} {why}")


def _check_lengths(split: Split) -> None:
    plain = np.asarray(pc.string_is_ascii(split.texts))
    if not plain.all():
        raise InputError(
            f"{split.where(int(plain.argmin()))}: labels of residues must be ASCII; correct the row"
        )
    unequal = split.lengths != np.asarray(pc.binary_length(split.texts))
    if unequal.any():
        at = int(unequal.argmax())
        raise InputError(
            f"{split.where(at)}: {split.lengths[at]} residues but "
            f"{len(split.texts[at].as_py())} labels; there must be one character a residue"
        )


def _check_count(train: Split, count: int) -> None:
    if count < 2:
        raise InputError(f"{train.path}: all labels are the same, so there is nothing to learn")


def _letters(texts: pa.Array) -> np.ndarray:
    return np.frombuffer("".join(texts.to_pylist()).encode(), np.uint8)


def _as_numbers(texts: pa.Array) -> np.ndarray:
    """Parse each text; NaN where it is no number."""

    def parse(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            return np.nan

    return np.array([parse(text) for text in texts.to_pylist()], np.float64)


def _unify_whole_numbers(splits: list[Split]) -> list[Split]:
    """Spell whole numbers alike (1 and 1.0) if there are no other labels."""
    numbers = [_as_numbers(split.texts) for split in splits]
    if not all((np.isfinite(x) & (x == np.round(x))).all() for x in numbers):
        return splits
    return [
        replace(split, texts=pa.array([str(int(value)) for value in x]))
        for split, x in zip(splits, numbers, strict=True)
    ]
