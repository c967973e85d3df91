"""Masked-language-model training: the loop, the optimizers, exact resume."""

from frugalfm.training.data import TrainingData, prepare_data
from frugalfm.training.loop import Recipe, train
from frugalfm.training.resume import clear_work

__all__ = ["Recipe", "TrainingData", "clear_work", "prepare_data", "train"]
