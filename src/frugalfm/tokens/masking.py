"""Masks for masked-language modelling, as pure functions: no state to save, none to lose.

Training masks depend on (seed, epoch, row, position) alone, scoring masks on (sequence,
position) alone, so that neither depends on how sequences are batched or sharded.
"""

from __future__ import annotations

import numpy as np
import xxhash

from frugalfm.tokens.codec import Codec

__all__ = ["IGNORED", "hash_sequences", "mask_groups", "mask_randomly"]

IGNORED = -100
"""Label of a position that is no target, as torch's cross-entropy expects."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mask_randomly(
    input_ids: np.ndarray,
    lengths: np.ndarray,
    rows: np.ndarray,
    codec: Codec,
    *,
    seed: int,
    epoch: int,
    rate: float = 0.15,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose targets at random: 80 % masked, 10 % replaced, 10 % kept (BERT's scheme).

    Parameters
    ----------
    input_ids
        int64, shape ``(batch, width)``, as from :meth:`Codec.collate`.
    lengths, rows
        Residues and row number of each sequence, shape ``(batch,)``.
    codec
        Says which ids mask and replace.
    seed, epoch
        With row and position they determine everything.
    rate
        Probability that a residue is a target.

    Returns
    -------
    masked, labels : ndarray
        int64, shape ``(batch, width)``; labels are :data:`IGNORED` but at targets. Special
        tokens and pads are never targets.
    """
    positions = np.arange(input_ids.shape[1], dtype=np.uint64)
    stream = _mix(_mix(np.uint64(seed)) ^ np.uint64(epoch))
    keys = _mix(_mix(rows.astype(np.uint64) ^ stream)[:, None] ^ positions[None, :])
    draw = _to_unit(keys)
    residue = _is_residue(input_ids.shape[1], lengths)
    target = residue & (draw < rate)
    labels = np.where(target, input_ids, IGNORED)
    # Given a target, draw / rate is uniform again; it decides what becomes of it.
    fate = draw / rate
    replacement = codec.residue_ids[_mix(keys ^ _GOLDEN) % np.uint64(len(codec.residue_ids))]
    masked = np.where(target & (fate < 0.8), codec.mask_id, input_ids)
    masked = np.where(target & (fate >= 0.8) & (fate < 0.9), replacement, masked)
    return masked, labels


def hash_sequences(sequences: list[np.ndarray]) -> np.ndarray:
    """64-bit hash of each encoded sequence (uint64, shape ``(batch,)``)."""
    return np.array([xxhash.xxh3_64_intdigest(s.tobytes()) for s in sequences], dtype=np.uint64)


def mask_groups(width: int, lengths: np.ndarray, hashes: np.ndarray, groups: int) -> np.ndarray:
    """Partition the residues of each sequence into groups of equal size.

    Masking one group at a time masks each residue exactly once over `groups` passes. Which
    residues share a group is hashed from sequence and position.

    Parameters
    ----------
    width
        Padded width of the batch, special tokens included.
    lengths, hashes
        Residues and hash of each sequence, shape ``(batch,)``.
    groups
        Number of groups; 7 masks about the 15 % that models are trained with.

    Returns
    -------
    ndarray
        int64, shape ``(batch, width)``: group of each residue, -1 elsewhere. Groups of a
        sequence differ in size by at most one; some are empty if it has fewer residues.
    """
    positions = np.arange(width, dtype=np.uint64)
    keys = _mix(hashes[:, None] ^ _mix(positions)[None, :])
    residue = _is_residue(width, lengths)
    # Others sort behind all residues, so that the ranks of residues are 0 .. length - 1.
    order = np.lexsort((keys, ~residue), axis=1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(width)[None, :], axis=1)
    return np.where(residue, ranks % groups, -1)


def _is_residue(width: int, lengths: np.ndarray) -> np.ndarray:
    positions = np.arange(width)[None, :]
    return (positions >= 1) & (positions <= lengths[:, None])


def _mix(x: np.ndarray | np.uint64) -> np.ndarray:
    """Scramble 64-bit integers (the finaliser of splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = np.asarray(x, dtype=np.uint64) + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))


def _to_unit(keys: np.ndarray) -> np.ndarray:
    """Map to [0, 1) with 53 bits."""
    return np.asarray((keys >> np.uint64(11)).astype(np.float64) * 2.0**-53)
