"""Random sequences that descend from common ancestors, for tests of clusters."""

import numpy as np

LETTERS = {"rna": "ACGU", "dna": "ACGT", "protein": "ACDEFGHIKLMNPQRSTVWY"}


def draw(rng, length, alphabet="rna"):
    return "".join(rng.choice(list(LETTERS[alphabet]), length))


def mutate(rng, sequence, rate, alphabet="rna"):
    """Change this share of the letters: nine in ten by substitution, the others by a gap."""
    out = []
    for letter in sequence:
        if rng.random() >= rate:
            out.append(letter)
        elif rng.random() < 0.9:
            out.append(rng.choice([other for other in LETTERS[alphabet] if other != letter]))
        elif rng.random() < 0.5:
            out += [letter, rng.choice(list(LETTERS[alphabet]))]
    return "".join(out)


def draw_families(rng, families, members, worst, alphabet="rna"):
    """Families of one ancestor and its mutants; sequences in random order, and their families."""
    pairs = []
    for family in range(families):
        ancestor = draw(rng, int(rng.integers(80, 400)), alphabet)
        pairs.append((ancestor, family))
        pairs += [
            (mutate(rng, ancestor, rng.uniform(0, worst), alphabet), family)
            for _ in range(int(rng.integers(1, members)))
        ]
    order = rng.permutation(len(pairs))
    return [pairs[i][0] for i in order], np.array([pairs[i][1] for i in order])


def lay_out(sequences):
    data = "".join(sequences).encode()
    return data, np.cumsum([0, *map(len, sequences)]).astype(np.int32)
