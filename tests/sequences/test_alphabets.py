import pytest

from frugalfm.errors import InputError
from frugalfm.sequences.alphabets import ALPHABETS, get_alphabet


def test_unknown_alphabet():
    with pytest.raises(InputError, match="dna, rna, protein"):
        get_alphabet("xna")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("rna", b"acgtUTn.-", b"ACGUUUN--"),
        ("dna", b"acguTUn.-", b"ACGTTTN--"),
        ("protein", b"mkvjJuobzx", b"MKVXXUOBZX"),
    ],
)
def test_spelling(name, text, expected):
    assert text.translate(get_alphabet(name).table) == expected


@pytest.mark.parametrize("name", list(ALPHABETS))
def test_every_accepted_letter_becomes_one_of_the_alphabet(name):
    alphabet = get_alphabet(name)
    assert set(alphabet.accepted.translate(alphabet.table)) == set(alphabet.letters)
    assert alphabet.letters.translate(alphabet.table) == alphabet.letters


def test_reverse_complement():
    dna = get_alphabet("dna")
    # Each code is a set of bases; its complement must be the set of the bases' complements.
    codes = {"R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC"}
    codes |= {"B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT"}
    codes |= {base: base for base in "ACGT"}
    facing = dict(zip("ACGT", "TGCA", strict=True))
    for code, bases in codes.items():
        found = dna.reverse_complement(code.encode()).decode()
        assert set(codes[found]) == {facing[base] for base in bases}
    assert dna.reverse_complement(b"AACGN-") == b"-NCGTT"
    with pytest.raises(InputError):
        get_alphabet("rna").reverse_complement(b"A")
