"""Length-bucketed batches whose content is a pure function of lengths, seed and epoch."""

from __future__ import annotations

import numpy as np

__all__ = ["SPECIALS", "plan_by_length", "plan_epoch"]

SPECIALS = 2
"""``<cls>`` and ``<eos>`` around every sequence."""


def plan_by_length(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Cut all rows, longest first, into batches of at most `batch_tokens` padded tokens.

    Longest first, so that a batch too large for memory fails at once.

    Parameters
    ----------
    lengths
        Residues of each row, shape ``(n,)``.
    batch_tokens
        Rows times the longest row with its special tokens stay at or below this, except that a
        batch always holds one row.

    Returns
    -------
    list of ndarray
        int64 row numbers of each batch; every row occurs once.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    return _cut(order, lengths, batch_tokens)


def plan_epoch(
    lengths: np.ndarray, batch_tokens: int, *, seed: int, epoch: int, bucket: int = 4096
) -> list[np.ndarray]:
    """Shuffle all rows into length-bucketed batches for one epoch.

    Rows are permuted, cut into buckets, sorted by length inside each bucket, cut into batches,
    and the batches of the epoch are permuted. So batches are random, and padding is small.

    Parameters
    ----------
    lengths, batch_tokens
        As in :func:`plan_by_length`.
    seed, epoch
        Determine the order; nothing else does.
    bucket
        Rows that are sorted together.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = random.permutation(len(lengths))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), bucket):
        rows = order[start : start + bucket]
        rows = rows[np.argsort(-lengths[rows].astype(np.int64), kind="stable")]
        batches += _cut(rows, lengths, batch_tokens)
    return [batches[i] for i in random.permutation(len(batches))]


def _cut(order: np.ndarray, lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Cut rows that are sorted longest first, so that each batch's first row sets its width."""
    batches, start = [], 0
    while start < len(order):
        width = int(lengths[order[start]]) + SPECIALS
        size = max(1, batch_tokens // width)
        batches.append(order[start : start + size])
        start += size
    return batches
