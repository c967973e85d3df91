"""Tasks that are trivial to learn, one of each kind, as folders."""

import numpy as np

LETTERS = np.array(list("ACGU"))


def draw(random, dominant, length):
    weights = np.full(4, 0.1)
    weights[dominant] = 0.7
    return "".join(LETTERS[random.choice(4, length, p=weights)])


def make_task(folder, kind="classification", sizes=(192, 48, 48), seed=0, classes=2):
    """Label: the sequence's most frequent letter, its share of A, or each residue's ring."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    for name, size in zip(("train", "dev", "test"), sizes, strict=True):
        header = "structure" if kind == "token" else "label"
        lines = [f"sequence,{header}"]
        for _ in range(size):
            dominant = int(random.integers(classes))
            sequence = draw(random, dominant, int(random.integers(8, 24)))
            if kind == "regression":
                label = f"{100 + 50 * sequence.count('A') / len(sequence):.3f}"
            elif kind == "multilabel":
                label = ";".join(c for c in "AG" if sequence.count(c) > len(sequence) / 3) or "none"
            elif kind == "token":
                label = sequence.translate(str.maketrans("ACGU", "RYRY"))
            else:
                label = LETTERS[dominant]
            lines.append(f"{sequence},{label}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


def make_pairs(folder, kind="interaction", sizes=(96, 24, 24), seed=0):
    """Two sequences of the same dominant letter go together; or how much they share of it."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    for name, size in zip(("train", "dev", "test"), sizes, strict=True):
        lines = ["sequence_a,sequence_b,label"]
        for _ in range(size):
            a, b = random.integers(2, size=2)
            one, two = (draw(random, int(x), int(random.integers(8, 24))) for x in (a, b))
            label = int(a == b)
            if kind == "affinity":
                label = f"{7 + one.count('A') / len(one) + two.count('A') / len(two):.3f}"
            lines.append(f"{one},{two},{label}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


def make_maps(folder, kind="contact", sizes=(40, 12, 12), seed=0):
    """Residues touch if both are A, base pairs are a hairpin's, or places are on a line."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    for name, size in zip(("train", "dev", "test"), sizes, strict=True):
        header = {"contact": "contacts", "distance": "coordinates", "base-pair": "structure"}[kind]
        lines = [f"sequence,{header}"]
        for _ in range(size):
            length = int(random.integers(14, 22))
            sequence = "".join(LETTERS[random.integers(4, size=length)])
            if kind == "base-pair":
                stem = 4
                loop = "".join(random.choice(list("AU"), length - 2 * stem))
                sequence = "G" * stem + loop + "C" * stem
                found = "(" * stem + "." * len(loop) + ")" * stem
            elif kind == "contact":
                places = [i for i, letter in enumerate(sequence) if letter == "A"]
                found = " ".join(f"{i}-{j}" for i in places for j in places if j - i >= 6)
            else:
                places = np.cumsum([3.0 if letter in "AG" else 0.4 for letter in sequence])
                rows = [f"{x:.2f} 0 0" for x in places]
                if size % 2 == 0:
                    rows[2] = "nan nan nan"  # a residue that is not resolved
                found = " ".join(rows)
            lines.append(f"{sequence},{found}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder
