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
