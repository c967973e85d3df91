"""Calibration and evaluation batches: checked, disjoint, the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from frugalfm.errors import InputError
from frugalfm.tokens.batches import SPECIALS, plan_by_length
from frugalfm.tokens.codec import Codec, PieceCodec
from frugalfm.tokens.inputs import sample_encoded
from frugalfm.tokens.masking import IGNORED
from frugalfm.tokens.store import TokenList
from frugalfm.training.data import Batch, make_batch

__all__ = ["UNKNOWN_LIMIT", "Split", "draw_sequences", "plain_batches", "split_batches"]

UNKNOWN_LIMIT = 0.2
"""Share of unknown and ambiguous tokens above which data are taken to be of another alphabet."""

_NUCLEOTIDES = "ACGTUN"
_ENOUGH = 200  # residues of a protein that are more than a few by chance


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
    more = "more data" if len(sequences) < 2 * limit else "a larger --limit"
    if half < max(1, calibration_batches):
        raise InputError(
            f"{len(sequences)} sequences are too few: {calibration_batches} calibration batches "
            f"and as many sequences to evaluate on need {2 * max(1, calibration_batches)}; give "
            f"{more} or fewer --calibration-batches"
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
        raise InputError(f"no position is masked in the sequences to evaluate on; give {more}")
    return Split(
        [make_batch(store, rows, codec, seed=seed, epoch=0) for rows in calibration],
        evaluation,
        np.concatenate([np.empty(0, np.int64), *calibration]),
        held_out,
    )


def draw_sequences(
    path: Path, codec: Codec, limit: int, seed: int, sequence_column: str | None = None
) -> list[np.ndarray]:
    """Draw sequences from any input, and refuse those of another alphabet than the model's.

    Parameters
    ----------
    path
        A sequence file or shards.
    codec
        Of the model's tokenizer.
    limit, seed
        Sequences at most, and which.
    sequence_column
        Of a table; None is ``sequence``.

    Raises
    ------
    InputError
        The input cannot be read or is empty; more than :data:`UNKNOWN_LIMIT` of its tokens are
        unknown to the tokenizer, or ambiguous; or the model reads proteins and these are
        nucleotides alone.
    """
    drawn = sample_encoded(path, codec, limit, seed, sequence_column).tokens
    tokens = np.concatenate(drawn)
    unknown = 1 - float(np.isin(tokens, codec.residue_ids).mean()) if len(tokens) else 1.0
    if unknown > UNKNOWN_LIMIT:
        raise InputError(
            f"{path}: {unknown:.0%} of the tokens are unknown to the model's tokenizer or stand "
            f"for no one residue of {codec.alphabet}; give data that the model was made for"
        )
    if codec.alphabet == "protein" and not isinstance(codec, PieceCodec) and len(tokens) > _ENOUGH:
        known = {int(codec.table[ord(letter)]) for letter in _NUCLEOTIDES}
        if set(np.unique(tokens).tolist()) <= known:
            raise InputError(
                f"{path}: holds nothing but {_NUCLEOTIDES}, so it is DNA or RNA, and the model "
                "reads proteins; give data that the model was made for"
            )
    return drawn


def plain_batches(rectangles: Sequence[np.ndarray], codec: Codec) -> list[Batch]:
    """Make batches without masked tokens, as a model with a head reads them.

    Parameters
    ----------
    rectangles
        Padded token ids of each batch.
    codec
        That padded them.
    """
    return [
        Batch(
            torch.from_numpy(ids),
            torch.from_numpy((ids != codec.pad_id).astype(np.int64)),
            torch.full(ids.shape, IGNORED, dtype=torch.int64),
            int((ids != codec.pad_id).sum()) - SPECIALS * len(ids),
        )
        for ids in rectangles
    ]
