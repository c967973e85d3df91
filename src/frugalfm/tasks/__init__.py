"""Labelled data: task folders, checked before any model runs, and metrics with intervals."""

from frugalfm.tasks.folder import Task, find_splits, read_task
from frugalfm.tasks.metrics import Estimate, score_classes, score_numbers
from frugalfm.tasks.splits import Split

__all__ = [
    "Estimate",
    "Split",
    "Task",
    "find_splits",
    "read_task",
    "score_classes",
    "score_numbers",
]
