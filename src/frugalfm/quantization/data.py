"""Calibration and evaluation batches: disjoint, masked, the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from frugalfm.errors import InputError
from frugalfm.tokens.batches import SPECIALS, plan_by_length
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.masking import IGNORED
from frugalfm.tokens.store import TokenList
from frugalfm.training.data import Batch, make_batch

__all__ = ["Split", "split_batches"]


@dataclass(frozen=True)
class Split:
    """Batches to calibrate with and others to evaluate on.

    Attributes
    ----------
    calibration, evaluation
        Batches that share no record.
    calibration_rows, evaluation_rows
        Which of the sequences they hold.
    """

    calibration: list[Batch]
    evaluation: list[Batch]
    calibration_rows: np.ndarray
    evaluation_rows: np.ndarray


def split_batches(
    sequences: Sequence[np.ndarray],
    codec: Codec,
    *,
    calibration_batches: int = 16,
    limit: int = 1024,
    batch_tokens: int = 8192,
    seed: int = 0,
) -> Split:
    """Shuffle sequences; cut calibration batches from one half, evaluation from the other.

    All batches are masked as in training (15 %: 80/10/10), because the loss is taken at masked
    positions; most tokens that calibration sees are still plain ones.

    Parameters
    ----------
    sequences
        Residue ids of each sequence (uint8).
    codec
        Of the tokenizer.
    calibration_batches
        Exactly so many, of equally many sequences each.
    limit
        Sequences to evaluate on, at most.
    batch_tokens
        Padded tokens of a batch, at most (but at least one sequence).
    seed
        Determines the split and the masks.

    Raises
    ------
    InputError
        Too few sequences, or none with a masked position.
    """
    half = len(sequences) // 2
    if half < max(1, calibration_batches):
        raise InputError(
            f"{len(sequences)} sequences are too few: {calibration_batches} calibration batches "
            f"and as many sequences to evaluate on need {2 * max(1, calibration_batches)}; give "
            "more data or fewer --calibration-batches"
        )
    order = np.random.default_rng(seed).permutation(len(sequences))
    store = TokenList(sequences)
    lengths = store.lengths
    pool, held_out = order[:half], np.sort(order[half:][:limit])
    calibration: list[np.ndarray] = []
    if calibration_batches:
        fits = batch_tokens // (int(lengths[pool].max()) + SPECIALS)
        size = min(half // calibration_batches, max(1, fits))
        calibration = [pool[i * size : (i + 1) * size] for i in range(calibration_batches)]
    plan = [held_out[rows] for rows in plan_by_length(lengths[held_out], batch_tokens)]
    evaluation = [make_batch(store, rows, codec, seed=seed, epoch=0) for rows in plan]
    evaluation = [batch for batch in evaluation if bool((batch.labels != IGNORED).any())]
    if not evaluation:
        raise InputError("no position is masked in the sequences to evaluate on; give more data")
    return Split(
        [make_batch(store, rows, codec, seed=seed, epoch=0) for rows in calibration],
        evaluation,
        np.concatenate([np.empty(0, np.int64), *calibration]),
        held_out,
    )
