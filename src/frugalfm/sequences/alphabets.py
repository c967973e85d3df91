"""The three alphabets: which letters belong to each, and how ordinary files spell them.

RNA and DNA keep the eleven IUPAC ambiguity codes (Cornish-Bowden 1985). Proteins keep the twenty
amino acids, selenocysteine and pyrrolysine (U, O), and the ambiguity codes B, Z and X; the rarer
J (leucine or isoleucine) has no place in the vocabularies of protein models and becomes X.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from frugalfm.errors import InputError

__all__ = ["ALPHABETS", "Alphabet", "get_alphabet"]

_IUPAC = b"RYKMSWBDHVN"
_LOWER = b"abcdefghijklmnopqrstuvwxyz"
GAPS = b"-."


@dataclass(frozen=True)
class Alphabet:
    """The letters of one kind of sequence; all in upper case.

    Attributes
    ----------
    name
        ``"dna"``, ``"rna"`` or ``"protein"``.
    canonical
        Letters that stand for one residue and are kept as they are.
    ambiguous
        Letters that stand for several residues and are kept as they are.
    rewritten
        Letters that ordinary files use for another one: ``{b"T": b"U"}`` in RNA.
    stop
        A last character that is no residue, and is stripped: ``*`` in proteins.
    complements
        Pairs of letters that face each other in the two strands; only DNA has them here.
    """

    name: str
    canonical: bytes
    ambiguous: bytes
    rewritten: tuple[tuple[bytes, bytes], ...] = ()
    stop: bytes = b""
    complements: tuple[bytes, bytes] | None = None

    @property
    def letters(self) -> bytes:
        """Every letter that a normalised sequence may hold, gaps aside."""
        return self.canonical + self.ambiguous

    @cached_property
    def accepted(self) -> bytes:
        """Every letter that a file may hold, in either case."""
        upper = self.letters + b"".join(old for old, _ in self.rewritten)
        return upper + upper.lower()

    @cached_property
    def table(self) -> bytes:
        """For ``bytes.translate``: upper case, rewritten letters replaced, ``.`` as ``-``."""
        table = bytearray(bytes.maketrans(_LOWER + b".", _LOWER.upper() + b"-"))
        for old, new in self.rewritten:
            table[old[0]] = table[old.lower()[0]] = new[0]
        return bytes(table)

    def reverse_complement(self, data: bytes) -> bytes:
        """Return the opposite strand of `data`, read in its own direction."""
        if self.complements is None:
            raise InputError(f"{self.name} has no reverse complements; leave the option out")
        return data[::-1].translate(bytes.maketrans(*self.complements))


ALPHABETS = {
    "dna": Alphabet(
        "dna",
        b"ACGT",
        _IUPAC,
        rewritten=((b"U", b"T"),),
        complements=(b"ACGTRYKMBVDH", b"TGCAYRMKVBHD"),
    ),
    "rna": Alphabet("rna", b"ACGU", _IUPAC, rewritten=((b"T", b"U"),)),
    "protein": Alphabet(
        "protein",
        b"ACDEFGHIKLMNPQRSTVWYUO",
        b"BZX",
        rewritten=((b"J", b"X"),),
        stop=b"*",
    ),
}


def get_alphabet(name: str) -> Alphabet:
    """Return the alphabet called `name`.

    Raises
    ------
    InputError
        There is no such alphabet.
    """
    if name not in ALPHABETS:
        raise InputError(f"alphabet {name!r} is not known; use one of {', '.join(ALPHABETS)}")
    return ALPHABETS[name]
