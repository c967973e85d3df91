"""What a recipe says: one model, one course of training, and the arms that differ in one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.common_arms import Course

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe(Course):
    """A table.

    Attributes
    ----------
    measure
        ``bits``, and ``sequences`` to measure outliers and quantization on.
    """

    measure: dict[str, Any]
