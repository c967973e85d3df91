"""Labelled data: task folders, checked before any model runs, and metrics with intervals."""

from frugalfm.tasks.folder import Task, find_splits, read_task
from frugalfm.tasks.kinds import HEADLINE, IGNORED, MAPS, NUMBERS, PAIRS, Kind
from frugalfm.tasks.maps import MapTargets
from frugalfm.tasks.metrics import Estimate, score_classes, score_numbers, score_ranking
from frugalfm.tasks.reading import Reading
from frugalfm.tasks.splits import Split

__all__ = [
    "HEADLINE",
    "IGNORED",
    "MAPS",
    "NUMBERS",
    "PAIRS",
    "Estimate",
    "Kind",
    "MapTargets",
    "Reading",
    "Split",
    "Task",
    "find_splits",
    "read_task",
    "score_classes",
    "score_numbers",
    "score_ranking",
]
