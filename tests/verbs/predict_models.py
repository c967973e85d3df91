"""Tuned models of every kind, tiny and made once, and inputs to predict."""

import sys
from pathlib import Path

import numpy as np

from frugalfm.encoders import create_encoder, save_encoder
from frugalfm.verbs.predict import predict
from frugalfm.verbs.tune import tune

sys.path.append(str(Path(__file__).parents[1] / "training"))
from tuning_tasks import LETTERS, make_maps, make_pairs, make_task

FAST = {
    "max_steps": 4, "learning_rate": 5e-3, "device": "cpu", "validate_every": 2, "start": "random",
}  # fmt: skip
MAKERS = dict.fromkeys(("interaction", "affinity"), make_pairs) | dict.fromkeys(
    ("contact", "base-pair", "distance"), make_maps
)


class Models:
    """A checkpoint in a folder, and what is tuned of it, each when it is first asked for."""

    def __init__(self, folder):
        self.folder, self.checkpoint = folder, folder / "model"
        save_encoder(*create_encoder("rna-fm-nano", seed=1), self.checkpoint)

    def __call__(self, kind="classification", method="full", **options):
        """Model and test split."""
        out = self.folder / "-".join(["tuned", kind, method, *map(str, options.values())])
        task = self.folder / f"{kind}-task"
        if not task.exists():
            MAKERS.get(kind, make_task)(task, kind, sizes=(80, 12, 16))
        if not out.exists():
            tune(self.checkpoint, task=task, out=out, method=method, kind=kind, **FAST, **options)
        return out, task / "test.csv"


def write_fasta(path, count, longest=60, seed=0):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest, count)
    texts = ["".join(random.choice(LETTERS, length)) for length in lengths]
    path.write_text("".join(f">s{i}\n{text}\n" for i, text in enumerate(texts)))
    return path


def run(model, sequences, out, **options):
    return predict(model, sequences, out=out, device="cpu", **options)
