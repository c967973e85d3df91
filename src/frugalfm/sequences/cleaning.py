"""Normalise and check the letters of a whole batch at once.

A first pass strips the letters that are already as they should be. What is left over is little in
an ordinary file, and tells all that must be counted, changed or refused.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from frugalfm.errors import InputError
from frugalfm.sequences.alphabets import ALPHABETS, GAPS, Alphabet
from frugalfm.sequences.records import Counts, Offsets, Records

__all__ = ["Ambiguous", "Cleaner", "Gaps", "occurrences"]

Gaps = Literal["error", "remove", "keep"]
Ambiguous = Literal["keep", "drop", "error"]

_BLANK = b" \t\r\n\v\f"
_NUCLEOTIDES = b"ACGTUNacgtun"
# A protein has about a quarter of these letters; a batch this long and this rich in them is none.
_ENOUGH, _TOO_RICH = 1000, 0.95


class Cleaner:
    """Apply one alphabet and the policies on letters, and count what was done.

    Parameters
    ----------
    alphabet
        Whose letters are accepted.
    gaps
        What to do with ``-`` and ``.``; when kept, both become ``-``.
    ambiguous
        ``"error"`` refuses ambiguity codes; the other two leave them in (dropping whole
        sequences is the caller's part).
    counts
        Letters that were changed or taken out, by kind; added to.
    fixed
        Whether a model decides the alphabet, so that there are no options to name as remedies.
    """

    def __init__(
        self,
        alphabet: Alphabet,
        gaps: Gaps = "error",
        ambiguous: Ambiguous = "keep",
        counts: Counter[str] | None = None,
        *,
        fixed: bool = False,
    ):
        self.alphabet = alphabet
        self._fixed = fixed
        self.counts: Counter[str] = Counter() if counts is None else counts
        self._gaps = gaps
        refused = alphabet.ambiguous * (ambiguous == "error") + GAPS * (gaps == "error")
        legal = alphabet.accepted + GAPS + _BLANK + alphabet.stop
        self._changing = np.frombuffer(alphabet.table, np.uint8) != np.arange(256)
        self._legal = _select(legal) & ~_select(refused + refused.lower())

    def clean(self, path: Path, records: Records) -> tuple[bytes, Offsets]:
        """Normalised sequences, end to end, and where each begins.

        Raises
        ------
        InputError
            A letter that the alphabet or a policy does not admit; names its line.
        """
        data, offsets = records.data, records.offsets
        self._refuse_nucleotides(path, records)
        odd = data.translate(None, self.alphabet.canonical)
        if not odd:
            return data, offsets
        found = np.bincount(np.frombuffer(odd, np.uint8), minlength=256)
        if (found[~self._legal] > 0).any():
            raise self._refusal(path, records, np.flatnonzero((found > 0) & ~self._legal))
        self._count(found)
        drop = _BLANK + (GAPS if self._gaps == "remove" else b"")
        if found[list(drop)].any():
            data, offsets = _without(data, offsets, drop)
        stop = self.alphabet.stop
        if found[list(stop)].any():
            self._check_stops(path, records, data, offsets)
            data, offsets = _without(data, offsets, stop)
        if found[self._changing].any():
            data = data.translate(self.alphabet.table)
        return data, offsets

    def _count(self, found: Counts) -> None:
        def total(letters: bytes) -> int:
            return int(found[list(letters)].sum())

        rewritten = b"".join(old for old, _ in self.alphabet.rewritten)
        ambiguous = self.alphabet.ambiguous
        self.counts.update(
            lower_case=int(found[ord("a") : ord("z") + 1].sum()),
            rewritten=total(rewritten + rewritten.lower()),
            ambiguous=total(ambiguous + ambiguous.lower()),
            blanks=total(_BLANK),
            stops=total(self.alphabet.stop),
            **{"gaps_removed" if self._gaps == "remove" else "gaps_kept": total(GAPS)},
        )

    def _refuse_nucleotides(self, path: Path, records: Records) -> None:
        data = records.data
        if self.alphabet.name != "protein" or len(data) < _ENOUGH:
            return
        if 1 - len(data.translate(None, _NUCLEOTIDES)) / len(data) > _TOO_RICH:
            raise InputError(
                f"{path}, {records.locate(0, None)}: from here on nearly every letter is one of "
                f"ACGTUN; are these nucleotides? then {self._tell_other('rna', 'dna')}"
            )

    def _tell_other(self, *others: str) -> str:
        """Say what to do with sequences of another alphabet."""
        if self._fixed:
            return f"take a model for them (this one reads {self.alphabet.name})"
        return "use " + " or ".join(f"--alphabet {name}" for name in others)

    def _refusal(self, path: Path, records: Records, kinds: Counts) -> InputError:
        places = (records.data.find(bytes([kind])) for kind in kinds.tolist())
        position = min(place for place in places if place >= 0)
        letter = records.data[position : position + 4].decode("utf-8", "replace")[0]
        what = f"is not in the {self.alphabet.name} alphabet"
        if letter.encode() in GAPS:
            remedy = "--gaps remove takes gaps out, --gaps keep keeps them"
            if self._fixed:
                remedy = "take gaps out first, as `frugalfm build --gaps remove` does"
        elif letter.upper().encode() in self.alphabet.ambiguous:
            what = "is an ambiguity code"
            remedy = "--ambiguous keep keeps such sequences, --ambiguous drop drops them"
        elif letter.encode() == b"\0":
            remedy = "the file is damaged, copy it anew"
        elif letter.encode() in ALPHABETS["protein"].accepted:
            remedy = f"is this protein? then {self._tell_other('protein')}; "
            remedy += "if not, correct the record"
        else:
            remedy = "correct the record or take it out"
        return _at(path, records, position, f"{letter!r} {what}; {remedy}")

    def _check_stops(self, path: Path, records: Records, data: bytes, offsets: Offsets) -> None:
        places = occurrences(data, self.alphabet.stop)
        inner = places[~np.isin(places + 1, offsets)]
        if not len(inner):
            return
        # Only a last * may stay, so the first of its sequence is the one to complain of.
        record = int(np.searchsorted(offsets, inner[0], side="right")) - 1
        position = records.data.index(self.alphabet.stop, int(records.offsets[record]))
        remedy = "only a last * (a stop codon) is stripped; split the sequence there or take it out"
        raise _at(path, records, position, f"'*' inside the sequence; {remedy}")


def occurrences(data: bytes, letters: bytes) -> Offsets:
    """Positions in `data` of any of `letters`, in order."""
    table = _select(letters).astype(np.uint8).tobytes()
    marks = np.frombuffer(data.translate(table), np.bool_)
    return np.flatnonzero(marks).astype(np.int32)


def _select(letters: bytes) -> np.ndarray:
    chosen = np.zeros(256, np.bool_)
    chosen[list(letters)] = True
    return chosen


def _without(data: bytes, offsets: Offsets, letters: bytes) -> tuple[bytes, Offsets]:
    gone = np.searchsorted(occurrences(data, letters), offsets)
    return data.translate(None, letters), (offsets - gone).astype(np.int32)


def _at(path: Path, records: Records, position: int, problem: str) -> InputError:
    record, place = records.find(position)
    name = records.columns.column("id")[record].as_py()
    return InputError(f"{path}, {records.locate(record, place)} (sequence {name!r}): {problem}")
