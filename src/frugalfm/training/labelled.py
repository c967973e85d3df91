"""A labelled split as tuning reads it: encoded, and planned as steps of so many sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from frugalfm.errors import InputError
from frugalfm.tasks.folder import Task
from frugalfm.tasks.labels import Kind
from frugalfm.tasks.splits import Split
from frugalfm.tokens.codec import Codec

__all__ = ["TuningData", "check_encodable"]

_BUCKET = 8  # Steps whose sequences are sorted by length together: random, with little padding.


@dataclass(frozen=True)
class TuningData:
    """One split, encoded.

    Attributes
    ----------
    sequences
        Token ids of each sequence, without special tokens.
    targets
        Of each sequence: a class, a value, a row of flags, or the classes of its residues.
    kind
        Of the task.
    codec
        That encoded the sequences.
    cropped
        Sequences cut to `max_tokens`.
    """

    sequences: list[np.ndarray]
    targets: list[np.ndarray]
    kind: Kind
    codec: Codec
    cropped: int = 0

    @classmethod
    def encode(cls, split: Split, kind: Kind, codec: Codec, max_tokens: int | None) -> TuningData:
        """Encode a split; sequences (not those with labels of residues) may be cut.

        Parameters
        ----------
        split, kind
            Of a task.
        codec
            Of the model.
        max_tokens
            Longest sequence in tokens, the special ones counted; None is no limit.

        Raises
        ------
        InputError
            Labels of residues, with tokens that hold several.
        """
        if kind == "token" and not codec.per_residue:
            raise InputError(
                f"{split.path}: holds labels of residues, and the model's tokens hold several "
                "residues each; choose a model with one token a residue"
            )
        tokens, lengths = codec.encode(split.sequences)
        sequences = np.split(tokens, np.cumsum(lengths)[:-1])
        limit = max_tokens - 2 if max_tokens is not None and kind != "token" else None
        cropped = 0 if limit is None else int((lengths > limit).sum())
        sizes = split.lengths if kind == "token" else np.ones(len(split), np.int64)
        targets = np.split(split.targets, np.cumsum(sizes)[:-1])
        return cls([sequence[:limit] for sequence in sequences], targets, kind, codec, cropped)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, without special ones."""
        return np.array([len(sequence) for sequence in self.sequences], np.int64)

    def plan(self, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
        """Rows of each step of one epoch: `batch_size` sequences of like length."""
        random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
        order = random.permutation(len(self.sequences))
        steps: list[np.ndarray] = []
        for rows in np.split(order, range(batch_size * _BUCKET, len(order), batch_size * _BUCKET)):
            ordered = rows[np.argsort(-self.lengths[rows], kind="stable")]
            steps += np.split(ordered, range(batch_size, len(ordered), batch_size))
        return [steps[index] for index in random.permutation(len(steps))]


def check_encodable(task: Task, codec: Codec, max_tokens: int | None) -> None:
    """Raise now what :meth:`TuningData.encode` would raise of test after hours of training."""
    for split in task.splits.values():
        TuningData.encode(split, task.kind, codec, max_tokens)
