"""Dot-bracket notation against an independent parser; decoding against the greedy loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalfm.tasks.brackets import decode_pairs, parse_structure, write_structure


def parse_by_scanning(text):
    """For each opening bracket, the first place to its right where its own kind balances."""
    pairs = []
    for opening, closing in ("()", "[]", "{}", "<>", "Aa", "Bb"):
        for i, letter in enumerate(text):
            if letter == opening:
                depth = 0
                for j in range(i, len(text)):
                    depth += (text[j] == opening) - (text[j] == closing)
                    if depth == 0:
                        pairs.append([i, j])
                        break
    return sorted(pairs)


@st.composite
def matchings(draw):
    """Random pairs without a common residue, crossing as they like."""
    length = draw(st.integers(1, 30))
    order = draw(st.permutations(range(length)))
    count = draw(st.integers(0, min(length // 2, 12)))
    pairs = sorted(sorted(order[2 * k : 2 * k + 2]) for k in range(count))
    return np.array(pairs, np.int64).reshape(-1, 2), length


@given(matchings())
def test_writing_and_reading_gives_the_pairs(case):
    pairs, length = case
    text = write_structure(pairs, length)
    assert len(text) == length
    assert parse_structure(text, length).tolist() == pairs.tolist()
    if set(text) <= set(".()[]{}<>AaBb"):
        assert parse_by_scanning(text) == pairs.tolist()


def test_pseudoknots_and_other_spellings():
    assert parse_structure("((..[[,,))..]]", 14).tolist() == [[0, 9], [1, 8], [4, 13], [5, 12]]
    assert parse_structure("A(:a_)", 6).tolist() == [[0, 3], [1, 5]]
    nested = np.array([[0, 9], [1, 8], [4, 13], [5, 12]])
    assert write_structure(nested, 14) == "((..[[..))..]]"
    assert write_structure(np.empty((0, 2), int), 3) == "..."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(.", "3 residues but 2"),
        ("(..", r"'\(' of residue 1 is never closed"),
        (".).", r"'\)' of residue 2 closes nothing"),
        ("(.]", r"'\]' of residue 3 closes nothing"),
        ("(1)", "'1' of residue 2 is no dot-bracket"),
        (".[(", r"'\[' of residue 2 is never closed"),
    ],
)
def test_bad_structures(text, message):
    with pytest.raises(ValueError, match=message):
        parse_structure(text, 3)


def decode_by_loop(probabilities, threshold):
    length = len(probabilities)
    found = sorted(
        (-probabilities[i, j], i, j)
        for i in range(length)
        for j in range(i + 4, length)
        if probabilities[i, j] >= threshold
    )
    used, pairs = set(), []
    for _, i, j in found:
        if not {i, j} & used:
            used |= {i, j}
            pairs.append([i, j])
    return pairs


@pytest.mark.parametrize("length", [1, 4, 5, 17, 40])
def test_decoding_equals_the_greedy_loop(length):
    random = np.random.default_rng(length)
    upper = np.triu(random.random((length, length)), 1)
    probabilities = upper + upper.T
    for threshold in (0.0, 0.3, 0.9, 1.1):
        pairs, chosen = decode_pairs(probabilities, threshold)
        assert pairs.tolist() == decode_by_loop(probabilities, threshold)
        assert chosen.tolist() == [probabilities[i, j] for i, j in pairs]
    # A higher threshold is a prefix.
    pairs, chosen = decode_pairs(probabilities, 0.0)
    assert pairs[chosen >= 0.6].tolist() == decode_pairs(probabilities, 0.6)[0].tolist()


def test_decoding_ties_ends_with_one_partner_each():
    pairs, _ = decode_pairs(np.full((12, 12), 0.7))
    assert len(np.unique(pairs)) == pairs.size
    assert (pairs[:, 1] - pairs[:, 0] > 3).all()
    assert len(pairs) >= 4
