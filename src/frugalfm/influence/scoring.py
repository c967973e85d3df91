"""Subset-based self-influence under an empirical Fisher matrix.

``I(z) = g_z^T (F + damping)^-1 g_z`` with ``F`` made of the mean of ``g * g`` over a random subset
(arXiv 2512.12932, eqs. 5 to 8). Never negative; larger is more influential. (The code released
with the paper stores the negative.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frugalfm.encoders.devices import limit_batch
from frugalfm.errors import FrugalError
from frugalfm.influence.fisher import (
    DiagonalMetric,
    Fisher,
    FisherKind,
    FisherSum,
    Metric,
    RankOneMetric,
)
from frugalfm.influence.gradients import Gradients, Losses, Reduction
from frugalfm.tokens.batches import SPECIALS, plan_by_length

__all__ = ["Fisher", "Reduction", "ScoreRecipe", "Scores", "estimate_fisher", "score_sequences"]


@dataclass(frozen=True)
class ScoreRecipe:
    """What decides the ranking, beside the model, its layers and its masks.

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
    fisher
        What of the Fisher matrix is kept; see :mod:`frugalfm.influence.fisher`.
    projection
        With ``projection``: dimensions that either side of a gradient is projected to.
    seed
        Determines the subset and the projections.
    batch_tokens
        Padded tokens of a batch; does not change scores beyond rounding.
    """

    subset: int = 2000
    adapt: float | None = 1e-4
    reduction: Reduction = "sqrt"
    damping: float = 1e-8
    fisher: FisherKind = "diagonal"
    projection: int = 64
    seed: int = 0
    batch_tokens: int = 16_384

    def identity(self) -> dict[str, Any]:
        """All that decides the scores; the size of batches does not."""
        settings = asdict(self)
        del settings["batch_tokens"]
        if self.fisher != "projection":
            settings["projection"] = None
        return settings


@dataclass(frozen=True)
class Scores:
    """Scores of some sequences, in their order.

    Attributes
    ----------
    influence
        float32, positive; zero only for a sequence without targets.
    loss
        float32: mean loss of the targets, in nats.
    n_tokens
        int32: targets, over all passes.
    """

    influence: np.ndarray
    loss: np.ndarray
    n_tokens: np.ndarray


def estimate_fisher(
    gradients: Gradients, sequences: Sequence[np.ndarray], recipe: ScoreRecipe
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
    total = FisherSum(recipe.fisher)
    for rows in _plan(gradients, sequences, recipe):
        gradients([sequences[row] for row in rows], recipe.reduction, total)
    return total.mean(len(sequences), gradients.dtype)


def score_sequences(
    gradients: Gradients,
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
    metric = _make_metric(fisher, recipe, gradients.device)
    n = len(sequences)
    influence, loss = np.zeros(n, np.float32), np.zeros(n, np.float32)
    counts = np.zeros(n, np.int32)
    for rows in _plan(gradients, sequences, recipe):
        raw, found = _measure(gradients, [sequences[row] for row in rows], recipe, metric)
        influence[rows] = raw.cpu().numpy()
        loss[rows] = (found.losses / found.counts.clamp_min(1)).cpu().numpy()
        counts[rows] = found.counts.cpu().numpy()
    if not np.isfinite(influence).all():
        bad = int(np.flatnonzero(~np.isfinite(influence))[0])
        raise FrugalError(
            f"the score of sequence {bad} is {influence[bad]}: the model's weights or outputs "
            "are not finite; try --precision fp32 or another checkpoint"
        )
    return Scores(influence, loss, counts)


def _measure(
    gradients: Gradients, sequences: list[np.ndarray], recipe: ScoreRecipe, metric: Metric
) -> tuple[Tensor, Losses]:
    """Add up the layers' quadratic forms of one batch."""
    total = torch.zeros(len(sequences), device=gradients.device, dtype=gradients.dtype)

    def visit(layer: str, inputs: Tensor, deltas: Tensor) -> None:
        total.add_(metric(layer, inputs, deltas))

    found = gradients(sequences, recipe.reduction, visit)
    return total, found


def _make_metric(fisher: Fisher, recipe: ScoreRecipe, device: torch.device) -> Metric:
    if recipe.fisher == "diagonal":
        return DiagonalMetric(fisher, recipe.damping, device)
    dimensions = recipe.projection if recipe.fisher == "projection" else None
    return RankOneMetric(fisher, recipe.damping, device, dimensions, recipe.seed)


def _plan(
    gradients: Gradients, sequences: Sequence[np.ndarray], recipe: ScoreRecipe
) -> Iterator[np.ndarray]:
    """Cut sequences into batches, longest first."""
    lengths = np.array([len(s) for s in sequences], dtype=np.int32)
    widths = (gradients.masks.padded(lengths) + SPECIALS) * gradients.rows_per_sequence
    limit = limit_batch(recipe.batch_tokens, gradients.device)
    yield from plan_by_length(widths - SPECIALS, limit)
