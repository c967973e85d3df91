"""Complexity against the formula, letter by letter."""

import math
from collections import Counter

import numpy as np
import pytest
from families import LETTERS, lay_out
from hypothesis import given
from hypothesis import strategies as st

from frugalfm.errors import InputError
from frugalfm.sequences import complexity
from frugalfm.sequences.complexity import measure_complexity


def measure(sequences, alphabet="rna"):
    return measure_complexity(*lay_out(sequences), alphabet)


def expected(sequence, alphabet):
    width, size = (12, 1) if alphabet == "protein" else (64, 3)
    letters = set(LETTERS[alphabet])
    count = max(1, math.ceil(len(sequence) / width))
    shares = []
    for number in range(count):
        spare = max(0, len(sequence) - width)
        start = number * spare // max(1, count - 1)
        window = sequence[start : start + width].replace("O", "K")
        if alphabet == "protein":
            window = window.replace("U", "C")
        words = [window[i : i + size] for i in range(len(window) - size + 1)]
        counts = Counter(word for word in words if set(word) <= letters)
        n = sum(counts.values())
        most = math.log(min(n, len(letters) ** size)) if n else 0
        entropy = -sum(c / n * math.log(c / n) for c in counts.values())
        shares.append(entropy / most if most else 0.0)
    return sum(shares) / count


@pytest.mark.parametrize("alphabet", ["rna", "dna", "protein"])
def test_the_formula(alphabet, monkeypatch):
    monkeypatch.setattr(complexity, "_ROWS", 7)
    monkeypatch.setattr(complexity, "_WINDOWS", 11)
    rng = np.random.default_rng(0)
    extra = {"rna": "NR", "dna": "NY", "protein": "XUOB"}[alphabet]
    sequences = ["", "A", "AC", "ACG", "A" * 64, "N" * 70]
    for _ in range(60):
        pool = list(rng.choice(list(LETTERS[alphabet]), rng.integers(1, 5))) + list(extra[:1])
        sequences.append("".join(rng.choice(pool, rng.integers(1, 300))))
    found = measure(sequences, alphabet)
    np.testing.assert_allclose(found, [expected(s, alphabet) for s in sequences], atol=1e-6)
    assert found.dtype == np.float32


@given(st.lists(st.text("ACGUN", max_size=150), min_size=1, max_size=8))
def test_is_a_share_and_depends_on_the_sequence_alone(sequences):
    found = measure(sequences)
    assert ((found >= 0) & (found <= 1)).all()
    np.testing.assert_array_equal(found, np.concatenate([measure([s]) for s in sequences]))


def test_repeats_are_low_and_random_sequences_high():
    rng = np.random.default_rng(1)
    random = "".join(rng.choice(list("ACGU"), 500))
    found = measure(["A" * 500, "CA" * 250, "CAG" * 160, random, "A" * 250 + random[:250]])
    assert found[0] == 0
    assert found[1] < found[2] < 0.3
    assert 0.4 < found[4] < 0.6
    assert found[3] > 0.8
    assert measure(["ACDEFGHIKLMN"], "protein")[0] == pytest.approx(1)


def test_offsets_that_do_not_fit_are_refused():
    with pytest.raises(InputError):
        measure_complexity(b"ACGU", np.array([0, 3], np.int32), "rna")
