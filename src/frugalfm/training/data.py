"""What a training run reads: encoded rows, split once, batched by epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from frugalfm.tokens.batches import plan_by_length, plan_epoch
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.masking import IGNORED, mask_randomly
from frugalfm.tokens.store import TokenStore

__all__ = ["Batch", "TrainingData", "make_batch"]

_VALIDATION_SEED = 20_251_212  # Its own stream: validation masks are the same for every run.


@dataclass(frozen=True)
class Batch:
    """One padded batch for masked-language modelling.

    Attributes
    ----------
    input_ids, attention_mask, labels
        int64, shape ``(batch, width)``; labels are -100 but at targets.
    residues
        Residues in the batch, pads and special tokens not counted.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    residues: int

    def to(self, device: torch.device) -> Batch:
        """Move all tensors."""
        moved = (
            t.to(device, non_blocking=True)
            for t in (self.input_ids, self.attention_mask, self.labels)
        )
        return Batch(*moved, self.residues)


def make_batch(
    store: TokenStore, rows: np.ndarray, codec: Codec, *, seed: int, epoch: int, rate: float = 0.15
) -> Batch:
    """Collate and mask some rows; a pure function of its arguments."""
    ids, lengths = codec.collate([store[row] for row in rows])
    masked, labels = mask_randomly(ids, lengths, rows, codec, seed=seed, epoch=epoch, rate=rate)
    return Batch(
        torch.from_numpy(masked),
        torch.from_numpy((ids != codec.pad_id).astype(np.int64)),
        torch.from_numpy(labels),
        int(lengths.sum()),
    )


@dataclass(frozen=True)
class TrainingData:
    """Training rows of one store and validation rows of the same or another.

    Attributes
    ----------
    store, rows
        Encoded sequences and the row numbers trained on.
    held_out, held_out_rows
        The same for validation.
    codec
        Of the tokenizer that encoded both.
    """

    store: TokenStore
    rows: np.ndarray
    held_out: TokenStore
    held_out_rows: np.ndarray
    codec: Codec

    @classmethod
    def split(
        cls, store: TokenStore, codec: Codec, fraction: float, limit: int = 2000
    ) -> TrainingData:
        """Hold out a fraction of the rows at random, at least one and at most `limit`."""
        count = min(max(1, round(fraction * len(store))), limit, len(store) - 1)
        random = np.random.Generator(np.random.Philox(key=[_VALIDATION_SEED, len(store)]))
        order = random.permutation(len(store))
        return cls(store, np.sort(order[count:]), store, np.sort(order[:count]), codec)

    def plan(self, batch_tokens: int, *, seed: int, epoch: int) -> list[np.ndarray]:
        """Rows of each training batch of one epoch."""
        lengths = self.store.lengths[self.rows]
        plan = plan_epoch(lengths, batch_tokens, seed=seed, epoch=epoch)
        return [self.rows[batch] for batch in plan]

    def validation_batches(self, batch_tokens: int) -> Iterator[Batch]:
        """All held-out rows, masked the same way at every call."""
        lengths = self.held_out.lengths[self.held_out_rows]
        for batch in plan_by_length(lengths, batch_tokens):
            rows = self.held_out_rows[batch]
            made = make_batch(self.held_out, rows, self.codec, seed=_VALIDATION_SEED, epoch=0)
            if (made.labels != IGNORED).any():
                yield made
