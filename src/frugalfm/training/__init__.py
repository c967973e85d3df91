"""Masked-language-model training: the loop, the optimizers, exact resume."""

from frugalfm.training.data import TrainingData, prepare_data
from frugalfm.training.loop import Recipe, train

__all__ = ["Recipe", "TrainingData", "prepare_data", "train"]
