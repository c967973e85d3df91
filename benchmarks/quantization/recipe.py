"""What a recipe says: models, tasks to tune them on, and the methods and widths to quantize by."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common_arms import Course

from frugalfm.errors import InputError
from frugalfm.quantization import QuantizationPlan

__all__ = ["MASKED", "MethodRow", "Recipe"]

MASKED = "masked loss"
"""Stands where a task's name does, for what is measured without tuning."""


@dataclass(frozen=True)
class MethodRow:
    """One way to quantize, as a row of the table.

    Attributes
    ----------
    name
        Of the row.
    method
        As ``frugalfm quantize`` knows it.
    options
        Of the method, where they differ from its own.
    schemes
        Those of the recipe's that it is measured at; None for all.
    published
        Whether the average over methods counts it: the paper has it.
    """

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    schemes: tuple[str, ...] | None = None
    published: bool = False

    @classmethod
    def read(cls, given: dict[str, Any]) -> MethodRow:
        """Read it from a table of a TOML file."""
        schemes = given.get("schemes")
        return cls(**given | {"schemes": None if schemes is None else tuple(schemes)})


@dataclass(frozen=True)
class Recipe(Course):
    """A table.

    Attributes
    ----------
    models
        Arms that are measured; the first is what the others are compared with.
    tasks
        Folders under GUE's, with ``train.csv``, ``dev.csv`` and ``test.csv``.
    schemes
        Such as ``W4A8``.
    headline
        Those that the average over schemes counts.
    tune
        ``max_train`` rows of a task, and options of ``frugalfm tune``.
    quantize
        Options of :class:`~frugalfm.quantization.QuantizationPlan`.
    methods
        The rows.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    schemes: tuple[str, ...]
    headline: tuple[str, ...]
    tune: dict[str, Any]
    quantize: dict[str, Any]
    methods: tuple[MethodRow, ...]

    @classmethod
    def read(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Turn what a TOML file says into fields."""
        content["methods"] = tuple(MethodRow.read(given) for given in content.pop("method"))
        for name in ("models", "tasks", "schemes", "headline"):
            content[name] = tuple(content[name])
        return super().read(content)

    @property
    def rows(self) -> Iterator[tuple[MethodRow, str]]:
        """Every method and scheme that is measured."""
        for method in self.methods:
            for scheme in method.schemes or self.schemes:
                yield method, scheme

    def plan(self, method: MethodRow, scheme: str, seed: int) -> QuantizationPlan:
        """How a cell is quantized."""
        found = re.fullmatch(r"W(\d+)A(\d+)", scheme)
        if found is None:
            raise InputError(f"{scheme}: is no scheme; write it as W4A8")
        widths = {"weights": int(found[1]), "activations": int(found[2])}
        return QuantizationPlan(
            method.method, options=widths | method.options, seed=seed, **self.quantize
        )

    def check(self) -> None:
        """Refuse what could not be measured, too."""
        super().check()
        for name in self.models:
            if name not in {arm.name for arm in self.arms}:
                raise InputError(f"there is no arm {name!r} to measure")
        if not (self.models and self.tasks and self.methods):
            raise InputError("has no models, no tasks or no methods")
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            raise InputError("two methods have one name")
        strange = set(self.headline) - set(self.schemes)
        for method, scheme in self.rows:
            strange |= {scheme} - set(self.schemes)
            self.plan(method, scheme, 0)
        if strange:
            raise InputError(f"{min(strange)} is not among the schemes")
