"""Self-influence of every sequence: per-sequence gradients, Fisher information, scores."""

from frugalfm.influence.gradients import Gradients, HeadGradients
from frugalfm.influence.layers import LayerGradients
from frugalfm.influence.masks import MaskScheme
from frugalfm.influence.pool import score_pool
from frugalfm.influence.scoring import Fisher, ScoreRecipe, estimate_fisher, score_sequences

__all__ = [
    "Fisher",
    "Gradients",
    "HeadGradients",
    "LayerGradients",
    "MaskScheme",
    "ScoreRecipe",
    "estimate_fisher",
    "score_pool",
    "score_sequences",
]
