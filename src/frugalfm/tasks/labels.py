"""From labels as they are written to numbers: what kind of task it is, and which classes it has."""

from __future__ import annotations

import re
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
# Not all that float() reads: 1_1 and digits of other scripts are names.
_NUMBER = re.compile(
    r"[+-]?((\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|inf(inity)?)", re.ASCII | re.IGNORECASE
)
_WHOLE = re.compile(r"(-?(?:0|[1-9]\d*))(\.0*)?", re.ASCII)
_PADDED = re.compile(r"[+-]?0\d+", re.ASCII)
_MISSING = re.compile(r"[+-]?(nan|inf(inity)?)|n/?a|none|null", re.ASCII | re.IGNORECASE)


def infer_kind(train: Split) -> tuple[Kind, str]:
    """Tell classification from regression by the training labels.

    Returns
    -------
    kind
        ``"regression"`` for fractional numbers, and for whole numbers with more than
        :data:`MOST_CLASSES` distinct values, unless some are padded with zeros (007).
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
            text = train.texts[first].as_py()
            raise InputError(
                f"{train.where(first)}: label {text!r} is no number though most are; "
                f"{_advise(text)}"
            )
        return "classification", "labels are names"
    if (numbers != np.round(numbers)).any():
        return "regression", "labels are fractional numbers"
    distinct = pc.unique(_unify_whole_numbers([train])[0].texts).to_pylist()
    if any(map(_PADDED.fullmatch, distinct)):
        return "classification", "labels are numbers padded with zeros, and so names"
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

    Names of classes are taken as they are written, whatever number they may be. Only if all are
    whole numbers are ``1`` and ``1.0``, which other programs make of it, the same class; it is
    called what training calls it.

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
    return _code_names(splits, "affinity" if kind == "interaction" else "regression")


def _code_numbers(split: Split, *, first: bool) -> Split:
    numbers = _as_numbers(split.texts)
    bad = ~np.isfinite(numbers)
    if bad.any():
        at = int(bad.argmax())
        text = split.texts[at].as_py()
        raise InputError(f"{split.where(at)}: label {text!r} is no finite number; {_advise(text)}")
    if first and len(np.unique(numbers)) < 2:
        raise InputError(f"{split.path}: all labels are the same, so there is nothing to learn")
    return replace(split, targets=numbers)


def _advise(text: str) -> str:
    """Say what to do about a label that is no number."""
    if _MISSING.fullmatch(text):
        return "take the row out"
    return "correct it, or say --kind classification if labels are names"


def _code_names(splits: list[Split], numeric: Kind) -> tuple[list[Split], tuple[str, ...]]:
    """Code names; `numeric` is the kind that would take their numbers for quantities."""
    splits = _unify_whole_numbers(splits)
    names = pc.unique(splits[0].texts).to_pylist()
    numbers = _as_numbers(pa.array(names))
    counted = not np.isnan(numbers).any()
    by_number = sorted(zip(numbers.tolist(), names, strict=True))
    classes = tuple(name for _, name in by_number) if counted else tuple(sorted(names))
    _check_count(splits[0], len(classes))
    values = pa.array(classes)
    coded = []
    for split in splits:
        codes = pc.index_in(split.texts, values)
        if codes.null_count:
            at = int(np.asarray(codes.is_null()).argmax())
            text = split.texts[at].as_py()
            other = f", or say --kind {numeric}" if counted and _NUMBER.fullmatch(text) else ""
            raise InputError(
                f"{split.where(at)}: label {text!r} {_tell_absence(split, splits[0])}{other}"
            )
        coded.append(replace(split, targets=np.asarray(codes).astype(np.int64)))
    return coded, classes


def _tell_absence(split: Split, train: Split) -> str:
    """Say why a label cannot be learnt, and what to do."""
    if split.path == train.path:
        return (
            f"occurs in {train.path.name} only among the rows that are held out of training, so no "
            "probe can learn it; add rows that have it, or give a folder with train, dev and test"
        )
    return (
        f"does not occur in {train.path.name}, so no probe can learn it; take its rows out or add "
        "some to training"
    )


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
                    f"{split.where(at)}: label {unknown[0]!r} {_tell_absence(split, splits[0])}"
                )
        flags = [[int(name in names) for name in classes] for names in found]
        texts = pa.array([SEPARATOR.join(sorted(names)) for names in found], pa.string())
        coded.append(replace(split, targets=np.array(flags, np.int64), texts=texts))
    return coded, classes


def _code_residues(splits: list[Split]) -> tuple[list[Split], tuple[str, ...]]:
    for split in splits:
        _check_lengths(split)
    known = [_read_mask(split) for split in splits]
    for split, there in zip(splits, known, strict=True):
        if not there.any():
            raise InputError(f"{split.path}: the masks leave out every residue; correct them")
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
    why = _tell_absence(split, train)
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
    return np.array(
        [float(text) if _NUMBER.fullmatch(text) else np.nan for text in texts.to_pylist()],
        np.float64,
    )


def _unify_whole_numbers(splits: list[Split]) -> list[Split]:
    """Spell whole numbers as training does (1 or 1.0), if there are no other labels.

    By their text alone, so that numbers of any size stay apart, and not where one split has a
    number with different fractions (1.0 and 1.00), which only names have.
    """
    names: dict[str, str] = {}
    for split in splits:
        fractions: dict[str, str] = {}
        for text in sorted(pc.unique(split.texts).to_pylist(), key=len):
            found = _WHOLE.fullmatch(text)
            if found is None:
                return splits
            whole, fraction = found.groups()
            if fraction is not None and fractions.setdefault(whole, fraction) != fraction:
                return splits
            names.setdefault(whole, text)
    return [
        replace(
            split,
            texts=pa.array([names[text.partition(".")[0]] for text in split.texts.to_pylist()]),
        )
        for split in splits
    ]
