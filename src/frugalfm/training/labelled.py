"""A labelled split as tuning reads it: encoded, and planned as steps of so many sequences."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from frugalfm.errors import InputError
from frugalfm.tasks.folder import Task
from frugalfm.tasks.kinds import Kind, is_map
from frugalfm.tasks.maps import MapTargets
from frugalfm.tasks.splits import Split
from frugalfm.tokens.batches import SPECIALS
from frugalfm.tokens.codec import Codec, PieceCodec

__all__ = ["TuningData", "check_encodable", "piece_sizes"]

_BUCKET = 8  # Steps whose sequences are sorted by length together: random, with little padding.


@dataclass(frozen=True)
class TuningData:
    """One split, encoded.

    Attributes
    ----------
    sequences
        Token ids of each sequence, without special tokens; of a pair, of the first.
    targets
        Of each sequence: a class, a value, a row of flags, or the classes of its residues; none
        where there are maps.
    kind
        Of the task.
    codec
        That encoded the sequences.
    cropped
        Sequences cut to `max_tokens`.
    partners
        The other sequence of each pair, if rows are pairs of sequences.
    maps
        Targets of pairs of positions, if that is the kind.
    """

    sequences: list[np.ndarray]
    targets: list[np.ndarray]
    kind: Kind
    codec: Codec
    cropped: int = 0
    partners: list[np.ndarray] | None = None
    maps: MapTargets | None = None

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
            Labels of residues, with tokens that do not tell how many they hold, or of pairs of
            residues with tokens of several.
        """
        if is_map(kind) and not codec.per_residue:
            raise InputError(
                f"{split.path}: is about pairs of residues, and the model's tokens hold several "
                "residues each; choose a model with one token a residue"
            )
        by_residue = kind == "token" or is_map(kind)
        limit = max_tokens - SPECIALS if max_tokens is not None and not by_residue else None
        tokens, lengths = codec.encode(split.members)
        sequences = np.split(tokens, np.cumsum(lengths)[:-1])
        if kind == "token" and (pieces := piece_sizes(codec)) is not None:
            _check_spelling(split, sequences, np.array(pieces))
        cropped = 0 if limit is None else int((lengths > limit).sum())
        sequences = [sequence[:limit] for sequence in sequences]
        partners = None if split.partners is None else sequences[len(split) :]
        targets: list[np.ndarray] = []
        if split.maps is None:
            sizes = split.lengths if kind == "token" else np.ones(len(split), np.int64)
            targets = np.split(split.targets, np.cumsum(sizes)[:-1])
        return cls(sequences[: len(split)], targets, kind, codec, cropped, partners, split.maps)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens that each row takes of a batch, but for the special ones of one sequence."""
        lengths = np.array([len(sequence) for sequence in self.sequences], np.int64)
        if self.partners is None:
            return lengths
        others = np.array([len(sequence) for sequence in self.partners], np.int64)
        # A pair takes two rows of a batch, of the longer one's width.
        return 2 * np.maximum(lengths, others) + SPECIALS

    @property
    def sizes(self) -> np.ndarray:
        """Targets of each sequence: one, or one a residue."""
        return np.array([len(target) for target in self.targets], np.int64)

    def take(self, rows: np.ndarray) -> TuningData:
        """Keep some rows, in this order."""
        keep = np.isin(np.arange(len(self.sequences)), rows)
        assert self.maps is None or (np.diff(rows) > 0).all(), "maps are taken in order"
        return replace(
            self,
            sequences=[self.sequences[row] for row in rows],
            targets=[self.targets[row] for row in rows] if self.targets else [],
            partners=None if self.partners is None else [self.partners[row] for row in rows],
            maps=None if self.maps is None else self.maps.take(keep),
        )

    def collate(self, rows: np.ndarray) -> np.ndarray:
        """Token ids of some rows as a rectangle; of pairs, the first ones before the second."""
        chosen = [self.sequences[row] for row in rows]
        if self.partners is not None:
            chosen += [self.partners[row] for row in rows]
        return self.codec.collate(chosen)[0]

    def plan(self, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
        """Rows of each step of one epoch: `batch_size` sequences of like length."""
        random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
        lengths = self.lengths
        order = random.permutation(len(lengths))
        steps: list[np.ndarray] = []
        for rows in np.split(order, range(batch_size * _BUCKET, len(order), batch_size * _BUCKET)):
            ordered = rows[np.argsort(-lengths[rows], kind="stable")]
            steps += np.split(ordered, range(batch_size, len(ordered), batch_size))
        return [steps[index] for index in random.permutation(len(steps))]


def piece_sizes(codec: Codec) -> list[int] | None:
    """Count the residues that each token holds, by its id; None where each holds one."""
    if not isinstance(codec, PieceCodec):
        return None
    vocabulary = codec.tokenizer.get_vocab()
    sizes = [0] * (max(vocabulary.values()) + 1)
    for piece, index in vocabulary.items():
        sizes[index] = len(piece)
    for special in (codec.cls_id, codec.eos_id, codec.pad_id, codec.mask_id):
        sizes[special] = 0
    sizes[codec.unknown_id] = 1  # one a letter that no piece spells
    return sizes


def _check_spelling(split: Split, sequences: list[np.ndarray], pieces: np.ndarray) -> None:
    for index, (tokens, length) in enumerate(zip(sequences, split.lengths, strict=True)):
        if pieces[tokens].sum() != length:
            raise InputError(
                f"{split.where(index)}: has labels of {length} residues, and the model's tokens "
                f"spell {pieces[tokens].sum()}; choose a model with one token a residue"
            )


def check_encodable(task: Task, codec: Codec, max_tokens: int | None) -> None:
    """Raise now what :meth:`TuningData.encode` would raise of test after hours of training."""
    for split in task.splits.values():
        TuningData.encode(split, task.kind, codec, max_tokens)
