"""Self-influence of every sequence: per-sequence gradients, Fisher information, scores."""

from frugalfm.influence.gradients import HeadGradients
from frugalfm.influence.pool import score_pool
from frugalfm.influence.scoring import Fisher, ScoreRecipe, estimate_fisher, score_sequences

__all__ = [
    "Fisher",
    "HeadGradients",
    "ScoreRecipe",
    "estimate_fisher",
    "score_pool",
    "score_sequences",
]
