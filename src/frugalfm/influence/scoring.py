"""Subset-based self-influence under a diagonal empirical Fisher matrix.

``I(z) = g_z^T diag(F + damping)^-1 g_z`` with ``F`` the mean of ``g * g`` over a random subset
(arXiv 2512.12932, eqs. 5 to 8). Positive; larger is more influential.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from frugalfm.encoders.devices import limit_batch
from frugalfm.errors import FrugalError
from frugalfm.influence.gradients import HeadGradients, SequenceGradients
from frugalfm.tokens.batches import plan_by_length

__all__ = ["Fisher", "Reduction", "ScoreRecipe", "Scores", "estimate_fisher", "score_sequences"]

Reduction = Literal["sqrt", "mean", "sum"]


@dataclass(frozen=True)
class ScoreRecipe:
    """What decides the ranking, beside the model and its masks.

    Attributes
    ----------
    subset
        Sequences drawn at random for the Fisher matrix and the adaptation.
    adapt
        Peak learning rate of one epoch of training on the subset; None: no adaptation.
    reduction
        A sequence's gradient is its summed loss's, divided by the square root of its number of
        targets (``sqrt``: length-neutral to first order), by the number (``mean``: favours short
        sequences), or not (``sum``: favours long ones).
    damping
        Added to the Fisher diagonal.
    seed
        Determines the subset.
    batch_tokens
        Padded tokens of a batch; does not change scores beyond rounding.
    """

    subset: int = 2000
    adapt: float | None = 1e-4
    reduction: Reduction = "sqrt"
    damping: float = 1e-8
    seed: int = 0
    batch_tokens: int = 16_384

    def identity(self) -> dict[str, Any]:
        """All that decides the scores; the size of batches does not."""
        settings = asdict(self)
        del settings["batch_tokens"]
        return settings


@dataclass(frozen=True)
class Fisher:
    """Diagonal empirical Fisher matrix of the head's dense weight.

    Attributes
    ----------
    diagonal
        fp32, shape ``(d_out, d_in)``.
    sequences
        How many it is the mean of.
    """

    diagonal: Tensor
    sequences: int


@dataclass(frozen=True)
class Scores:
    """Scores of some sequences, in their order.

    Attributes
    ----------
    influence
        float32, positive.
    loss
        float32: mean loss of the targets, in nats.
    n_tokens
        int32: targets.
    """

    influence: np.ndarray
    loss: np.ndarray
    n_tokens: np.ndarray


def estimate_fisher(
    gradients: HeadGradients, sequences: Sequence[np.ndarray], recipe: ScoreRecipe
) -> Fisher:
    """Average the squared per-sequence gradients over a subset.

    Parameters
    ----------
    gradients
        Of the model.
    sequences
        The subset, encoded.
    recipe
        Its reduction is applied to every gradient.
    """
    shape = (gradients.dense.out_features, gradients.dense.in_features)
    total = torch.zeros(shape, dtype=torch.float64)
    for _, batch in _batches(gradients, sequences, recipe):
        weights = _reduce(batch, recipe.reduction).square()
        for part, gradient in batch.chunks():
            squares = gradient.square_().flatten(1)
            total += (weights[part] @ squares).view(shape).double().cpu()
    return Fisher((total / len(sequences)).float(), len(sequences))


def score_sequences(
    gradients: HeadGradients,
    fisher: Fisher,
    sequences: Sequence[np.ndarray],
    recipe: ScoreRecipe,
) -> Scores:
    """Score encoded sequences; the result keeps their order.

    Raises
    ------
    FrugalError
        A score is not finite.
    """
    inverse = 1.0 / (fisher.diagonal.to(gradients.device) + recipe.damping).flatten()
    n = len(sequences)
    influence, loss = np.zeros(n, np.float32), np.zeros(n, np.float32)
    counts = np.zeros(n, np.int32)
    for rows, batch in _batches(gradients, sequences, recipe):
        raw = torch.empty(len(rows), device=gradients.device)
        for part, gradient in batch.chunks():
            raw[part] = gradient.square_().flatten(1) @ inverse
        influence[rows] = (raw * _reduce(batch, recipe.reduction).square()).cpu().numpy()
        loss[rows] = (batch.losses / batch.counts.clamp_min(1)).cpu().numpy()
        counts[rows] = batch.counts.cpu().numpy()
    if not np.isfinite(influence).all():
        bad = int(np.flatnonzero(~np.isfinite(influence))[0])
        raise FrugalError(
            f"the score of sequence {bad} is {influence[bad]}: the model's weights or outputs "
            "are not finite; try --precision fp32 or another checkpoint"
        )
    return Scores(influence, loss, counts)


def _batches(
    gradients: HeadGradients, sequences: Sequence[np.ndarray], recipe: ScoreRecipe
) -> Iterator[tuple[np.ndarray, SequenceGradients]]:
    lengths = np.array([len(s) for s in sequences], dtype=np.int32)
    limit = limit_batch(recipe.batch_tokens, gradients.device)
    for rows in plan_by_length(lengths, limit):
        yield rows, gradients([sequences[row] for row in rows])


def _reduce(batch: SequenceGradients, reduction: Reduction) -> Tensor:
    """Factor of each sequence's gradient of the summed loss."""
    counts = batch.counts.clamp_min(1).float()
    return {"sqrt": counts.rsqrt(), "mean": 1.0 / counts, "sum": torch.ones_like(counts)}[reduction]
