"""What a sequence's loss is: which tokens are hidden, and which are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from frugalfm.errors import InputError
from frugalfm.tokens.batches import SPECIALS
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.masking import IGNORED, hash_sequences, mask_groups, mask_randomly

__all__ = ["MaskScheme", "Masking", "Views"]

Masking = Literal["groups", "random", "none"]


@dataclass(frozen=True)
class Views:
    """One batch of sequences as the model sees it, once a pass.

    Attributes
    ----------
    tokens
        int64, shape ``(batch, width)``: the truth.
    masked
        int64, shape ``(passes, batch, width)``: what the model gets.
    targets
        bool, shape ``(passes, batch, width)``: what it is to predict.
    attention
        int64, shape ``(batch, width)``: 0 where nothing is attended.
    counts
        int64, shape ``(batch,)``: targets of each sequence, over all passes.
    """

    tokens: Tensor
    masked: Tensor
    targets: Tensor
    attention: Tensor
    counts: Tensor


@dataclass(frozen=True)
class MaskScheme:
    """How a sequence's loss is made of its tokens. Scores depend on it more than on all else.

    Attributes
    ----------
    masking
        ``groups``: a partition of the residues, hashed from sequence and position, masked group
        by group, so that each residue is predicted exactly once over all passes. ``random``: an
        independent draw a pass, as in training (15 % are targets, 80 / 10 / 10). ``none``:
        nothing is hidden, and all residues are predicted in one pass.
    groups
        Of the partition; 7 hides about the 15 % that models are trained with.
    passes
        How many of the groups, or how many random draws; None: all groups, or one draw.
    pad_to
        With ``none`` only: pad every sequence to so many tokens, attend to all of them, and
        predict all of them, pads and special tokens included. It is how the code released with
        arXiv 2512.12932 computes the loss (at 1024), and not sound: pads dominate the gradient.
    seed
        Of the random draws.

    Raises
    ------
    InputError
        Options that contradict each other.
    """

    masking: Masking = "groups"
    groups: int = 7
    passes: int | None = None
    pad_to: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.masking == "groups" and (self.passes or 1) > self.groups:
            raise InputError(f"--passes {self.passes} is more than --mask-groups {self.groups}")
        if self.masking == "none" and self.passes not in {None, 1}:
            raise InputError(f"--passes {self.passes}: without masks all passes are the same")
        if self.masking != "none" and self.pad_to is not None:
            raise InputError(
                f"--pad-to {self.pad_to} makes pads a part of the loss, which goes with "
                f"--masking none only, not with {self.masking}; leave one of them out"
            )

    @property
    def n_passes(self) -> int:
        """Forward passes of every sequence."""
        return self.passes or (self.groups if self.masking == "groups" else 1)

    def identity(self) -> dict[str, Any]:
        """All that decides the targets; what does not apply is None."""
        return {
            "masking": self.masking,
            "mask_groups": self.groups if self.masking == "groups" else None,
            "passes": self.n_passes,
            "pad_to": self.pad_to,
        }

    def check(self, longest: int, codec: Codec) -> None:
        """Refuse to pad further than the model goes, or less than the longest sequence needs.

        Where tokens are pieces of several residues, only :meth:`padded` can tell.
        """
        if self.pad_to is None or not codec.per_residue:
            return
        if self.pad_to > codec.max_residues + SPECIALS:
            raise InputError(
                f"--pad-to {self.pad_to}: the model takes {codec.max_residues + SPECIALS} tokens"
            )
        self.padded(np.array([longest]))

    def padded(self, lengths: np.ndarray) -> np.ndarray:
        """Tokens without specials that sequences of these lengths take up in a batch.

        Raises
        ------
        InputError
            A sequence is longer than what all are to be padded to.
        """
        if self.pad_to is None:
            return lengths
        room = self.pad_to - SPECIALS
        if len(lengths) and lengths.max() > room:
            raise InputError(
                f"--pad-to {self.pad_to}: a sequence has {lengths.max()} tokens and {SPECIALS} "
                f"special ones; `frugalfm build --max-length {room}` windows or crops"
            )
        return np.full_like(lengths, room)

    def view(self, codec: Codec, sequences: Sequence[np.ndarray], device: torch.device) -> Views:
        """Prepare all passes over one batch of encoded sequences."""
        sequences = list(sequences)
        ids, lengths = codec.collate(sequences)
        if self.pad_to is not None:
            self.padded(lengths)
            room = ((0, 0), (0, self.pad_to - ids.shape[1]))
            ids = np.pad(ids, room, constant_values=codec.pad_id)
        masked, targets = self._mask(codec, sequences, ids, lengths)
        attended = np.ones_like(ids) if self.pad_to is not None else ids != codec.pad_id
        tokens, hidden, wanted, attention = (
            torch.from_numpy(np.ascontiguousarray(array)).to(device)
            for array in (ids, masked, targets, attended.astype(np.int64))
        )
        return Views(tokens, hidden, wanted, attention, wanted.sum((0, 2)))

    def _mask(
        self, codec: Codec, sequences: list[np.ndarray], ids: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and targets of each pass, shape ``(passes, batch, width)``."""
        if self.masking == "none":
            positions = np.arange(ids.shape[1])[None, :]
            residue = (positions >= 1) & (positions <= lengths[:, None])
            targets = np.ones_like(residue) if self.pad_to is not None else residue
            return ids[None], targets[None]
        hashes = hash_sequences(sequences)
        if self.masking == "groups":
            group = mask_groups(ids.shape[1], lengths, hashes, self.groups)
            targets = group[None] == np.arange(self.n_passes)[:, None, None]
            return np.where(targets, codec.mask_id, ids[None]), targets
        draws = [
            mask_randomly(ids, lengths, hashes, codec, seed=self.seed, epoch=number)
            for number in range(self.n_passes)
        ]
        masked, labels = (np.stack(arrays) for arrays in zip(*draws, strict=True))
        return masked, labels != IGNORED
