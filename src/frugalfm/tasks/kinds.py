"""What a task may ask for: of a sequence, its residues, pairs of residues, pairs of sequences."""

from __future__ import annotations

from typing import Literal, TypeGuard

__all__ = [
    "CLASSES",
    "HEADLINE",
    "IGNORED",
    "MAPS",
    "NUMBERS",
    "PAIRS",
    "Kind",
    "MapKind",
    "is_map",
]

Kind = Literal[
    "classification",
    "multilabel",
    "regression",
    "token",
    "contact",
    "distance",
    "base-pair",
    "interaction",
    "affinity",
]
MapKind = Literal["contact", "distance", "base-pair"]

CLASSES = frozenset({"classification", "interaction"})
"""One class a row."""
NUMBERS = frozenset({"regression", "affinity"})
"""One number a row."""
PAIRS = frozenset({"interaction", "affinity"})
"""Rows are pairs of sequences."""
MAPS = frozenset({"contact", "distance", "base-pair"})
"""Targets belong to pairs of positions: :attr:`~frugalfm.tasks.splits.Split.maps`."""

HEADLINE = {
    "classification": "macro_f1",
    "multilabel": "macro_f1",
    "regression": "spearman",
    "token": "macro_f1",
    "contact": "top_L",
    "distance": "spearman",
    "base-pair": "f1",
    "interaction": "macro_f1",
    "affinity": "spearman",
}
"""The metric by which dev chooses between models."""

IGNORED = -100
"""Class of a residue that nothing is known of; torch's cross entropy leaves it out, too."""


def is_map(kind: str | None) -> TypeGuard[MapKind]:
    """Whether targets belong to pairs of positions."""
    return kind in MAPS
